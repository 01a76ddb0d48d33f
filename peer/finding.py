"""Questions to one peer about paths, gathered: many lookups at once become few Finds.

A question asked while none is under way leaves in the same turn of the loop, with all others of
that turn; while one is under way, more are gathered for 2 ms, or until 256 wait. Whoever asks what
waits or is under way already shares the answer.

`Gathering` decides, `Finding` carries out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from chunker.record import PathRecord

from .errors import PeerError, SessionClosed
from .messages import FIND_HASHES_MAX

GATHER_SECONDS = 0.002
QUESTIONS_MAX = 16_384
"""Waiting and under way, of one peer."""

Ask = Callable[[Sequence[str]], Awaitable[dict[str, PathRecord]]]


class Gathering:
    """Which store hashes go into the next Find, and when. Pure."""

    def __init__(self) -> None:
        self._waiting: dict[str, None] = {}
        self._since = 0.0
        self._under_way = 0

    def ask(self, now: float, store_hash: str) -> None:
        if not self._waiting:
            self._since = now
        self._waiting[store_hash] = None

    @property
    def wake_at(self) -> float:
        """When `next` has something."""
        if not self._waiting:
            return float("inf")
        if not self._under_way or len(self._waiting) >= FIND_HASHES_MAX:
            return self._since
        return self._since + GATHER_SECONDS

    def next(self, now: float) -> tuple[str, ...]:
        """The store hashes of a Find that is to leave now; `answered` must follow."""
        if now < self.wake_at:
            return ()
        batch = tuple(self._waiting)[:FIND_HASHES_MAX]
        for store_hash in batch:
            del self._waiting[store_hash]
        self._since = now
        self._under_way += 1
        return batch

    def answered(self) -> None:
        self._under_way -= 1


class _Answer:
    def __init__(self) -> None:
        self.come = trio.Event()
        self.record: PathRecord | None = None
        self.error: PeerError | None = None


class Finding:
    """`ask` sends one Find and waits for its answer; it raises PeerError."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._gathering = Gathering()
        self._answers: dict[str, _Answer] = {}
        self._asked = trio.Event()
        self._over = False

    async def find(self, store_hashes: Sequence[str]) -> dict[str, PathRecord]:
        """Raises what `ask` raises, and SessionClosed once `run` has ended."""
        if self._over or len(self._answers) + len(store_hashes) > QUESTIONS_MAX:
            raise SessionClosed("no more questions are taken")
        now = trio.current_time()
        answers = {}
        for store_hash in store_hashes:
            if store_hash not in self._answers:
                self._answers[store_hash] = _Answer()
                self._gathering.ask(now, store_hash)
            answers[store_hash] = self._answers[store_hash]
        self._asked.set()
        found = {}
        for store_hash, answer in answers.items():
            await answer.come.wait()
            if answer.error is not None:
                raise answer.error
            if answer.record is not None:
                found[store_hash] = answer.record
        return found

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    with trio.CancelScope(deadline=self._gathering.wake_at):
                        await self._asked.wait()
                    self._asked = trio.Event()
                    await trio.lowlevel.checkpoint()  # for the other questions of this turn
                    while batch := self._gathering.next(trio.current_time()):
                        nursery.start_soon(self._one, batch)
        finally:
            self._over = True
            self._settle(tuple(self._answers), {}, SessionClosed("the session is over"))

    async def _one(self, batch: Sequence[str]) -> None:
        found: dict[str, PathRecord] = {}
        error: PeerError | None = None
        try:
            found = await self._ask(batch)
        except PeerError as raised:
            error = raised
        self._gathering.answered()
        self._asked.set()
        self._settle(batch, found, error)

    def _settle(
        self, batch: Sequence[str], found: dict[str, PathRecord], error: PeerError | None
    ) -> None:
        for store_hash in batch:
            answer = self._answers.pop(store_hash)
            answer.record, answer.error = found.get(store_hash), error
            answer.come.set()
