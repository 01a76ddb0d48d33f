"""Which news is fresh: what came from the owner, from a source, and all of it at the end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from chunker.digest import BlockId
from peer.exchange import Exchange
from peer.growing import Growing
from peer.identity import PeerId
from peer.inbound import Inbound
from tests.peer.office import make_path

ME, OWNER, FELLOW, SEED, WATCHER = map(PeerId, ("ME", "OWNER", "FELLOW", "SEED", "WATCHER"))
BLOCKS = 50


class Watching:
    def __init__(self, growing: Growing) -> None:
        self.peer = WATCHER
        self.watches = {growing.id: None}
        self.told: dict[int, bool] = {}

    def note(self, manifest: object, index: int, *, fresh: bool) -> None:
        self.told[index] = fresh


def told(givers: dict[int, PeerId], *, ends: bool) -> dict[int, bool]:
    """By index, whether it is fresh to one who watches and holds block 9 already."""
    growing = Growing(make_path("it", 100_000)[0], OWNER)
    exchange = Exchange(ME)
    blocks = [BlockId(number.to_bytes(32, "big")) for number in range(BLOCKS)]
    exchange.start(0.0, growing.id, blocks, [1] * BLOCKS, range(BLOCKS), source=OWNER)
    exchange.has(0.0, OWNER, growing.id, range(BLOCKS), True)
    exchange.has(0.0, FELLOW, growing.id, range(BLOCKS), True)
    exchange.has(0.0, SEED, growing.id, range(BLOCKS), False)
    exchange.has(0.0, WATCHER, growing.id, [9], True)
    fetch = SimpleNamespace(manifest=growing, ends=ends)
    swarm: Any = SimpleNamespace(fetches={growing.id: fetch}, exchange=exchange)
    inbound, session = Inbound(swarm), Watching(growing)
    inbound._sessions[session] = None  # type: ignore[index]
    inbound.note(growing.id, givers)
    return session.told


def test_what_a_fellow_gave_is_told_later_than_what_the_owner_or_a_seed_gave() -> None:
    givers = {1: OWNER, 2: SEED, 3: FELLOW, 9: OWNER}
    assert told(givers, ends=False) == {1: True, 2: True, 3: False}


def test_the_last_blocks_are_told_at_once_whoever_gave_them() -> None:
    assert told({3: FELLOW}, ends=True) == {3: True}
