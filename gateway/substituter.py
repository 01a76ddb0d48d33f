"""What Nix asks, and what it gets: routes to answers. No framing, no sockets.

| asked                      | answer                                                             |
|----------------------------|--------------------------------------------------------------------|
| /nix-cache-info            | always                                                             |
| /<store hash>.narinfo      | the narinfo rebuilt from an Admitted record, else 404             |
| /nar/<hash>-<narhash>.nar  | the NAR, whole or a range, else 404 before the first byte           |
| anything else              | 404                                                                |

Never 400, 429 or 5xx for these: Nix 2.8 and 2.26 then fail a build that another substituter could
serve. 404 for a path is said only when every source answered, or after 5 s (Nix remembers it for
an hour).
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import trio

from chunker.record import PathRecord
from chunker.store import BlockStore
from peer.swarm import Swarm

from .candidates import Candidates
from .delivery import Deliveries
from .errors import NotTrusted, UpstreamError, UpstreamResting
from .narinfo import SIGNATURES_ONLY_URL, format, parse_nar_url
from .policy import Policy
from .seeding import record_of
from .server import Request, Response, Unsatisfiable, parse_range
from .signing import KeyRing
from .trust import Admitted, admit, why_not
from .upstream import Upstream

log = logging.getLogger(__name__)

LOOKUP_SECONDS_MAX = 5.0
PEER_SECONDS_MAX = 3.0
RECORDS_HELD_MAX = 100_000
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
        saw: Callable[[PathRecord, tuple[str, ...]], None] = lambda record, signatures: None,
        *,
        hears_all: bool = False,
    ) -> None:
        """`saw` is told of every record and those of its signatures that count; `hears_all`: the
        first that is admitted does not end a look-up, for others may contradict."""
        self.served = Served()
        self.asked: deque[str] = deque(maxlen=ASKED_KEPT)
        """The store hashes that Nix asked for last."""
        self.deliveries = Deliveries(store, swarm, upstreams, publish_keys, policy.suffices)
        self._store = store
        self._swarm = swarm
        self._upstreams = upstreams
        self._policy = policy
        self._priority = priority
        self._saw = saw
        self._hears_all = hears_all
        self._admitted: dict[str, Admitted] = {}

    async def answer(self, request: Request) -> Response:
        if request.target == "/nix-cache-info":
            text = f"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: {self._priority}\n"
            return _text(200, text.encode(), "text/x-nix-cache-info")
        if (match := _NARINFO.fullmatch(request.target)) is not None:
            return await self._narinfo(match[1])
        if (named := parse_nar_url(request.target.removeprefix("/"))) is not None:
            return await self._nar(request, *named)
        return _not_found()

    async def _narinfo(self, store_hash: str) -> Response:
        self.asked.append(store_hash)
        admitted = await self.look_up(store_hash)
        if admitted is None:
            self.served.missing += 1
            return _not_found()
        self.served.narinfos += 1
        body = format(admitted.record, admitted.signatures)
        return _text(200, body, "text/x-nix-narinfo")

    async def _nar(self, request: Request, store_hash: str, nar_hash: bytes) -> Response:
        admitted = await self.look_up(store_hash)
        if admitted is None or admitted.record.nar_hash != nar_hash:
            return _not_found()
        size = admitted.record.nar_size
        span = parse_range(request.headers.get("range"), size)
        if isinstance(span, Unsatisfiable):
            return Response(416, (("Content-Range", f"bytes */{size}"),), b"", 0)
        if span is not None and self.deliveries.is_wrong(admitted.record.nar_hash):
            return _not_found()
        headers = [("Content-Type", "application/x-nix-nar"), ("Accept-Ranges", "bytes")]
        if request.method == "HEAD":
            return Response(200, tuple(headers), b"", size)
        body = await self.deliveries.open(admitted, ranged=span is not None)
        if body is None:
            return _not_found()
        start, end = span or (0, size)
        if span is not None:
            headers.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
        self.served.nars += 1
        self.served.nar_bytes += end - start
        status = 200 if span is None else 206
        return Response(status, tuple(headers), body(start, end), end - start)

    async def look_up(self, store_hash: str) -> Admitted | None:
        """The record that the policy admits, from here, from peers or from an upstream."""
        known = self._admitted.get(store_hash)
        if known is not None and self._stands(known):
            return known
        found = Candidates(self._policy)
        here = self._store.record(store_hash)
        if here is not None and self._take(here, found):
            return found.admitted[0]
        with trio.CancelScope(deadline=trio.current_time() + LOOKUP_SECONDS_MAX) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_peers, store_hash, found, nursery.cancel_scope)
                for upstream in self._upstreams:
                    nursery.start_soon(
                        self._ask_upstream, upstream, store_hash, found, nursery.cancel_scope
                    )
        if scope.cancelled_caught:
            self.served.undecided += 1
        standing = [admitted for admitted in found.admitted if self._stands(admitted)]
        if not standing:
            self._say_refused(found)
            return None
        if len(self._admitted) >= RECORDS_HELD_MAX:
            self._admitted.clear()
        self._admitted[store_hash] = standing[0]
        return standing[0]

    async def _ask_peers(
        self, store_hash: str, found: Candidates, enough: trio.CancelScope
    ) -> None:
        offers = await self._swarm.questions.look_up(store_hash, PEER_SECONDS_MAX)
        if not any(self._take(record, found) for _, record in offers):
            offers = await self._swarm.questions.please(store_hash, PEER_SECONDS_MAX, [])
            if not any(self._take(record, found) for _, record in offers):
                return
        enough.cancel()

    async def _ask_upstream(
        self,
        upstream: Upstream,
        store_hash: str,
        found: Candidates,
        enough: trio.CancelScope,
    ) -> None:
        try:
            info = await upstream.narinfo(store_hash)
        except UpstreamResting as error:
            log.debug("%s", error)
            return
        except UpstreamError as error:
            log.warning("%s", error)
            return
        has_nar = info is not None and info.url != SIGNATURES_ONLY_URL
        if info is not None and self._take(record_of(info), found, has_nar=has_nar):
            enough.cancel()

    def _take(self, record: PathRecord, found: Candidates, *, has_nar: bool = True) -> bool:
        """Whether that is enough."""
        united = found.add(record, has_nar=has_nar)
        admitted = None if united is None else self._admit(united)
        if admitted is None:
            return False
        found.admitted.append(admitted)
        return not self._hears_all

    def _admit(self, record: PathRecord) -> Admitted | None:
        try:
            admitted = admit(record, self._policy)
        except NotTrusted as error:
            log.debug("not enough yet: %s", error)
            self._saw(record, self._policy.judge(record).counting)
            return None
        self._saw(record, admitted.signatures)
        return admitted if self._stands(admitted) else None

    def _stands(self, admitted: Admitted) -> bool:
        """What was admitted may turn out to be disputed, or not to be that content."""
        if self._policy.forbids(admitted.record.store_path):
            return False
        return admitted.vouched or not self.deliveries.is_disproved(admitted.record)

    def _say_refused(self, found: Candidates) -> None:
        for record in found.records.values():
            self.served.refused += 1
            log.warning("refused %s", why_not(record, self._policy.judge(record)))


def _text(status: int, body: bytes, kind: str) -> Response:
    return Response(status, (("Content-Type", kind),), body, len(body))


def _not_found() -> Response:
    return _text(404, b"404\n", "text/plain")
