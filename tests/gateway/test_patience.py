"""Many that wait, each at most so long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.patience import Here, Patience


@asynccontextmanager
async def patience() -> AsyncIterator[Patience]:
    found = Patience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.run)
        await wait_all_tasks_blocked()
        with trio.fail_after(1e9):
            yield found
        nursery.cancel_scope.cancel()


async def test_each_waits_as_long_as_it_said(autojump_clock: MockClock) -> None:
    ended: list[tuple[float, bool]] = []

    async def wait(found: Patience, here: Here, seconds: float) -> None:
        woken = await found.wait(here, seconds)
        ended.append((trio.current_time() - began, woken))

    async with patience() as found, trio.open_nursery() as nursery:
        began, woken, forgotten = trio.current_time(), Here(), Here()
        for seconds in (5.0, 2.0, 9.0):
            nursery.start_soon(wait, found, forgotten, seconds)
            nursery.start_soon(wait, found, woken, seconds)
        await trio.sleep(1)
        nursery.start_soon(wait, found, forgotten, 2.0)
        await trio.sleep(2.5)
        found.wake(woken)
    assert ended == [
        (pytest.approx(seconds), was_woken)
        for seconds, was_woken in [(2, False), (2, False), (3, False), (3.5, True), (3.5, True),
                                   (5, False), (9, False)]
    ]  # fmt: skip
    assert not woken and not forgotten


async def test_who_is_cancelled_waits_no_more(autojump_clock: MockClock) -> None:
    async with patience() as found:
        here = Here()
        with trio.move_on_after(1):
            await found.wait(here, 5)
        assert not here
        found.wake(here)
        assert not await found.wait(here, 5)
        assert trio.current_time() == pytest.approx(6, abs=0.1)


async def test_at_the_end_it_is_over_for_all(autojump_clock: MockClock) -> None:
    ended: list[bool] = []

    async def wait(found: Patience) -> None:
        ended.append(await found.wait({}, 1e6))

    with trio.fail_after(1e9):
        async with trio.open_nursery() as nursery, patience() as found:
            nursery.start_soon(wait, found)
            await wait_all_tasks_blocked()
    assert ended == [False]
