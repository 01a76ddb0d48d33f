"""A body of a NAR that is not whole here yet: block by block from one source, then from the next.

    FilledSource    behind our own download from an upstream
    FetchedSource   behind peers, with a manifest that is whole or grows
    SourcedBody     reads one until it is lost, goes on at the same block behind another

All bytes pass through SHA-256, for a range as well; the last block only when it matched.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Protocol

import trio

from chunker.digest import Bytes, ManifestId
from chunker.errors import BlockCorrupt, BlockMissing
from chunker.record import PathRecord
from peer.errors import NotHere
from peer.fetch import Fetch
from peer.following import Following

from .errors import UpstreamError
from .filling import Filling
from .pump import BodyBroken

if TYPE_CHECKING:
    from .delivery import Deliveries

log = logging.getLogger(__name__)

UPSTREAM = "upstream"
"""Among what was tried, besides PeerIds."""
CLEAN_UP_SECONDS_MAX = 5.0


class SourceLost(Exception):
    """It cannot go on; another one may."""


class Source(Protocol):
    manifest: ManifestId | None
    """None while it grows."""

    async def piece(self, index: int, offset: int) -> Bytes:
        """The bytes of the NAR that block `index` stands for, which begins at `offset`. Raises
        SourceLost."""
        ...

    def take(self) -> None:
        """Somebody reads it."""
        ...

    async def leave(self, *, verified: bool) -> None:
        """A reader ends, with the whole NAR verified or not."""
        ...

    def blame(self) -> None:
        """The NAR was not what was signed."""
        ...


class FilledSource:
    manifest: ManifestId | None = None

    def __init__(self, filling: Filling) -> None:
        self._filling = filling

    async def piece(self, index: int, offset: int) -> Bytes:
        try:
            return await self._filling.piece(index, offset)
        except (UpstreamError, BlockMissing, BlockCorrupt) as error:
            raise SourceLost(str(error)) from error

    def take(self) -> None:
        """It goes on whether anybody reads it or not."""

    async def leave(self, *, verified: bool) -> None:
        pass

    def blame(self) -> None:
        """Its own check does that."""


class FetchedSource:
    def __init__(self, fetch: Fetch, patience_seconds: float) -> None:
        self.manifest = None if isinstance(fetch, Following) else fetch.id
        self._fetch = fetch
        self._patience_seconds = patience_seconds

    async def piece(self, index: int, offset: int) -> Bytes:
        fetch = self._fetch
        try:
            block = await fetch.block(index, self._patience_seconds)
        except NotHere as error:
            if isinstance(fetch, Following):
                fetch.lost()
            raise SourceLost(str(error)) from error
        if fetch.manifest.offsets[index] != offset:
            raise SourceLost(f"{fetch.record.store_path}: this source has other blocks")
        return fetch.plain(index, block)

    def take(self) -> None:
        self._fetch.readers += 1

    async def leave(self, *, verified: bool) -> None:
        fetch = self._fetch
        try:
            if verified:
                await fetch.mark_verified()
        finally:
            fetch.readers -= 1
            if verified or fetch.readers == 0:
                with trio.CancelScope(
                    shield=True, deadline=trio.current_time() + CLEAN_UP_SECONDS_MAX
                ):
                    await fetch.close()

    def blame(self) -> None:
        self._fetch.blame()


class SourcedBody:
    def __init__(self, deliveries: Deliveries, record: PathRecord, source: Source) -> None:
        self._deliveries = deliveries
        self._record = record
        self._source = source
        self._tried: set[str] = set()

    async def __call__(self, start: int, end: int) -> AsyncGenerator[Bytes, None]:
        record, digest, offset, index = self._record, hashlib.sha256(), 0, 0
        verified = False
        self._source.take()
        try:
            while offset < record.nar_size:
                data = await self._read(index, offset)
                digest.update(data)
                whole = offset + len(data) >= record.nar_size
                if whole and digest.digest() != record.nar_hash:
                    self._wrong()
                if offset < end and offset + len(data) > start:
                    yield data[max(0, start - offset) : end - offset]
                offset += len(data)
                index += 1
            verified = True
        finally:
            await self._source.leave(verified=verified)

    def _wrong(self) -> None:
        self._source.blame()
        self._deliveries.found_wrong(self._record)
        raise BodyBroken(f"{self._record.store_path}: the rebuilt NAR is not what was signed")

    async def _read(self, index: int, offset: int) -> Bytes:
        while True:
            try:
                return await self._source.piece(index, offset)
            except SourceLost as error:
                following = await self._deliveries.source(self._record, self._tried)
                if following is None:
                    raise BodyBroken(str(error)) from error
                log.warning("%s; going on with another source", error)
                await self._source.leave(verified=False)
                self._source = following
                following.take()
