"""What Nix asks, and what it gets: routes to answers. No framing, no sockets.

| asked                      | answer                                                             |
|----------------------------|--------------------------------------------------------------------|
| /nix-cache-info            | always                                                             |
| /<store hash>.narinfo      | the narinfo rebuilt from an Admitted record, else 404; also where  |
|                            | only peers have it and a part of its closure is nowhere            |
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
from dataclasses import dataclass

import trio

from chunker.record import PathRecord
from chunker.store import BlockStore
from peer.swarm import Swarm

from .closures import Closures, Places
from .delivery import Deliveries
from .errors import NotTrusted, UpstreamError, UpstreamResting
from .narinfo import format, parse_nar_url
from .seeding import record_of
from .server import Request, Response, Unsatisfiable, parse_range
from .signing import KeyRing
from .trust import Admitted, admit
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
        keys: KeyRing,
        publish_keys: KeyRing,
        priority: int,
    ) -> None:
        self.served = Served()
        self.asked: deque[str] = deque(maxlen=ASKED_KEPT)
        """The store hashes that Nix asked for last."""
        self.deliveries = Deliveries(store, swarm, upstreams, publish_keys)
        self._store = store
        self._swarm = swarm
        self._upstreams = upstreams
        self._keys = keys
        self._priority = priority
        self._admitted: dict[str, Admitted] = {}
        self._only_offered: set[str] = set()
        """Those of `_admitted` that peers were the first to have."""
        places = Places(store.record, self._offered, self._pleased, upstreams, self._is_admitted)
        self._closures = Closures(places.find, places.has_upstream)

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
        if admitted is None or not await self._has_closure(admitted.record):
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
        """The record that a trusted key signed, from here, from peers or from an upstream."""
        known = self._admitted.get(store_hash) or self._admit(self._store.record(store_hash))
        if known is not None:
            return known
        found: list[Admitted] = []
        with trio.CancelScope(deadline=trio.current_time() + LOOKUP_SECONDS_MAX) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_peers, store_hash, found, nursery.cancel_scope)
                for upstream in self._upstreams:
                    nursery.start_soon(
                        self._ask_upstream, upstream, store_hash, found, nursery.cancel_scope
                    )
        if scope.cancelled_caught:
            self.served.undecided += 1
        if not found:
            return None
        self._keep(found[0])
        return found[0]

    def _keep(self, admitted: Admitted) -> None:
        if len(self._admitted) >= RECORDS_HELD_MAX:
            self._admitted.clear()
            self._only_offered.clear()
        self._admitted[admitted.record.store_hash] = admitted

    async def _ask_peers(
        self, store_hash: str, found: list[Admitted], enough: trio.CancelScope
    ) -> None:
        offers = await self._swarm.questions.look_up(store_hash, PEER_SECONDS_MAX)
        if any(self._take(record, found) for _, record in offers):
            self._only_offered.add(store_hash)
        else:
            offers = await self._swarm.questions.please(store_hash, PEER_SECONDS_MAX, [])
            if not any(self._take(record, found) for _, record in offers):
                return
        enough.cancel()

    async def _ask_upstream(
        self,
        upstream: Upstream,
        store_hash: str,
        found: list[Admitted],
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
        if info is not None and self._take(record_of(info), found):
            enough.cancel()

    def _take(self, record: PathRecord, found: list[Admitted]) -> bool:
        admitted = self._admit(record)
        if admitted is not None:
            found.append(admitted)
        return admitted is not None

    # -- whether the closure of what peers have can be had -----------------------------------------

    async def _has_closure(self, record: PathRecord) -> bool:
        if record.store_hash not in self._only_offered:
            return True
        if self._store.record(record.store_hash) is not None:
            return True
        return await self._closures.may_serve(record)

    async def _offered(self, store_hash: str) -> PathRecord | None:
        """By peers; kept, for Nix asks next."""
        known = self._admitted.get(store_hash)
        if known is not None:
            return known.record
        for _, record in await self._swarm.questions.look_up(store_hash, PEER_SECONDS_MAX):
            admitted = self._admit(record)
            if admitted is not None:
                self._keep(admitted)
                self._only_offered.add(store_hash)
                return record
        return None

    async def _pleased(self, store_hash: str) -> PathRecord | None:
        offers = await self._swarm.questions.please(store_hash, PEER_SECONDS_MAX, [])
        return next((record for _, record in offers if self._is_admitted(record)), None)

    def _is_admitted(self, record: PathRecord) -> bool:
        return self._admit(record) is not None

    def _admit(self, record: PathRecord | None) -> Admitted | None:
        if record is None:
            return None
        try:
            return admit(record, self._keys)
        except NotTrusted as error:
            self.served.refused += 1
            log.warning("refused %s: %s", record.store_path, error)
            return None


def _text(status: int, body: bytes, kind: str) -> Response:
    return Response(status, (("Content-Type", kind),), body, len(body))


def _not_found() -> Response:
    return _text(404, b"404\n", "text/plain")
