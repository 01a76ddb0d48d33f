"""Upstreams and peers asked at once: who counts, who is waited for, what is remembered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from chunker.record import PathRecord
from gateway import lookups as lookups_module
from gateway.breaker import FAILURES_MAX, Guarded
from gateway.errors import UpstreamError
from gateway.lookup import admitted_by
from gateway.lookups import AHEAD_LEVELS, MEMBER_SECONDS_MAX, TRIAL_SECONDS_MAX, Lookups
from gateway.memory import ABSENT_SECONDS
from gateway.narinfo import Narinfo, fingerprint, format, parse
from gateway.seeding import NO_MANIFEST
from gateway.signing import KeyRing
from gateway.trust import Admitted
from gateway.upstream import Upstream
from tests.gateway.test_substituter import FOREIGN, KEY, signed_path

RING = KeyRing((KEY.public,))
PATIENCE = 5.0


def admits(record: PathRecord, sources: frozenset[str]) -> Admitted | None:
    return admitted_by(record, [RING])


class Cache:
    """An upstream in memory. It answers after `seconds`, unless it is `broken`."""

    def __init__(self, url: str, *records: PathRecord, seconds: float = 0.0) -> None:
        self.url = url
        self.has = {record.store_hash: record for record in records}
        self.seconds = seconds
        self.broken = False
        self.asked: list[str] = []

    async def narinfo(self, store_hash: str) -> Narinfo | None:
        self.asked.append(store_hash)
        await trio.sleep(self.seconds)
        if self.broken:
            raise UpstreamError(f"{self.url} is broken")
        record = self.has.get(store_hash)
        return None if record is None else parse(format(record, record.signatures))

    @asynccontextmanager
    async def nar(self, info: Narinfo) -> AsyncIterator[AsyncIterator[bytes]]:
        raise UpstreamError("no NARs here")
        yield


@asynccontextmanager
async def looking(*upstreams: Upstream, **options: object) -> AsyncIterator[Lookups]:
    lookups = Lookups(upstreams, admits, **options)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        await nursery.start(lookups.run)
        yield lookups
        nursery.cancel_scope.cancel()


def path(name: str, *references: PathRecord) -> PathRecord:
    record, _ = signed_path(name, size=10)
    return signed(replace(record, references=tuple(sorted(r.store_path for r in references))))


def signed(record: PathRecord, *keys: object) -> PathRecord:
    text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    return replace(record, signatures=tuple(key.sign(text) for key in keys or (KEY,)))  # type: ignore


PATH = path("path")
UNTRUSTED = signed(PATH, FOREIGN)


async def found(lookups: Lookups, record: PathRecord) -> PathRecord | None:
    known = await lookups.look_up(record.store_hash, PATIENCE)
    return None if known is None else known.admitted.record


async def test_a_hanging_a_broken_and_an_untrusted_one_cost_nothing(
    autojump_clock: MockClock,
) -> None:
    broken, good = Cache("broken"), Cache("good", PATH, seconds=0.1)
    broken.broken = True
    untrusted = Cache("untrusted", UNTRUSTED)
    async with looking(Cache("slow", seconds=1e9), broken, untrusted, good) as lookups:
        began = trio.current_time()
        record = await found(lookups, PATH)
        assert trio.current_time() - began == pytest.approx(0.1)
        assert record is not None and record.manifest == NO_MANIFEST
        assert await found(lookups, PATH) == record
        assert good.asked == [PATH.store_hash]


async def test_what_no_trusted_key_signed_is_told_to_nobody() -> None:
    async with looking(Cache("untrusted", UNTRUSTED)) as lookups:
        assert await lookups.record(PATH.store_hash) is None
        assert lookups.refused == 1


async def test_a_member_is_answered_in_its_time(autojump_clock: MockClock) -> None:
    async with looking(Cache("slow", PATH, seconds=4)) as lookups:
        assert await lookups.record(PATH.store_hash) is None
        assert trio.current_time() == pytest.approx(MEMBER_SECONDS_MAX, abs=0.1)
        await trio.sleep(3)
        assert await lookups.record(PATH.store_hash) is not None


async def test_unknown_is_not_absent(autojump_clock: MockClock) -> None:
    slow = Cache("slow", seconds=1e9)
    async with looking(Cache("no"), slow) as lookups:
        with pytest.raises(trio.TooSlowError):
            await found(lookups, PATH)
    no, broken = Cache("no"), Cache("broken")
    broken.broken = True
    async with looking(no, broken) as lookups:
        began = trio.current_time()
        assert await found(lookups, PATH) is None
        assert trio.current_time() == began
        assert await found(lookups, PATH) is None
        assert len(no.asked) == 2  # one could not say it: nothing to remember


async def test_absence_is_remembered_for_seconds(autojump_clock: MockClock) -> None:
    one, other = Cache("one"), Cache("other", UNTRUSTED)
    async with looking(one, other) as lookups:
        for _ in range(3):
            assert await found(lookups, PATH) is None
        assert len(one.asked) == len(other.asked) == 1
        one.has[PATH.store_hash] = PATH
        await trio.sleep(ABSENT_SECONDS / 2)
        assert await found(lookups, PATH) is None
        await trio.sleep(ABSENT_SECONDS / 2)  # the question before did not begin it anew
        assert await found(lookups, PATH) is not None


async def test_peers_are_asked_for_what_no_upstream_has() -> None:
    async def ask(store_hash: str, offer: Callable[[PathRecord], bool]) -> None:
        asked.append(store_hash)
        assert not offer(UNTRUSTED)
        assert not have or offer(PATH)

    asked: list[str] = []
    have: list[bool] = []
    async with looking(Cache("no"), ask_peers=ask) as lookups:
        assert await found(lookups, PATH) is None
        have.append(True)
        assert await found(lookups, PATH) is not None
        assert len(asked) == 2


async def test_who_asks_for_the_same_path_shares_the_question(autojump_clock: MockClock) -> None:
    cache = Cache("one", PATH, seconds=1)
    async with looking(cache) as lookups:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(found, lookups, PATH)
        assert len(cache.asked) == 1


async def test_a_late_signature_is_served_the_next_time(autojump_clock: MockClock) -> None:
    """What is served at once has one; another source's comes after it."""
    both = KeyRing((KEY.public, FOREIGN.public))
    fast, slow = Cache("fast", PATH), Cache("slow", UNTRUSTED, seconds=1)
    async with looking(fast, slow) as lookups:
        lookups._admits = lambda record, sources: admitted_by(record, [both])
        first = await lookups.look_up(PATH.store_hash, PATIENCE)
        assert first is not None and first.text.count(b"Sig: ") == 1
        await trio.sleep(2)
        second = await lookups.look_up(PATH.store_hash, PATIENCE)
        assert second is not None and second.text.count(b"Sig: ") == 2
        assert set(second.admitted.signatures) == {*PATH.signatures, *UNTRUSTED.signatures}


async def test_who_failed_last_time_is_asked_and_hardly_waited_for(
    autojump_clock: MockClock,
) -> None:
    slow = Cache("slow", seconds=6)
    slow.broken = True
    guarded = Guarded(slow)
    async with looking(Cache("no"), guarded) as lookups:
        with pytest.raises(trio.TooSlowError):
            await found(lookups, path("first"))
        await trio.sleep(2)
        took = []
        for number in range(FAILURES_MAX):
            began = trio.current_time()
            assert await found(lookups, path(f"path-{number}")) is None
            took.append(trio.current_time() - began)
            await trio.sleep(10)
        # The last one found it resting.
        assert took == pytest.approx([*[TRIAL_SECONDS_MAX] * (FAILURES_MAX - 1), 0])
        slow.broken, slow.seconds = False, 0.5
        slow.has[PATH.store_hash] = PATH
        await trio.sleep(60)
        assert await found(lookups, PATH) is not None
        assert not guarded.is_on_trial


async def test_whom_to_ask_for_a_nar() -> None:
    """Who has it, by rank and then who said so first; then the others."""
    caches = [Cache("late", PATH, seconds=0.2), Cache("first", PATH), Cache("no"),
              Cache("last", PATH, seconds=0.1), Cache("preferred", PATH, seconds=0.3)]  # fmt: skip
    async with looking(*caches, ranks={"last": 9, "preferred": -1}) as lookups:
        assert await found(lookups, PATH) is not None
        await trio.sleep(0.5)
        order = lookups.order(PATH)
        assert [upstream.url for upstream in order] == ["preferred", "first", "late", "last", "no"]
        asked = [len(cache.asked) for cache in caches]
        assert await order[0].narinfo(PATH.store_hash) is not None
        assert [len(cache.asked) for cache in caches] == asked
        other = replace(PATH, nar_hash=path("other").nar_hash)
        names = [upstream.url for upstream in lookups.order(other)]
        assert names == ["preferred", "late", "first", "no", "last"]


def chain(length: int) -> list[PathRecord]:
    """Each refers to the one after it."""
    records: list[PathRecord] = []
    for number in range(length):
        records.insert(0, path(f"level-{number}", *records[:1]))
    return records


async def test_references_are_looked_up_before_they_are_asked_for() -> None:
    levels = chain(AHEAD_LEVELS + 4)
    cache = Cache("one", *levels)
    async with looking(cache, Cache("no")) as lookups:
        for number, record in enumerate(levels):
            assert await found(lookups, record) == replace(record)
            await wait_all_tasks_blocked()
            reached = levels[: number + AHEAD_LEVELS + 1]
            assert cache.asked == [one.store_hash for one in reached]


async def test_what_is_here_is_not_looked_up_ahead() -> None:
    levels = chain(3)
    cache = Cache("one", *levels)
    async with looking(cache, holds=lambda name: name == levels[1].store_hash) as lookups:
        assert await found(lookups, levels[0]) is not None
        await wait_all_tasks_blocked()
        assert cache.asked == [levels[0].store_hash]


async def test_looking_ahead_is_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups_module, "AHEAD_AT_ONCE_MAX", 3)
    monkeypatch.setattr(lookups_module, "AHEAD_WAITING_MAX", 10)
    children = [path(f"child-{number}") for number in range(40)]
    top = path("top", *children)
    cache = Cache("one", top, *children, seconds=1)
    async with looking(cache) as lookups:
        assert await found(lookups, top) is not None
        await wait_all_tasks_blocked()
        assert len(cache.asked) == 1 + 3
        await trio.sleep(60)
        assert len(cache.asked) == 1 + 10


async def test_what_nobody_could_deliver_is_asked_for_again() -> None:
    cache = Cache("one", PATH)
    async with looking(cache) as lookups:
        for number in (1, 2):
            assert await found(lookups, PATH) is not None
            assert len(cache.asked) == number
            lookups.forget(PATH.store_hash)
