"""Which source has a path: all upstreams, and peers, asked at once; what was found is remembered.

    look_up -> remembered, or a Search that all who ask for the path share
            -> each source says something, in any order; the first admitted answer is served at once
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
from .errors import Stopping, UpstreamError, UpstreamResting
from .lookup import Admits, Search
from .memory import Known, Memory
from .narinfo import Narinfo
from .patience import Here, Patience
from .questions import Questions
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
    """A search that is not over, and who waits for it."""

    __slots__ = ("_change", "asks_peers", "asks_upstreams", "is_ahead", "is_ended", "is_over",
                 "is_settled", "levels", "search", "waiting")  # fmt: skip

    def __init__(self, search: Search, levels: int, *, is_ahead: bool) -> None:
        self.search = search
        self.levels = levels
        """How many levels of references to look up once it is found."""
        self.is_ahead = is_ahead
        """It takes room of those that nobody asked for yet."""
        self.is_settled = self.is_over = self.is_ended = False
        """Something is found or will not be; nothing more is awaited; all have said something."""
        self.asks_upstreams = self.asks_peers = False
        self.waiting: Here = {}
        """Who waits until it is settled."""
        self._change: trio.Event | None = None

    async def change(self) -> None:
        """Until it is over or ended and was not."""
        if self._change is None:
            self._change = trio.Event()
        await self._change.wait()

    def changed(self) -> None:
        if self._change is not None:
            self._change.set()
            self._change = None


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
        self._questions: Questions[_Running] = Questions(upstreams, self._hear)
        self._admits = admits
        self._peers = ask_peers
        self._has_peers = has_peers
        self._holds = holds
        self._held = held
        self._hears_all = hears_all
        self._ranks = ranks or {}
        self._memory = Memory()
        self._patience = Patience()
        self._searches: dict[str, _Running] = {}
        self._ahead: deque[tuple[str, int]] = deque()
        self._ahead_running = 0
        self._goes_ahead = False
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Owns the questions, which go on when nobody waits for them; until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._questions.begin(self._nursery)
                task_status.started()
                await self._patience.run()
        finally:
            self._questions.end()
            self._nursery = None

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
        running = self._searches.get(store_hash)
        if running is not None:
            running.levels = AHEAD_LEVELS
            self._begin_peers(running)
        else:
            running = self._begin(store_hash, AHEAD_LEVELS)
            self._begin_peers(running)
            self._ask_upstreams(running)
        if not running.is_settled and not await self._patience.wait(running.waiting, seconds):
            raise trio.TooSlowError
        if not running.is_over:
            with trio.move_on_after(TRIAL_SECONDS_MAX):
                while not running.is_over:
                    await running.change()
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
                while not running.is_ended:
                    await running.change()
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

    def _begin(self, store_hash: str, levels: int, *, is_ahead: bool = False) -> _Running:
        assert self._nursery is not None, "Lookups.run is not running"
        search = Search(store_hash, self._admits, hears_all=self._hears_all)
        running = self._searches[store_hash] = _Running(search, levels, is_ahead=is_ahead)
        held = self._held(store_hash)
        if held is not None and search.said(HERE, held):
            self._found(running)
        if not self._memory.is_absent(trio.current_time(), store_hash):
            running.asks_upstreams = True
            for url, upstream in self._upstreams.items():
                trial = isinstance(upstream, Guarded) and upstream.is_on_trial
                search.ask(url, awaited=not trial)
        return running

    def _ask_upstreams(self, running: _Running) -> None:
        if running.asks_upstreams:
            self._questions.ask(running, running.search.store_hash)

    def _begin_peers(self, running: _Running) -> None:
        """Or find that there is nobody to ask."""
        known = running.asks_peers or running.search.found is not None
        if self._peers is None or known or not self._has_peers():
            self._heed(running)
        else:
            assert self._nursery is not None
            running.asks_peers = True
            running.is_settled = running.is_over = False
            running.search.ask(PEERS)
            self._nursery.start_soon(self._ask_peers, running, self._peers)

    def _hear(self, running: _Running, url: str, answer: Narinfo | Exception | None) -> None:
        search = running.search
        failed = isinstance(answer, Exception)
        if isinstance(answer, Exception):
            _report(url, answer)
        elif answer is not None:
            try:
                if search.said(url, record_of(answer), answer):
                    self._found(running)
            except Exception as error:  # ours; it must not end what everybody else asks
                failed = True
                _report(url, error)
        search.done(url, failed=failed)
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
            running.is_over = True
            running.changed()
            self._settle(running)
        if known.holders and running.levels > known.levels_ahead:
            self._look_ahead(known, running.levels)

    def _settle(self, running: _Running) -> None:
        running.is_settled = True
        self._patience.wake(running.waiting)
        if running.is_ahead:
            running.is_ahead = False
            self._ahead_running -= 1
            self._go_ahead()

    def _heed(self, running: _Running) -> None:
        """Something was said: perhaps that is enough."""
        search = running.search
        is_over = search.is_over
        if not running.is_settled and (is_over or search.is_settled):
            self._settle(running)
        if not is_over:
            return
        running.is_ended = True
        running.changed()
        if running.is_over and search.found is None:
            return
        running.is_over = True
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
        known_of = self._memory.known
        for reference in known.admitted.record.references:
            name = store_hash(reference)
            held = known_of(name)
            if held is not None:
                if held.levels_ahead < levels - 1 and held.holders:
                    self._look_ahead(held, levels - 1)
            elif (running := self._searches.get(name)) is not None:
                running.levels = max(running.levels, levels - 1)
            elif len(self._ahead) < AHEAD_WAITING_MAX and not self._holds(name):
                self._ahead.append((name, levels - 1))
        if self._ahead:
            self._go_ahead()

    def _go_ahead(self) -> None:
        if self._goes_ahead:
            return  # what is begun below may be over at once
        self._goes_ahead = True
        try:
            while self._ahead and self._ahead_running < AHEAD_AT_ONCE_MAX:
                self._look_up_ahead(*self._ahead.popleft())
        finally:
            self._goes_ahead = False

    def _look_up_ahead(self, store_hash: str, levels: int) -> None:
        unknown = store_hash not in self._searches and self._memory.known(store_hash) is None
        if unknown and not self._memory.is_absent(trio.current_time(), store_hash):
            self._ahead_running += 1
            running = self._begin(store_hash, levels, is_ahead=True)
            self._ask_upstreams(running)
            self._heed(running)


def _report(url: str, error: Exception) -> None:
    if isinstance(error, UpstreamResting | Stopping):
        log.debug("%s", error)
    elif isinstance(error, UpstreamError):
        log.warning("%s", error)
    else:  # ours
        log.error("asking %s failed", url, exc_info=error)


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
