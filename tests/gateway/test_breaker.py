"""An upstream that fails costs its failures and one line; then it rests, and comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from chunker.errors import NarMismatch, StoreFull
from gateway.breaker import FAILURES_MAX, REST_SECONDS_MAX, REST_SECONDS_MIN, Breaker, Guarded
from gateway.errors import UpstreamError, UpstreamResting
from gateway.narinfo import Narinfo
from tests.gateway.test_upstream import HASH, INFO


class Flaky:
    """Fails while `broken`; counts what it was asked."""

    url = "https://cache.example"

    def __init__(self) -> None:
        self.broken = True
        self.asked = 0

    async def narinfo(self, store_hash: str) -> Narinfo | None:
        self.asked += 1
        if self.broken:
            raise UpstreamError("broken")
        return INFO

    @asynccontextmanager
    async def nar(self, info: Narinfo) -> AsyncIterator[AsyncIterator[bytes]]:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"piece"
            if self.broken:
                raise UpstreamError("broken")

        yield pieces()


def test_rests_grow_and_end() -> None:
    breaker = Breaker()
    assert [breaker.failed(0.0) for _ in range(FAILURES_MAX)] == [0.0, 0.0, REST_SECONDS_MIN]
    assert breaker.rests(REST_SECONDS_MIN - 1) and not breaker.rests(REST_SECONDS_MIN)
    assert breaker.failed(10.0) == 0.0  # one that was under way
    now, rests = REST_SECONDS_MIN, []
    for _ in range(7):
        rests.append(breaker.failed(now))
        now += rests[-1]
    assert rests == [60.0, 120.0, 240.0, 480.0, *[REST_SECONDS_MAX] * 3]
    breaker.succeeded()
    assert not breaker.rests(now) and breaker.failed(now) == 0.0


def test_an_answer_between_failures_forgives_them() -> None:
    breaker = Breaker()
    for _ in range(10 * FAILURES_MAX):
        assert breaker.failed(0.0) == 0.0
        breaker.succeeded()


def test_one_lie_is_enough() -> None:
    assert Breaker().failed(0.0, lied=True) == REST_SECONDS_MIN


async def test_a_broken_upstream_is_not_asked_again_and_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    flaky = Flaky()
    guarded = Guarded(flaky)
    for number in range(20):
        with pytest.raises(UpstreamError) as caught:
            await guarded.narinfo(HASH)
        assert isinstance(caught.value, UpstreamResting) is (number >= FAILURES_MAX)
    assert flaky.asked == FAILURES_MAX
    assert [record.getMessage() for record in caplog.records] == [
        "https://cache.example is not asked for 30 s"
    ]
    flaky.broken = False
    await trio.sleep(REST_SECONDS_MIN)
    assert await guarded.narinfo(HASH) == INFO


async def test_narinfos_do_not_forgive_broken_nars() -> None:
    flaky = Flaky()
    guarded = Guarded(flaky)
    for _ in range(FAILURES_MAX):
        flaky.broken = False
        await guarded.narinfo(HASH)
        flaky.broken = True
        with pytest.raises(UpstreamError, match="broken"):
            async with guarded.nar(INFO) as pieces:
                async for _ in pieces:
                    pass
    with pytest.raises(UpstreamResting):
        await guarded.narinfo(HASH)


@pytest.mark.parametrize(
    ("error", "rests"),
    [(NarMismatch("another hash"), True), (StoreFull("no room"), False), (KeyError(), False)],
)
async def test_what_the_reader_finds_wrong_counts(error: Exception, rests: bool) -> None:
    """Wrong bytes are the upstream's fault at once; a full disk is not."""
    flaky = Flaky()
    guarded = Guarded(flaky)
    with pytest.raises(type(error)):
        async with guarded.nar(INFO) as pieces:
            async for _ in pieces:
                raise error
    flaky.broken = False
    if rests:
        with pytest.raises(UpstreamResting):
            await guarded.narinfo(HASH)
    else:
        assert await guarded.narinfo(HASH) == INFO
