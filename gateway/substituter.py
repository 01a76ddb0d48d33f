"""What Nix asks, and what it gets: routes to answers. No framing, no sockets.

| asked                      | answer                                                             |
|----------------------------|--------------------------------------------------------------------|
| /nix-cache-info            | always                                                             |
| /<store hash>.narinfo      | the narinfo rebuilt from an Admitted record, else 404; also where  |
|                            | only peers have it and a part of its closure is nowhere            |
| /nar/<hash>-<narhash>.nar  | the NAR, whole or a range, else 404 before the first byte           |
| .ls, log/, realisations/   | see gateway.besides                                                |
| anything else              | 404                                                                |

Each with an ETag, and 304 for who names it (gateway.conditional).

Never 400, 429 or 5xx for these: Nix 2.8 and 2.26 then fail a build that another substituter could
serve. 404 for a path is said only when every source answered, or after 5 s (Nix remembers it for
an hour).
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from chunker.digest import NarHash
from chunker.record import PathRecord, store_hash
from chunker.store import BlockStore
from peer.swarm import Swarm

from .besides import Besides
from .closures import Closures
from .completeness import Answer, Held, Word
from .conditional import holds, nar_tag, not_modified, range_of, tagged, unless_held
from .delivery import Deliveries
from .errors import NotTrusted
from .lookup import admitted_by
from .lookups import Lookups
from .memory import Known
from .narinfo import parse_nar_url
from .policy import Policy
from .prefetch import Prefetch
from .requests import Request
from .responses import Response, Unsatisfiable, parse_range, prepared
from .shelf import Shelf
from .signing import KeyRing
from .trust import Admitted, admit
from .upstream import Upstream

log = logging.getLogger(__name__)

LOOKUP_SECONDS_MAX = 5.0
PEER_SECONDS_MAX = 3.0
ASKED_KEPT = 64
_NARINFO = re.compile(r"/([0-9abcdfghijklmnpqrsvwxyz]{32})\.narinfo")


@dataclass
class Served:
    narinfos: int = 0
    refused: int = 0
    missing: int = 0
    undecided: int = 0
    nars: int = 0
    nar_bytes: int = 0


class Substituter:
    def __init__(
        self,
        store: BlockStore,
        swarm: Swarm,
        upstreams: tuple[Upstream, ...],
        policy: Policy,
        publish_keys: KeyRing,
        priority: int,
        *,
        ranks: Mapping[str, int] | None = None,
        policies_of: Mapping[str, Policy] | None = None,
        saw: Callable[[PathRecord, tuple[str, ...]], None] = lambda record, signatures: None,
        hears_all: bool = False,
        shelf: Shelf | None = None,
    ) -> None:
        """`ranks` and `policies_of` by the URL of an upstream: who delivers first, and the policy
        with keys that count for what it says and nobody else. `saw` is told of every record and
        those of its signatures that count; `hears_all`: the first that is admitted does not end a
        look-up, for others may contradict. `shelf`: realisations and logs put here."""
        self.served = Served()
        self.asked: deque[str] = deque(maxlen=ASKED_KEPT)
        """The store hashes that Nix asked for last."""
        self._lookups = Lookups(
            upstreams,
            self._admits,
            ask_peers=self._ask_peers,
            has_peers=self._has_peers,
            holds=swarm.catalogue.holds,
            held=store.record,
            ranks=ranks,
            hears_all=hears_all,
        )
        self.deliveries = Deliveries(
            store, swarm, upstreams, publish_keys, self._lookups.order, policy.suffices
        )
        self._store = store
        self._swarm = swarm
        self._policy = policy
        self._policies_of = policies_of or {}
        self._saw = saw
        self._priority = priority
        self._refused_here = 0
        self.closures = Closures(self._find_part, self._has_upstream)
        self._prefetch = Prefetch()
        self._besides = Besides(
            store, upstreams, policy.keys, self.deliveries, self.look_up, shelf
        )  # fmt: skip

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Owns the questions to upstreams and the downloads from them, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._lookups.run)
            await nursery.start(self.deliveries.run)
            task_status.started()

    def answer_at_once(self, request: Request) -> Response | None:
        """The narinfo of a path that is known and needs no look at its closure."""
        if (match := _NARINFO.fullmatch(request.target)) is None:
            return None
        known = self._lookups.known(match[1])
        if known is None or not known.holders or not self._stands(known.admitted):
            return None
        self.asked.append(match[1])
        return unless_held(request, self._answer_with(known))

    async def answer(self, request: Request) -> Response:
        if request.target == "/nix-cache-info":
            text = f"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: {self._priority}\n"
            return unless_held(request, tagged(_text(200, text.encode(), "text/x-nix-cache-info")))
        if (match := _NARINFO.fullmatch(request.target)) is not None:
            return unless_held(request, await self._narinfo(match[1]))
        if (named := parse_nar_url(request.target.removeprefix("/"))) is not None:
            return await self._nar(request, *named)
        found = await self._besides.answer(request.target) or _not_found()
        return unless_held(request, tagged(found))

    async def _narinfo(self, store_hash: str) -> Response:
        self.asked.append(store_hash)
        known = await self.look_up(store_hash)
        if known is None or not await self._has_closure(known):
            self.served.missing += 1
            return _not_found()
        return self._answer_with(known)

    def _answer_with(self, known: Known) -> Response:
        self.served.narinfos += 1
        if known.holders:
            self._prefetch.asked(trio.current_time(), known.admitted.record)
        if known.answer is None:
            known.answer = prepared(tagged(_text(200, known.text, "text/x-nix-narinfo")))
        return known.answer

    async def _nar(self, request: Request, store_hash: str, nar_hash: NarHash) -> Response:
        known = await self.look_up(store_hash)
        if known is None or known.admitted.record.nar_hash != nar_hash:
            return _not_found()
        admitted = known.admitted
        size, tag = admitted.record.nar_size, nar_tag(nar_hash)
        if holds(request.headers, tag):
            return not_modified(tag)
        span = parse_range(range_of(request.headers, tag), size)
        if isinstance(span, Unsatisfiable):
            return Response(416, (("Content-Range", f"bytes */{size}"),), b"", 0)
        if span is not None and self.deliveries.is_wrong(admitted.record.nar_hash):
            return _not_found()
        headers = [("Content-Type", "application/x-nix-nar"), ("Accept-Ranges", "bytes")]
        headers.append(("ETag", tag))
        if request.method == "HEAD":
            return Response(200, tuple(headers), b"", size)
        self._begin_next(store_hash)
        body = await self.deliveries.open(admitted, ranged=span is not None)
        if body is None:
            self._lookups.forget(store_hash)
            return _not_found()
        start, end = span or (0, size)
        if span is not None:
            headers.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
        self.served.nars += 1
        self.served.nar_bytes += end - start
        status = 200 if span is None else 206
        return Response(status, tuple(headers), body(start, end), end - start)

    def _begin_next(self, store_hash: str) -> None:
        """What Nix asks for after this NAR, from upstreams; peers may have it nearer."""
        begun = self._prefetch.requested(trio.current_time(), store_hash)
        for record in () if self._has_peers() else begun:
            if self._store.record(record.store_hash) is None:
                self.deliveries.fill(record)

    def _has_peers(self) -> bool:
        return bool(self._swarm.sessions_open() or self._swarm.dialling.undecided)

    def forget(self, store_hash: str) -> None:
        """Its record is another than before."""
        self._lookups.forget(store_hash)

    async def look_up(self, store_hash: str) -> Known | None:
        """The record that the policy admits, from here, from peers or from an upstream."""
        known = self._lookups.known(store_hash)
        if known is not None and not self._stands(known.admitted):
            self._lookups.forget(store_hash)
            known = None
        if known is None:
            admitted = self._admit_held(store_hash)
            if admitted is None:
                return await self._find(store_hash)
            known = Known(admitted)
            self._lookups.learn(known)
        return known

    async def _find(self, store_hash: str) -> Known | None:
        try:
            known = await self._lookups.look_up(store_hash, LOOKUP_SECONDS_MAX)
        except trio.TooSlowError:
            self.served.undecided += 1
            return None
        finally:
            self.served.refused = self._lookups.refused + self._refused_here
        return known if known is not None and self._stands(known.admitted) else None

    def _admit_held(self, store_hash: str) -> Admitted | None:
        record = self._store.record(store_hash)
        if record is None:
            return None
        try:
            admitted = admit(record, self._policy)
        except NotTrusted as error:
            self._refused_here += 1
            log.warning("refused %s", error)
            return None
        self._saw(record, admitted.signatures)
        return admitted if self._stands(admitted) else None

    def _stands(self, admitted: Admitted) -> bool:
        """What was admitted may turn out to be disputed, or not to be that content."""
        if self._policy.forbids(admitted.record.store_path):
            return False
        return admitted.vouched or not self.deliveries.is_disproved(admitted.record)

    def _admits(self, record: PathRecord, sources: frozenset[str]) -> Admitted | None:
        """With the keys that count for everybody, then with those that count for who says so."""
        own = (self._policies_of[url] for url in sorted(sources) if url in self._policies_of)
        policies = (self._policy, *own)
        admitted = admitted_by(record, policies)
        if admitted is None:
            for policy in policies:
                self._saw(record, policy.judge(record).counting)
            return None
        self._saw(record, admitted.signatures)
        return admitted if self._stands(admitted) else None

    async def _ask_peers(self, store_hash: str, offer: Callable[[PathRecord], bool]) -> None:
        questions = self._swarm.questions
        offers = await questions.look_up(store_hash, PEER_SECONDS_MAX)
        if not any([offer(record) for _, record in offers]):
            for _, record in await questions.please(store_hash, PEER_SECONDS_MAX, []):
                offer(record)

    # -- whether the closure of what only peers have can be had ---------------------------------

    async def _has_closure(self, known: Known) -> bool:
        record = known.admitted.record
        if known.holders or self._store.record(record.store_hash) is not None:
            return True
        return await self.closures.may_serve(record)

    async def _find_part(self, store_path: str) -> Answer:
        if _is_in_nix_store(store_path):
            return Word.WHOLE
        wanted = store_hash(store_path)
        held = self._store.record(wanted)
        if held is not None:
            return Held(held.references)
        try:
            known = await self._lookups.look_up(wanted, LOOKUP_SECONDS_MAX)
        except trio.TooSlowError:
            return Word.UNDECIDED
        if known is not None:
            return Word.WHOLE if known.holders else Held(known.admitted.record.references)
        return Word.NOWHERE if self._lookups.is_absent(wanted) else Word.UNDECIDED

    async def _has_upstream(self, wanted: str) -> bool:
        return await self._lookups.has_upstream(wanted, LOOKUP_SECONDS_MAX)


def _is_in_nix_store(store_path: str) -> bool:
    """Then it is most likely valid, with its closure; that it is not is at least not known."""
    return os.path.lexists(store_path)


def _text(status: int, body: bytes, kind: str) -> Response:
    return Response(status, (("Content-Type", kind),), body, len(body))


def _not_found() -> Response:
    return _text(404, b"404\n", "text/plain")
