"""Asks whether the closure of a path can be had, as `completeness` walks it.

Its parts are looked up as if Nix asked for them, which it does next, and what is found is
remembered for that. A path that an upstream has itself costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from chunker.record import PathRecord, store_hash

from .completeness import Answer, Memory, Verdict, Walk, Word

log = logging.getLogger(__name__)

WALK_SECONDS_MAX = 2.0
"""Nix waits for the narinfo meanwhile; what is not known by then is unknown."""


class Closures:
    """`find` says where a store path is; `has_upstream` whether an upstream has one, by its store
    hash."""

    def __init__(
        self,
        find: Callable[[str], Awaitable[Answer]],
        has_upstream: Callable[[str], Awaitable[bool]],
    ) -> None:
        self.walks = 0
        self.incomplete = 0
        """Answers that were 404 because of this."""
        self._find = find
        self._has_upstream = has_upstream
        self._memory = Memory()

    async def may_serve(self, record: PathRecord) -> bool:
        """Of a path that only the swarm is known to have: False where a part of its closure is
        known to be nowhere, and no upstream has the path itself."""
        known = self._memory.answer(trio.current_time(), record.store_path)
        if known in (Word.WHOLE, Word.UNDECIDED):
            return True
        if known is not Word.NOWHERE:
            self.walks += 1
            walk = Walk(record.store_path, record.references)
            with trio.move_on_after(WALK_SECONDS_MAX):
                await self._walk(walk)
            if walk.verdict is not Verdict.INCOMPLETE:
                self._learn(walk, record.store_path)
                return True
            if await self._has_upstream(store_hash(record.store_path)):
                self._memory.learn(trio.current_time(), record.store_path, Word.WHOLE)
                return True
            log.warning("%s is at peers, but not served: %s, which it needs, is nowhere",
                        record.store_path, walk.missing)  # fmt: skip
            self._memory.learn(trio.current_time(), record.store_path, Word.NOWHERE)
        self.incomplete += 1
        return False

    def _learn(self, walk: Walk, root: str) -> None:
        complete = walk.verdict is Verdict.COMPLETE
        paths = walk.paths() if complete else {root, *walk.unanswered()}
        for store_path in paths:
            word = Word.WHOLE if complete else Word.UNDECIDED
            self._memory.learn(trio.current_time(), store_path, word)

    async def _walk(self, walk: Walk) -> None:
        while walk.verdict is None:
            async with trio.open_nursery() as nursery:
                for store_path in walk.wants():
                    nursery.start_soon(self._ask, walk, store_path, nursery.cancel_scope)

    async def _ask(self, walk: Walk, store_path: str, enough: trio.CancelScope) -> None:
        answer = self._memory.answer(trio.current_time(), store_path)
        if answer is None:
            answer = await self._find(store_path)
            self._memory.learn(trio.current_time(), store_path, answer)
        walk.said(store_path, answer)
        if walk.verdict is Verdict.INCOMPLETE:
            enough.cancel()
