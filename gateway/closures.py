"""Asks whether the closure of a path can be had, as `completeness` walks it.

    the machine's Nix store -> this store and peers -> every upstream -> LAN caches' upstreams
      (no question asked)      (Finds, gathered)       (only for what no peer has)

A closure that a neighbour has whole costs the Finds that Nix's own questions would have cost, and
their answers are kept for them; a path that an upstream has itself costs nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from chunker.record import PathRecord, store_hash

from .completeness import Answer, Held, Memory, Verdict, Walk, Word
from .errors import UpstreamError
from .narinfo import Narinfo
from .seeding import record_of

log = logging.getLogger(__name__)

WALK_SECONDS_MAX = 2.0
"""Nix waits for the narinfo meanwhile; what is not known by then is unknown."""


class Asked(Protocol):
    """As much of an upstream as is asked here."""

    async def narinfo(self, store_hash: str) -> Narinfo | None: ...


class Closures:
    """`find` says where one path is; `has_upstream` whether an upstream has it, None for who
    knows."""

    def __init__(
        self,
        find: Callable[[str], Awaitable[Answer]],
        has_upstream: Callable[[str], Awaitable[bool | None]],
    ) -> None:
        self.incomplete = 0
        """Paths that were not served because of this."""
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


class Places:
    """Where paths are: what `Closures` asks."""

    def __init__(
        self,
        held: Callable[[str], PathRecord | None],
        offered: Callable[[str], Awaitable[PathRecord | None]],
        pleased: Callable[[str], Awaitable[PathRecord | None]],
        upstreams: Sequence[Asked],
        admits: Callable[[PathRecord], bool],
        is_here: Callable[[str], bool] = os.path.lexists,
    ) -> None:
        """By store hash, and only what a trusted key signed: what is `held` here, what peers
        `offered`, and what a LAN cache that was asked (Please) has from its upstreams. `is_here`:
        in this machine's Nix store."""
        self._held = held
        self._offered = offered
        self._pleased = pleased
        self._upstreams = upstreams
        self._admits = admits
        self._is_here = is_here

    async def find(self, store_path: str) -> Answer:
        # There, it is most likely valid with its closure; that it is not is at least not known.
        if self._is_here(store_path):
            return Word.WHOLE
        wanted = store_hash(store_path)
        record = self._held(wanted) or await self._offered(wanted)
        if record is not None:
            return Held(record.references)
        has = await self.has_upstream(wanted)
        if has is False:
            has = await self._pleased(wanted) is not None
        return Word.UNDECIDED if has is None else Word.WHOLE if has else Word.NOWHERE

    async def has_upstream(self, wanted: str) -> bool | None:
        """None: nobody says that it has it, and not everybody that it has not."""
        said: list[bool | None] = [False]

        async def ask(upstream: Asked, enough: trio.CancelScope) -> None:
            try:
                info = await upstream.narinfo(wanted)
            except UpstreamError as error:
                log.debug("%s", error)
                said.append(None)
                return
            if info is not None and self._admits(record_of(info)):
                said.append(True)
                enough.cancel()

        async with trio.open_nursery() as nursery:
            for upstream in self._upstreams:
                nursery.start_soon(ask, upstream, nursery.cancel_scope)
        if True in said:
            return True
        return None if None in said else False
