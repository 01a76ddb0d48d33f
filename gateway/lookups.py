"""Which source has a path: all upstreams, and peers, asked at once; what was found is remembered.

    look_up -> remembered, or a Search that all who ask for the path share
            -> each source in a task of its own; the first admitted answer is served at once
            -> what still comes is united with it for the next time, and counts for its breaker

An upstream that is slow costs whoever needs it to be sure that a path is nowhere, and only until
its breaker knows; one that comes out of a rest is asked, and not waited for before it answered.

Nix walks a closure level by level. When an upstream had a path, its references are looked up before
Nix asks for them, some levels deep, in the room that Nix's own questions leave.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import trio

from chunker.record import PathRecord, store_hash

from .breaker import Guarded
from .errors import UpstreamError, UpstreamResting
from .lookup import Admits, Search
from .memory import Known, Memory
from .narinfo import Narinfo
from .seeding import record_of
from .upstream import Upstream

log = logging.getLogger(__name__)

MEMBER_SECONDS_MAX = 2.5
"""Less than a member waits for the answer."""
TRIAL_SECONDS_MAX = 1.0
"""How long an upstream that failed last time is waited for when all others said no."""
AHEAD_LEVELS = 4
AHEAD_AT_ONCE_MAX = 64
AHEAD_WAITING_MAX = 4096
PEERS = "peers"
HERE = "here"

AskPeers = Callable[[str, Callable[[PathRecord], bool]], Awaitable[None]]
"""Ask peers for a path; the second takes what they offer and says whether that was enough."""


class _Running:
    def __init__(self, search: Search, levels: int) -> None:
        self.search = search
        self.settled, self.over, self.ended = trio.Event(), trio.Event(), trio.Event()
        """Something is found or will not be; nothing more is awaited; all have said something."""
        self.levels = levels
        """How many levels of references to look up once it is found."""
        self.asks_upstreams = self.asks_peers = False


class Lookups:
    def __init__(
        self,
        upstreams: Sequence[Upstream],
        admits: Admits,
        *,
        ask_peers: AskPeers | None = None,
        has_peers: Callable[[], bool] = lambda: True,
        holds: Callable[[str], bool] = lambda store_hash: False,
        held: Callable[[str], PathRecord | None] = lambda store_hash: None,
        ranks: Mapping[str, int] | None = None,
        hears_all: bool = False,
    ) -> None:
        """`has_peers`: whether there is anybody to ask. `holds`: whether a path is here and need
        not be looked up ahead; `held`: its record, whose signatures may be too few by themselves.
        `ranks`: of upstreams by URL, 0 where none is given; NARs are had
        from the lowest that has them."""
        self.refused = 0
        self._upstreams = {upstream.url: upstream for upstream in upstreams}
        self._admits = admits
        self._peers = ask_peers
        self._has_peers = has_peers
        self._holds = holds
        self._held = held
        self._hears_all = hears_all
        self._ranks = ranks or {}
        self._memory = Memory()
        self._searches: dict[str, _Running] = {}
        self._ahead: deque[tuple[str, int]] = deque()
        self._ahead_running = 0
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Owns the questions, which go on when nobody waits for them; until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def known(self, store_hash: str) -> Known | None:
        """What is remembered. Nix asked for it, so its references are looked up ahead."""
        known = self._memory.known(store_hash)
        if known is not None and known.holders and known.levels_ahead < AHEAD_LEVELS:
            self._look_ahead(known, AHEAD_LEVELS)
        return known

    def learn(self, known: Known) -> None:
        """It was found without a question."""
        self._memory.learn(known)

    def forget(self, store_hash: str) -> None:
        """Nobody could deliver it: the next question goes to all again."""
        self._memory.forget(store_hash)
        self._searches.pop(store_hash, None)

    async def look_up(self, store_hash: str, seconds: float) -> Known | None:
        """Raises trio.TooSlowError while a source that is waited for has said nothing."""
        known = self.known(store_hash)
        if known is not None:
            return known
        running = self._searches.get(store_hash) or self._begin(store_hash, 0)
        running.levels = AHEAD_LEVELS
        self._begin_peers(running)
        if not running.settled.is_set():
            with trio.CancelScope(deadline=trio.current_time() + seconds) as scope:
                await running.settled.wait()
            if scope.cancelled_caught:
                raise trio.TooSlowError
        if not running.over.is_set():
            with trio.move_on_after(TRIAL_SECONDS_MAX):
                await running.over.wait()
        return self._memory.known(store_hash)

    def is_absent(self, store_hash: str) -> bool:
        """Every source said no, lately."""
        return self._memory.is_absent(trio.current_time(), store_hash)

    async def has_upstream(self, store_hash: str, seconds: float) -> bool:
        """Whether an upstream said that it has what was looked up; one that is asked is waited
        for."""
        running = self._searches.get(store_hash)
        if running is not None:
            with trio.move_on_after(seconds):
                await running.ended.wait()
        known = self._memory.known(store_hash)
        return known is not None and bool(known.holders)

    async def record(self, store_hash: str) -> PathRecord | None:
        """For `Office.look_up`. None where no upstream has it, or none says so in time."""
        try:
            known = await self.look_up(store_hash, MEMBER_SECONDS_MAX)
        except trio.TooSlowError:
            return None
        return None if known is None else known.admitted.record

    def order(self, record: PathRecord) -> list[Upstream]:
        """Whom to ask for a NAR: first those that said they have it, by rank and then who said so
        first; then the others by rank."""
        known = self._memory.known(record.store_hash)
        holders = () if known is None or known.admitted.record.nar_hash != record.nar_hash else (
            known.holders
        )  # fmt: skip
        having: list[Upstream] = [
            _Having(self._upstreams[url], info) for url, info in holders if url in self._upstreams
        ]
        having.sort(key=self._rank)
        urls = {upstream.url for upstream in having}
        others = [upstream for url, upstream in self._upstreams.items() if url not in urls]
        return having + sorted(others, key=self._rank)

    def _rank(self, upstream: Upstream) -> int:
        return self._ranks.get(upstream.url, 0)

    # -- asking ---------------------------------------------------------------------------------

    def _begin(self, store_hash: str, levels: int) -> _Running:
        assert self._nursery is not None, "Lookups.run is not running"
        search = Search(store_hash, self._admits, hears_all=self._hears_all)
        running = self._searches[store_hash] = _Running(search, levels)
        held = self._held(store_hash)
        if held is not None and search.said(HERE, held):
            self._found(running)
        if not self._memory.is_absent(trio.current_time(), store_hash):
            running.asks_upstreams = True
            for url, upstream in self._upstreams.items():
                trial = isinstance(upstream, Guarded) and upstream.is_on_trial
                search.ask(url, awaited=not trial)
                self._nursery.start_soon(self._ask, running, upstream)
        return running

    def _begin_peers(self, running: _Running) -> None:
        """Or find that there is nobody to ask."""
        known = running.asks_peers or running.search.found is not None
        if self._peers is None or known or not self._has_peers():
            self._heed(running)
        else:
            assert self._nursery is not None
            running.asks_peers = True
            running.settled, running.over = trio.Event(), trio.Event()
            running.search.ask(PEERS)
            self._nursery.start_soon(self._ask_peers, running, self._peers)

    async def _ask(self, running: _Running, upstream: Upstream) -> None:
        search, failed = running.search, True
        try:
            info = await upstream.narinfo(search.store_hash)
            if info is not None and search.said(upstream.url, record_of(info), info):
                self._found(running)
            failed = False
        except UpstreamResting as error:
            log.debug("%s", error)
        except UpstreamError as error:
            log.warning("%s", error)
        except Exception:  # ours; it must not end what everybody else asks
            log.exception("asking %s failed", upstream.url)
        search.done(upstream.url, failed=failed)
        self._heed(running)

    async def _ask_peers(self, running: _Running, ask: AskPeers) -> None:
        search, failed = running.search, True

        def offer(record: PathRecord) -> bool:
            if search.said(PEERS, record):
                self._found(running)
            return search.found is not None

        try:
            await ask(search.store_hash, offer)
            failed = False
        except Exception:
            log.exception("asking peers failed")
        search.done(PEERS, failed=failed)
        self._heed(running)

    def _found(self, running: _Running) -> None:
        search = running.search
        assert search.found is not None
        before = self._memory.known(search.store_hash)
        levels = 0 if before is None else before.levels_ahead
        known = Known(search.found, search.holders, levels)
        self._memory.learn(known)
        if not self._hears_all:
            running.settled.set()
            running.over.set()
        if known.holders and running.levels > known.levels_ahead:
            self._look_ahead(known, running.levels)

    def _heed(self, running: _Running) -> None:
        """Something was said: perhaps that is enough."""
        search = running.search
        if search.is_settled:
            running.settled.set()
        if search.is_over:
            running.ended.set()
        if not search.is_over or (running.over.is_set() and search.found is None):
            return
        running.over.set()
        if self._searches.get(search.store_hash) is running:
            del self._searches[search.store_hash]
        if search.is_absent and running.asks_upstreams:
            self._memory.learn_absent(trio.current_time(), search.store_hash)
        if search.found is None:
            for record in search.refused():
                self.refused += 1
                names = sorted({s.partition(":")[0] for s in record.signatures})
                log.warning("refused %s: no trusted key signed it (signed by: %s)",
                            record.store_path, ", ".join(names) or "nobody")  # fmt: skip
        for rival in search.rivals():
            log.warning("%s: trusted keys signed two different contents", rival.record.store_path)

    # -- ahead of Nix ---------------------------------------------------------------------------

    def _look_ahead(self, known: Known, levels: int) -> None:
        known.levels_ahead = levels
        for reference in known.admitted.record.references:
            name = store_hash(reference)
            running, held = self._searches.get(name), self._memory.known(name)
            if held is not None:
                if held.holders and held.levels_ahead < levels - 1:
                    self._look_ahead(held, levels - 1)
            elif running is not None:
                running.levels = max(running.levels, levels - 1)
            elif len(self._ahead) < AHEAD_WAITING_MAX and not self._holds(name):
                self._ahead.append((name, levels - 1))
        self._go_ahead()

    def _go_ahead(self) -> None:
        assert self._nursery is not None
        while self._ahead and self._ahead_running < AHEAD_AT_ONCE_MAX:
            name, levels = self._ahead.popleft()
            unknown = name not in self._searches and self._memory.known(name) is None
            if unknown and not self._memory.is_absent(trio.current_time(), name):
                self._ahead_running += 1
                running = self._begin(name, levels)
                self._heed(running)
                self._nursery.start_soon(self._await_ahead, running)

    async def _await_ahead(self, running: _Running) -> None:
        await running.settled.wait()
        self._ahead_running -= 1
        self._go_ahead()


class _Having:
    """An upstream that said it has a NAR: it is not asked for the narinfo again."""

    def __init__(self, upstream: Upstream, info: Narinfo) -> None:
        self.url = upstream.url
        self._upstream = upstream
        self._info = info

    async def narinfo(self, store_hash: str) -> Narinfo | None:
        assert self._info.store_path[11:43] == store_hash
        return self._info

    async def file(self, path: str, bytes_max: int) -> bytes | None:
        return await self._upstream.file(path, bytes_max)

    def nar(self, info: Narinfo) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._upstream.nar(info)
