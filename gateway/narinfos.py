"""What an office cache tells of paths that it does not hold: the narinfos of its upstreams, for
members that have no upstream of their own.

    Please --look_up--> every upstream at once --first that a trusted key signed--> its record

The record names no manifest: the NAR is had by asking for it to be fetched (peer.office).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from chunker.record import PathRecord

from .errors import UpstreamError, UpstreamResting
from .seeding import record_of
from .upstream import Upstream

log = logging.getLogger(__name__)

LOOK_UP_SECONDS_MAX = 2.5
"""Less than a member waits for the answer."""
RECORDS_HELD_MAX = 10_000


class Narinfos:
    def __init__(
        self, upstreams: tuple[Upstream, ...], admits: Callable[[PathRecord], bool]
    ) -> None:
        self._upstreams = upstreams
        self._admits = admits
        self._held: dict[str, PathRecord] = {}

    async def look_up(self, store_hash: str) -> PathRecord | None:
        """For `Office.look_up`. None where no upstream has it, or none says so in time."""
        if store_hash in self._held:
            return self._held[store_hash]
        found: list[PathRecord] = []

        async def ask(upstream: Upstream, enough: trio.CancelScope) -> None:
            try:
                info = await upstream.narinfo(store_hash)
            except UpstreamResting as error:
                log.debug("%s", error)
                return
            except UpstreamError as error:
                log.warning("%s", error)
                return
            if info is not None and self._admits(record_of(info)):
                found.append(record_of(info))
                enough.cancel()

        with trio.move_on_after(LOOK_UP_SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                for upstream in self._upstreams:
                    nursery.start_soon(ask, upstream, nursery.cancel_scope)
        if not found:
            return None
        if len(self._held) >= RECORDS_HELD_MAX:
            self._held.clear()
        self._held[store_hash] = found[0]
        return found[0]
