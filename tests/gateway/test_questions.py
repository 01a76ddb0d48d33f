"""Questions that are answered by a call: whatever goes wrong, each is answered once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from chunker.record import PathRecord
from gateway import lookups as lookups_module
from gateway import pages as pages_module
from gateway.breaker import FAILURES_MAX, Guarded
from gateway.errors import Stopping
from gateway.memory import Known
from gateway.narinfo import format, parse
from gateway.questions import Questions
from gateway.transfers import Transfers
from gateway.upstream import HttpCache, Narinfo
from tests.gateway.test_lookups import Cache, admits, found, looking, path
from tests.gateway.test_upstream import HASH, ROOT, Server, server, transfers

__all__ = ["server", "transfers"]  # fixtures

STALLS = (200, {"Content-Length": "9", "X-Test": "stall"}, b"")


async def test_our_own_mistake_ends_no_other_question(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def hear(question: str, url: str, answer: Narinfo | Exception | None) -> None:
        heard.append(question)
        raise KeyError(url)

    questions = Questions[str]([Cache("one")], hear)
    async with trio.open_nursery() as nursery:
        questions.begin(nursery)
        for name in "abc":
            questions.ask(name, name)
        await wait_all_tasks_blocked()
        questions.end()
    assert sorted(heard) == ["a", "b", "c"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3


async def test_what_nix_asks_for_leaves_the_room_of_looking_ahead(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask_peers(store_hash: str, offer: Callable[[PathRecord], bool]) -> None:
        await trio.sleep(2)

    monkeypatch.setattr(lookups_module, "AHEAD_AT_ONCE_MAX", 1)
    first, second = sorted((path("first"), path("second")), key=lambda record: record.store_path)
    top = path("top", first, second)
    cache = Cache("one", top, first, second, seconds=1)
    async with looking(cache, ask_peers=ask_peers) as lookups:
        assert await found(lookups, top) is not None
        assert await found(lookups, first) is not None
        await trio.sleep(5)
        assert cache.asked == [record.store_hash for record in (top, first, second)]


async def test_looking_ahead_where_all_rest_ends(caplog: pytest.LogCaptureFixture) -> None:
    """Each is over as soon as it is begun, thousands of them."""
    resting = Guarded(HttpCache("http://127.0.0.1:1", None, Transfers()))
    resting._narinfos.failed(trio.current_time(), lied=True)
    top = path("top", *(path(f"reference-{number}") for number in range(2000)))
    admitted = admits(top, frozenset())
    assert admitted is not None
    info = parse(format(top, top.signatures))
    async with looking(resting) as lookups:
        lookups.learn(Known(admitted, ((resting.url, info),)))
        assert await found(lookups, top) is not None
        assert not lookups._ahead and lookups._ahead_running == 0
    assert not caplog.records


async def test_our_own_mistake_ends_no_other_transfer(
    server: Server, transfers: Transfers, caplog: pytest.LogCaptureFixture
) -> None:
    server.pages[f"/{HASH}.narinfo"] = (200, {}, ROOT)
    cache = HttpCache(server.url, None, transfers)
    called = trio.Event()

    def answered(answer: Narinfo | Exception | None) -> None:
        called.set()
        raise KeyError(HASH)

    ask = cache.by_call
    assert ask is not None
    ask(HASH, answered)
    await called.wait()
    assert await cache.narinfo(HASH) == parse(ROOT)
    assert [record.getMessage() for record in caplog.records] == ["what follows a transfer failed"]
    cache.close()


async def test_our_own_mistake_with_an_answer_is_a_failure(
    server: Server, transfers: Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse_badly(*_: object) -> Narinfo:
        raise KeyError(HASH)

    monkeypatch.setattr("gateway.upstream._parsed", parse_badly)
    server.pages[f"/{HASH}.narinfo"] = (200, {}, ROOT)
    cache = HttpCache(server.url, None, transfers)
    async with looking(Guarded(cache)) as lookups:
        assert await lookups.look_up(HASH, 2.0) is None
        assert not lookups.is_absent(HASH)
    cache.close()


async def test_what_is_given_up_leaves_its_place(
    server: Server, transfers: Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under way or still waiting."""
    monkeypatch.setattr(pages_module, "PAGES_AT_ONCE_MAX", 1)
    server.pages[f"/{HASH}.narinfo"] = STALLS
    cache = HttpCache(server.url, None, transfers)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(cache.narinfo, HASH)
            await trio.to_thread.run_sync(server.asked.acquire)
            nursery.cancel_scope.cancel()
        assert await cache.narinfo("0" * 32) is None
    assert len(server.seen) == 2
    cache.close()


async def test_that_this_process_stops_is_no_failure_of_an_upstream(server: Server) -> None:
    server.pages[f"/{HASH}.narinfo"] = STALLS
    transfers = Transfers()
    guarded = Guarded(cache := HttpCache(server.url, None, transfers))
    raised: list[Exception] = []

    async def ask() -> None:
        try:
            await guarded.narinfo(HASH)
        except Stopping as error:
            raised.append(error)

    async with trio.open_nursery() as asking:
        async with trio.open_nursery() as nursery:
            await nursery.start(transfers.run)
            for _ in range(FAILURES_MAX):
                asking.start_soon(ask)
            await trio.to_thread.run_sync(server.asked.acquire)
            nursery.cancel_scope.cancel()
        await ask()
    assert len(raised) == FAILURES_MAX + 1
    assert not guarded.is_on_trial
    cache.close()
