"""Questions gathered: nothing waits alone, much goes together, and everybody gets an answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from chunker.record import PathRecord
from peer.errors import PeerError, RemoteError, SessionClosed
from peer.finding import GATHER_SECONDS, QUESTIONS_MAX, Finding, Gathering
from peer.messages import FIND_HASHES_MAX
from tests.peer.office import make_path


def test_the_first_question_leaves_at_once_and_the_next_are_gathered() -> None:
    gathering = Gathering()
    gathering.ask(1.0, "a")
    assert gathering.next(1.0) == ("a",)
    gathering.ask(1.0, "b")
    assert gathering.next(1.0 + GATHER_SECONDS / 2) == ()
    gathering.ask(1.0 + GATHER_SECONDS / 2, "c")
    assert gathering.next(1.0 + GATHER_SECONDS) == ("b", "c")
    gathering.answered()
    gathering.answered()
    gathering.ask(2.0, "d")
    assert gathering.next(2.0) == ("d",)
    assert gathering.wake_at == float("inf")


def test_a_full_find_does_not_wait() -> None:
    gathering = Gathering()
    names = [str(number) for number in range(2 * FIND_HASHES_MAX + 1)]
    for name in names:
        gathering.ask(1.0, name)
    assert gathering.next(1.0) == tuple(names[:FIND_HASHES_MAX])
    assert gathering.next(1.0) == tuple(names[FIND_HASHES_MAX : 2 * FIND_HASHES_MAX])
    assert gathering.next(1.0) == ()
    assert gathering.next(1.0 + GATHER_SECONDS) == tuple(names[-1:])


class Peer:
    """Answers a Find after a second, on a clock that jumps."""

    def __init__(self) -> None:
        self.finds: list[Sequence[str]] = []
        self.held: dict[str, PathRecord] = {}
        self.error: PeerError | None = None

    async def answer(self, hashes: Sequence[str]) -> dict[str, PathRecord]:
        self.finds.append(hashes)
        await trio.sleep(1)
        if self.error is not None:
            raise self.error
        return {name: self.held[name] for name in hashes if name in self.held}


async def test_lookups_at_once_share_finds_and_the_same_question_is_asked_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = Peer()
    records = [make_path(f"path-{number}", 1)[0] for number in range(100)]
    peer.held = {record.store_hash: record for record in records[:50]}
    finding = Finding(peer.answer)
    found: dict[str, PathRecord] = {}

    async def look_up(record: PathRecord) -> None:
        found.update(await finding.find([record.store_hash]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finding.run)
        async with trio.open_nursery() as asking:
            for record in records * 3:
                asking.start_soon(look_up, record)
        nursery.cancel_scope.cancel()
    assert found == peer.held
    asked = [name for hashes in peer.finds for name in hashes]
    assert sorted(asked) == sorted(record.store_hash for record in records)
    assert len(peer.finds) <= 2


async def test_an_error_reaches_everybody_who_shared_the_question(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = Peer()
    peer.error = RemoteError("nonsense")
    finding = Finding(peer.answer)
    raised: list[str] = []

    async def look_up() -> None:
        try:
            await finding.find(["a"])
        except RemoteError as error:
            raised.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finding.run)
        async with trio.open_nursery() as asking:
            for _ in range(3):
                asking.start_soon(look_up)
        peer.error = None
        assert await finding.find(["a"]) == {}
        nursery.cancel_scope.cancel()
    assert raised == ["nonsense"] * 3


async def test_who_waits_when_the_session_ends_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    finding = Finding(Peer().answer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(finding.run)

        async def stop() -> None:
            await trio.sleep(0.5)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as other:
            with trio.CancelScope(shield=True):
                nursery.start_soon(stop)
                with pytest.raises(SessionClosed):
                    await finding.find(["a", "b"])
            other.cancel_scope.cancel()
    with pytest.raises(SessionClosed):
        await finding.find(["c"])


async def test_questions_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    finding = Finding(Peer().answer)
    with pytest.raises(SessionClosed):
        await finding.find([str(number) for number in range(QUESTIONS_MAX + 1)])
