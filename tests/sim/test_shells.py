"""The shells under faults: everybody reads the right bytes, nothing leaks, no GET breaks."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import trio

import gateway.delivery
from chunker.record import PathRecord
from gateway.delivery import Deliveries
from gateway.sources import Tried
from peer.fetch import Fetch
from peer.identity import PeerId
from tests.sim.shells import SHELL_FAULTS, SITES, Leak, Outcome, Scenario

SEEDS = 30
SEEDS_PER_TEST = 10


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def run(seed: int, faults: tuple[str, ...] = SHELL_FAULTS) -> Outcome:
    try:
        return Scenario(seed, faults).run()
    except BaseException as error:
        error.add_note(f"again: python -m tests.sim {seed} --shells --faults {','.join(faults)}")
        raise


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_seeds_with_all_faults(first: int) -> None:
    outcomes = [run(seed) for seed in range(first, first + SEEDS_PER_TEST)]
    assert any(outcome.faults for outcome in outcomes)
    assert any(outcome.cancelled for outcome in outcomes)


def test_without_faults_the_upstream_is_read_once_and_no_body_breaks() -> None:
    for seed in range(5):
        outcome = run(seed, ())
        assert outcome.copies == 1 and not outcome.broken


def test_each_of_two_sites_reads_its_own_line_once() -> None:
    for seed in range(8):
        outcome = run(seed, (SITES,))
        assert outcome.copies == 2 and not outcome.broken


def test_the_owner_of_a_fetch_is_lost_and_nobody_elses_get_fails() -> None:
    outcomes = [run(seed, ("owner",)) for seed in range(8)]
    lost = [outcome for outcome in outcomes if outcome.faults]
    assert len(lost) >= 3
    for outcome in lost:
        assert set(outcome.broken) <= outcome.away
        assert outcome.copies <= 3


def test_a_lie_that_grows_costs_each_machine_one_get() -> None:
    outcomes = [run(seed, ("poison",)) for seed in range(12)]
    deceived = [outcome.deceived for outcome in outcomes]
    assert any(deceived)
    for names in deceived:
        assert len(names) == len(set(names))


def test_an_owner_whose_upstream_failed_does_not_stand_in_the_way_of_itself() -> None:
    """It is followed again while others still read what failed: one download of that name at once,
    and the end of the first is not that of the second."""
    outcomes = [run(seed, ("poison",)) for seed in (1, 6, 8)]
    assert all(outcome.poisoner and not outcome.deceived for outcome in outcomes)


@pytest.mark.parametrize(
    "faults", [("owner", "delay"), ("upstream", "delay"), ("liars",), ("liars", "delay")]
)
def test_of_those_who_lost_their_source_one_alone_goes_to_the_upstream(
    faults: tuple[str, ...],
) -> None:
    """All learn of it at other moments, and ask each other while messages are under way."""
    outcomes = [run(seed, faults) for seed in range(8)]
    assert [outcome.needless for outcome in outcomes] == [[]] * len(outcomes)
    for outcome in outcomes:
        assert outcome.copies <= 1 + len(outcome.faults)
        assert set(outcome.broken) <= outcome.away
    assert any(outcome.faults for outcome in outcomes) or "liars" in faults


@pytest.mark.parametrize("seed", [3, 4])
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    assert run(seed).trace == run(seed).trace
    assert run(seed).trace != run(seed + 100).trace


def test_canary_a_fetch_that_is_never_closed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stay(self: Fetch) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Fetch, "close", stay)
    with pytest.raises(BaseException) as caught:
        run(4)
    assert _has(caught.value, Leak)


def test_canary_a_gateway_that_asks_no_holder_to_fetch_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The owner is lost, and of those who can fetch as well nobody is asked."""
    monkeypatch.setattr(gateway.delivery, "OWNERS_ASKED_MAX", 0)
    broken = [run(seed, ("owner",)) for seed in range(8)]
    assert any(set(outcome.broken) - outcome.away for outcome in broken)


def test_canary_gateways_that_each_take_their_own_turn_first_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = Deliveries._turns

    def own_first(self: Deliveries, record: PathRecord, tried: Tried) -> list[PeerId]:
        me = self._swarm.me
        return sorted(honest(self, record, tried), key=lambda owner: owner != me)

    monkeypatch.setattr(Deliveries, "_turns", own_first)
    assert any(run(seed, ("owner", "delay")).needless for seed in range(3))


def _has(error: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_has(inner, kind) for inner in error.exceptions)
    return isinstance(error, kind)
