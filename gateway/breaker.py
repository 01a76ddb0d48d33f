"""An upstream that fails is left alone for a while, so that it costs no more than its failures.

    asked --3 failures in a row, or one NAR that cannot be what was signed--> resting, 30 s
    resting --its time is up--> asked; the next failure in a row rests twice as long, to 10 minutes
    asked --an answer--> asked, and its past is forgotten

What an upstream says about a path (here, not here) is an answer; what it cannot say is a failure.
Narinfos and NARs are counted apart, for an upstream that answers the one may break at the other;
while either rests, neither is asked.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from chunker.errors import ChunkerError, StoreError

from .asking import Answered, Stop
from .errors import Stopping, Unproven, UpstreamError, UpstreamLied, UpstreamResting
from .narinfo import Narinfo
from .upstream import Ask, HttpCache, Upstream

log = logging.getLogger(__name__)

FAILURES_MAX = 3
REST_SECONDS_MIN = 30.0
REST_SECONDS_MAX = 600.0
NEVER = float("-inf")


class Breaker:
    """Decides; `now` in seconds of any clock that does not go back."""

    def __init__(self) -> None:
        self._failures = 0
        self._rests = 0
        self.until = NEVER
        """When its rest ends."""

    def rests(self, now: float) -> bool:
        return now < self.until

    @property
    def is_on_trial(self) -> bool:
        """It failed when it was asked last."""
        return self._failures > 0

    def succeeded(self) -> None:
        self._failures = self._rests = 0

    def failed(self, now: float, *, lied: bool = False) -> float:
        """The seconds of rest that begin now; 0 for none."""
        self._failures += 1
        if self.rests(now) or not (lied or self._rests or self._failures >= FAILURES_MAX):
            return 0.0
        rest = min(REST_SECONDS_MAX, REST_SECONDS_MIN * 2.0**self._rests)
        self._rests, self.until = self._rests + 1, now + rest
        return rest


class Guarded:
    """An Upstream behind a breaker."""

    def __init__(self, upstream: Upstream) -> None:
        self.url = upstream.url
        self._upstream = upstream
        self._narinfos, self._nars = Breaker(), Breaker()

    @property
    def is_on_trial(self) -> bool:
        """Its last narinfo could not be had: it is asked, but not relied on."""
        return self._narinfos.is_on_trial

    async def narinfo(self, store_hash: str) -> Narinfo | None:
        self._check()
        try:
            info = await self._upstream.narinfo(store_hash)
        except UpstreamError as error:
            self._heed(error)
            raise
        self._narinfos.succeeded()
        return info

    @property
    def by_call(self) -> Ask | None:
        ask = by_call(self._upstream)
        return None if ask is None else partial(self._ask, ask)

    def _ask(self, ask: Ask, store_hash: str, answered: Answered[Narinfo | None]) -> Stop:
        def heard(answer: Narinfo | Exception | None) -> None:
            if not isinstance(answer, Exception):
                self._narinfos.succeeded()
            elif isinstance(answer, UpstreamError):
                self._heed(answer)
            answered(answer)

        self._check()
        try:
            return ask(store_hash, heard)
        except UpstreamError as error:
            self._heed(error)
            raise

    async def file(self, path: str, bytes_max: int) -> bytes | None:
        """What fails here does not count: not every cache has logs or realisations."""
        self._check()
        return await self._upstream.file(path, bytes_max)

    @asynccontextmanager
    async def nar(self, info: Narinfo) -> AsyncIterator[AsyncIterator[bytes]]:
        """What the reader of the pieces finds wrong with them counts against the upstream."""
        self._check()
        try:
            async with self._upstream.nar(info) as pieces:
                yield pieces
        except (StoreError, Unproven):
            raise  # our disk, not its bytes; or nothing to hold against it
        except (UpstreamError, ChunkerError) as error:
            self._failed(self._nars, lied=isinstance(error, ChunkerError | UpstreamLied))
            raise
        self._nars.succeeded()

    def _check(self) -> None:
        until = max(self._narinfos.until, self._nars.until)
        if until != NEVER and trio.current_time() < until:
            raise UpstreamResting(f"{self.url} failed lately and is left alone for a while")

    def _heed(self, error: UpstreamError) -> None:
        """A narinfo could not be had."""
        if not isinstance(error, Stopping):
            self._failed(self._narinfos, lied=False)

    def _failed(self, breaker: Breaker, *, lied: bool) -> None:
        rest = breaker.failed(trio.current_time(), lied=lied)
        if rest:
            log.warning("%s is not asked for %d s", self.url, rest)


def by_call(upstream: Upstream) -> Ask | None:
    """How to ask it without a task that waits; None where only a task can."""
    return upstream.by_call if isinstance(upstream, Guarded | HttpCache) else None
