"""What a binary cache serves besides narinfos and NARs.

| asked                          | answer                                                        |
|--------------------------------|---------------------------------------------------------------|
| <store hash>.ls                | of a NAR that is whole here, checked (gateway.listing)        |
| realisations/, build-trace-v2/ | if a trusted key signed it (.realisations)                    |
| log/<derivation>               | as it is: nobody signs logs                                   |

The last two are what was put here (gateway.shelf), else an upstream's. A log is text for a person
and no input to any build, and who asks Nix for it from a cache gets it unsigned as well. Still it
comes only from who has the token or from upstreams that the user configured, never from a peer; it
is bounded, and labelled so that no browser takes it for a page. Anything else here is 404.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

import trio

from chunker.store import BlockStore

from .delivery import Deliveries
from .errors import UpstreamError, UpstreamResting
from .listing import try_listing
from .memory import Known
from .realisations import REALISATION_BYTES_MAX, Key, RealisationError, parse_target, verified
from .responses import Response
from .shelf import Shelf
from .signing import KeyRing
from .upstream import Upstream

log = logging.getLogger(__name__)

LOG_BYTES_MAX = 16 * 1024 * 1024
ANSWER_SECONDS_MAX = 5.0
LOG_SECONDS_MAX = 20.0
AT_ONCE_MAX = 4
"""Logs and listings held in memory."""
_LISTING = re.compile(r"/([0-9abcdfghijklmnpqrsvwxyz]{32})\.ls")
_LOG = re.compile(r"/log/([0-9abcdfghijklmnpqrsvwxyz]{32}-[0-9A-Za-z+\-._?=]{1,211}\.drv)")


class Besides:
    def __init__(
        self,
        store: BlockStore,
        upstreams: tuple[Upstream, ...],
        keys: KeyRing,
        deliveries: Deliveries,
        look_up: Callable[[str], Awaitable[Known | None]],
        shelf: Shelf | None = None,
    ) -> None:
        """`shelf`: what was put here."""
        self._store = store
        self._upstreams = upstreams
        self._keys = keys
        self._deliveries = deliveries
        self._look_up = look_up
        self._shelf = shelf
        self._large = trio.CapacityLimiter(AT_ONCE_MAX)

    async def answer(self, target: str) -> Response | None:
        """None: it is not here."""
        if (match := _LISTING.fullmatch(target)) is not None:
            async with self._large:
                return await self._listing(match[1])
        if (log_path := parse_log(target)) is not None:
            async with self._large:
                return await self._log(log_path)
        if (key := parse_target(target)) is not None:
            return await self._realisation(key)
        return None

    async def _listing(self, store_hash: str) -> Response | None:
        known = await self._look_up(store_hash)
        if known is None:
            return None
        whole = await self._deliveries.whole(known.admitted.record)
        if whole is None:
            return None
        held, manifest = whole
        told, reason = await trio.to_thread.run_sync(
            try_listing, self._store, manifest, held.needles
        )
        if told is None:
            log.warning("no listing of %s: %s", held.store_path, reason)
            return None
        return _answer(told, "application/json")

    async def _log(self, path: str) -> Response | None:
        found: list[bytes] = []

        def accept(data: bytes) -> bool:
            found.append(data)
            return True

        await self._ask(path, LOG_BYTES_MAX, LOG_SECONDS_MAX, accept)
        return _answer(found[0], "text/plain; charset=utf-8") if found else None

    async def _realisation(self, key: Key) -> Response | None:
        found: list[bytes] = []

        def accept(data: bytes) -> bool:
            try:
                told = verified(key, data, self._keys)
            except RealisationError as error:
                log.warning("%s", error)
                return False
            if told is None:
                log.warning("refused %s: no trusted key signed it", key.path)
                return False
            found.append(told)
            return True

        await self._ask(key.path, REALISATION_BYTES_MAX, ANSWER_SECONDS_MAX, accept)
        return _answer(found[0], "application/json") if found else None

    async def _ask(
        self, path: str, bytes_max: int, seconds_max: float, accept: Callable[[bytes], bool]
    ) -> None:
        """The shelf, then all upstreams at once, until `accept` takes what one of them gave."""
        held = await self._held(path)
        if held is not None and accept(held):
            return

        async def ask(upstream: Upstream, enough: trio.CancelScope) -> None:
            try:
                data = await upstream.file(path, bytes_max)
            except UpstreamResting as error:
                log.debug("%s", error)
                return
            except UpstreamError as error:
                log.warning("%s", error)
                return
            if data is not None and not enough.cancel_called and accept(data):
                enough.cancel()

        with trio.move_on_after(seconds_max):
            async with trio.open_nursery() as nursery:
                for upstream in self._upstreams:
                    nursery.start_soon(ask, upstream, nursery.cancel_scope)

    async def _held(self, path: str) -> bytes | None:
        try:
            return None if self._shelf is None else await self._shelf.get(path)
        except OSError as error:
            log.error("cannot read what was put here as %s: %s", path, error)
            return None


def parse_log(target: str) -> str | None:
    """What names a log, below a cache's URL."""
    match = _LOG.fullmatch(unquote(target))
    return None if match is None else f"log/{match[1]}"


def _answer(body: bytes, kind: str) -> Response:
    headers = (("Content-Type", kind), ("X-Content-Type-Options", "nosniff"))
    return Response(200, headers, body, len(body))
