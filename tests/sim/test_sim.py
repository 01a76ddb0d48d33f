"""The simulated swarm: every seed completes, nothing false is kept, nobody honest is banned."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import peer.exchange
from chunker.block import Block, Encoded
from chunker.digest import BlockId
from peer.exchange import Exchange
from tests.sim.world import FAULTS, Violation, World

HERE = Path(__file__).parent
KNOWN = [
    (int(line.split()[0]), int(line.split()[1]))
    for line in (HERE / "seeds.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize(("seed", "peers"), KNOWN)
def test_seeds_with_a_story(seed: int, peers: int) -> None:
    World(seed, peers).run()


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_random_seeds_with_all_faults(first: int) -> None:
    for seed in range(first, first + 10):
        World(1000 + seed, 20).run()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(fault: str) -> None:
    for seed in range(5):
        World(seed, 16, (fault,)).run()


def test_without_faults_next_to_nothing_is_wasted() -> None:
    outcome = World(1, 32, ()).run()
    assert outcome.bans == 0
    assert outcome.useful_bytes >= 0.98 * outcome.honest_bytes


def test_liars_are_banned_by_those_they_lie_to() -> None:
    assert sum(World(seed, 24, ("liar",)).run().bans for seed in range(5)) > 0


def test_the_same_seed_gives_the_same_trace_whatever_the_hash_seed() -> None:
    program = "from tests.sim.world import World; print(World(7, 24).run().trace)"
    traces = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(HERE.parents[1])},
            capture_output=True, text=True, check=True,
        ).stdout
        for hash_seed in ("0", "1", "2")
    }  # fmt: skip
    assert len(traces) == 1


def test_canary_a_peer_that_keeps_without_verifying_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trust(wanted: BlockId, encoded: Encoded) -> Block:
        return Block(wanted, encoded.payload, encoded)

    monkeypatch.setattr(peer.exchange, "verify", trust)
    with pytest.raises(Violation, match="keeps a block that is not"):
        for seed in range(10):
            World(seed, 24, ("liar",)).run()


def test_canary_an_exchange_that_never_asks_again_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Exchange, "tick", lambda self, now: [])
    monkeypatch.setattr("tests.sim.world.HEAL_SECONDS", 1e9)
    with pytest.raises(Violation, match="not done"):
        for seed in range(10):
            World(seed, 24, ("silent",)).run()
