"""A body of a NAR that is not whole here yet: block by block from one source, then from the next.

    FilledSource    behind our own download from an upstream
    FetchedSource   behind peers, with a manifest that is whole or grows
    HeldSource      what became whole here meanwhile (`stored`)
    SourcedBody     reads one until it is lost, goes on at the same block behind another

All bytes pass through SHA-256, for a range as well, and through the check of a content address that
nobody vouches for; the last block only when they matched. That says
that a source's manifest is right only if all of it came from there: one that took over in the
middle is checked by itself before it counts as whole.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import trio

from chunker.digest import Bytes, ManifestId
from chunker.errors import BlockCorrupt, BlockMissing, ChunkerError
from chunker.record import PathRecord
from peer.errors import NotHere, PeerError
from peer.fetch import Fetch
from peer.following import Following
from peer.identity import PeerId

from .content_address import ContentCheck
from .errors import UpstreamError
from .filling import Filling
from .pump import BodyBroken

if TYPE_CHECKING:
    from .delivery import Deliveries

log = logging.getLogger(__name__)

CLEAN_UP_SECONDS_MAX = 5.0


class SourceLost(Exception):
    """It cannot go on; another one may."""


@dataclass
class Tried:
    """What one body had from others, or asked for in vain: it goes on with something else."""

    held: bool = False
    """What is whole in our own store."""
    upstream: bool = False
    owners: set[PeerId] = field(default_factory=set)
    """Who was asked to fetch it, or followed."""
    offers: set[tuple[PeerId, ManifestId]] = field(default_factory=set)


class Source(Protocol):
    """It is read from when it is made until `leave`."""

    @property
    def manifest(self) -> ManifestId | None:
        """Which blocks these are; None: those of several upstreams, which may differ."""
        ...

    async def piece(self, index: int, offset: int) -> Bytes:
        """The bytes of the NAR that block `index` stands for, which begins at `offset`. Raises
        SourceLost."""
        ...

    async def verified(self, first: int) -> ManifestId | None:
        """The NAR was what was signed, and from block `first` on it came from here. The manifest
        under which it is whole now, if this brought it. Raises PeerError or ChunkerError."""
        ...

    def blame(self) -> None:
        """The NAR, which came from here alone, was not what was signed."""
        ...

    async def leave(self) -> None: ...


class FilledSource:
    def __init__(self, filling: Filling) -> None:
        self._filling = filling
        self._ahead: dict[int, Bytes] = {}

    @property
    def manifest(self) -> ManifestId | None:
        return self._filling.growing.id if self._filling.attempts <= 1 else None

    async def piece(self, index: int, offset: int) -> Bytes:
        if index not in self._ahead:
            try:
                pieces = await self._filling.pieces(index, offset)
            except (UpstreamError, BlockMissing, BlockCorrupt) as error:
                raise SourceLost(str(error)) from error
            self._ahead = dict(enumerate(pieces, index))
        return self._ahead.pop(index)

    async def verified(self, first: int) -> ManifestId | None:
        return None  # it checks itself

    def blame(self) -> None:
        """Its own check does that."""

    async def leave(self) -> None:
        """It goes on whether anybody reads it or not."""


class FetchedSource:
    def __init__(self, fetch: Fetch, patience_seconds: float) -> None:
        self.manifest = fetch.id
        self._fetch = fetch
        self._patience_seconds = patience_seconds
        fetch.readers += 1

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

    async def verified(self, first: int) -> ManifestId | None:
        if first == 0:
            await self._fetch.mark_verified()
        else:
            await self._fetch.check()
        return self._fetch.record.manifest

    def blame(self) -> None:
        self._fetch.blame()

    async def leave(self) -> None:
        fetch = self._fetch
        fetch.readers -= 1
        if fetch.readers == 0:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEAN_UP_SECONDS_MAX):
                await fetch.close()


class SourcedBody:
    """To be called once."""

    def __init__(
        self, deliveries: Deliveries, record: PathRecord, source: Source, tried: Tried
    ) -> None:
        self._deliveries = deliveries
        self._record = record
        self._source = source
        self._first = 0
        """The block from which on `_source` is read."""
        self._tried = tried
        self._is_left = False

    def __call__(self, start: int, end: int) -> AsyncIterator[Bytes]:
        return _Pieces(self._pieces(start, end), self.leave)

    async def _pieces(self, start: int, end: int) -> AsyncGenerator[Bytes, None]:
        record, digest, offset, index = self._record, hashlib.sha256(), 0, 0
        check = self._deliveries.proofs.check(record)
        while offset < record.nar_size:
            data = await self._read(index, offset, start)
            digest.update(data)
            if check is not None:
                check.feed(data)
            whole = offset + len(data) >= record.nar_size
            if whole and digest.digest() != record.nar_hash:
                self._wrong()
            if whole and check is not None:
                self._prove(check)
            if offset < end and offset + len(data) > start:
                yield data[max(0, start - offset) : end - offset]
            offset += len(data)
            index += 1
        await self._verified()

    def _wrong(self) -> None:
        if self._first == 0:
            self._source.blame()
        self._deliveries.found_wrong(self._record)
        raise BodyBroken(f"{self._record.store_path}: the rebuilt NAR is not what was signed")

    def _prove(self, check: ContentCheck) -> None:
        """Who gave these bytes gave what the record says: who said it is wrong, and unknown."""
        if not check.holds():
            self._deliveries.found_wrong(self._record)
            raise BodyBroken(f"{self._record.store_path}: not the content of its address")
        self._deliveries.proofs.proven(self._record)

    async def _verified(self) -> None:
        began = self._source.manifest
        try:
            final = await self._source.verified(self._first)
        except (PeerError, ChunkerError) as error:
            log.warning("%s is not kept: %s", self._record.store_path, error)
            return
        if self._first == 0 and began is not None and final is not None:
            self._deliveries.found_right(self._record, began, final)

    async def _read(self, index: int, offset: int, start: int) -> Bytes:
        while True:
            try:
                return await self._source.piece(index, offset)
            except SourceLost as error:
                # What is before a range was read from the first source, by an answer before this.
                found = None
                if offset >= start:
                    found = await self._deliveries.source(self._record, self._tried)
                if found is None:
                    raise BodyBroken(str(error)) from error
                log.warning("%s; going on with another source", error)
                lost, self._source, self._first = self._source, found, index
                await lost.leave()

    async def leave(self) -> None:
        if not self._is_left:
            self._is_left = True
            await self._source.leave()


class _Pieces(AsyncIterator[Bytes]):
    """A generator that was asked for nothing runs no `finally`: a client may go away before its
    first byte, and its source is left all the same."""

    def __init__(
        self, pieces: AsyncGenerator[Bytes, None], leave: Callable[[], Awaitable[None]]
    ) -> None:
        self._pieces = pieces
        self._leave = leave

    async def __anext__(self) -> Bytes:
        try:
            return await self._pieces.__anext__()
        except BaseException:
            await self._leave()
            raise

    async def aclose(self) -> None:
        try:
            await self._pieces.aclose()
        finally:
            await self._leave()
