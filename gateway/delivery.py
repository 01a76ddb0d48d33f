"""One NAR on its way to Nix: from the store, from peers, from an upstream, or from all in turn.

| what is here                       | how it is delivered                                          |
|------------------------------------|--------------------------------------------------------------|
| a verified manifest, every block   | straight from the store                                      |
| peers that cover what is missing   | block by block behind a Fetch; SHA-256 runs along            |
| an upstream that has it            | its NAR is cut and stored; blocks follow when it is verified |
| none of these                      | None: 404 before the first byte                              |

A NAR that was never verified here keeps its last block back until the SHA-256 of the whole
matched; a body that turns out wrong raises BodyBroken, which cuts the connection. When the peers
fail in the middle, the upstream fills the store and the same body goes on: honest sources derive
the same manifest. A NarHash whose body was cut as wrong serves no ranges for a while, because Nix
would join the right tail to the wrong head.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

from chunker.digest import ManifestId, NarHash
from chunker.errors import BlockCorrupt, BlockMissing, ChunkerError
from chunker.ingest import Ingest
from chunker.manifest import Manifest, decode_manifest
from chunker.rebuild import piece
from chunker.record import PathRecord
from chunker.store import BlockStore
from peer.errors import NotHere, PeerError
from peer.fetch import Fetch
from peer.swarm import Swarm

from .errors import UpstreamError
from .narinfo import Narinfo
from .server import BodyBroken
from .trust import Admitted
from .upstream import Upstream

log = logging.getLogger(__name__)

WRONG_SECONDS = 600.0
SOURCES_SECONDS_MAX = 4.0
NO_MANIFEST = ManifestId(b"\0" * 32)


@dataclass(frozen=True)
class Delivery:
    """A NAR that can be finished. `body(start, end)` yields exactly end - start bytes."""

    size: int
    body: _Body


class _Body:
    def __call__(self, start: int, end: int) -> AsyncIterator[bytes]:
        raise NotImplementedError


class Deliveries:
    """All NARs under way; the same NAR is fetched once however many ask."""

    def __init__(self, store: BlockStore, swarm: Swarm, upstreams: tuple[Upstream, ...]) -> None:
        self._store = store
        self._swarm = swarm
        self._upstreams = upstreams
        self._wrong: dict[NarHash, float] = {}
        self._filling: dict[NarHash, trio.Event] = {}
        self.upstream_bytes = 0

    def is_wrong(self, nar_hash: NarHash) -> bool:
        """A body of this NAR was cut as wrong lately: no ranges."""
        return self._wrong.get(nar_hash, 0.0) > trio.current_time()

    async def open(self, admitted: Admitted) -> Delivery | None:
        record = admitted.record
        held = self._store.record(record.store_hash)
        if held is not None and held.nar_hash == record.nar_hash:
            manifest = await trio.to_thread.run_sync(self._complete, held)
            if manifest is not None:
                return Delivery(record.nar_size, _StoredBody(self._store, held, manifest))
        fetch = await self._from_peers(record)
        if fetch is not None:
            return Delivery(record.nar_size, _FetchedBody(self, fetch))
        if await self._fill_from_upstream(record):
            held = self._store.record(record.store_hash)
            manifest = None if held is None else self._complete(held)
            if held is not None and manifest is not None:
                return Delivery(record.nar_size, _StoredBody(self._store, held, manifest))
        return None

    def _complete(self, record: PathRecord) -> Manifest | None:
        if not self._store.is_verified(record.manifest):
            return None
        encoded = self._store.manifest(record.manifest)
        if encoded is None:
            return None
        manifest = decode_manifest(encoded)
        return manifest if all(self._store.has(manifest.blocks)) else None

    async def _from_peers(self, record: PathRecord) -> Fetch | None:
        try:
            offers = await self._swarm.find(record.store_hash, SOURCES_SECONDS_MAX)
            offers += await self._swarm.please(
                record.store_hash, SOURCES_SECONDS_MAX, [peer for peer, _ in offers]
            )
            offers = [offer for offer in offers if offer[1].nar_hash == record.nar_hash]
            return await Fetch.open(self._swarm, record, offers)
        except PeerError as error:
            log.warning("peers cannot deliver %s: %s", record.store_path, error)
            return None

    async def _fill_from_upstream(self, record: PathRecord) -> bool:
        """Bring the whole NAR into the store, verified. One at a time per NarHash."""
        while (running := self._filling.get(record.nar_hash)) is not None:
            await running.wait()
            held = self._store.record(record.store_hash)
            if held is not None and self._store.is_verified(held.manifest):
                return True
        done = self._filling[record.nar_hash] = trio.Event()
        try:
            for upstream in self._upstreams:
                try:
                    info = await upstream.narinfo(record.store_hash)
                    if info is not None and info.nar_hash == record.nar_hash:
                        await self._ingest(upstream, info, record)
                        return True
                except (UpstreamError, ChunkerError) as error:
                    log.warning("upstream failed on %s: %s", record.store_path, error)
            return False
        finally:
            del self._filling[record.nar_hash]
            done.set()

    async def _ingest(self, upstream: Upstream, info: Narinfo, record: PathRecord) -> None:
        ingest = Ingest(self._store, record.needles, nar_size_max=record.nar_size)
        async with upstream.nar(info) as pieces:
            async for data in pieces:
                self.upstream_bytes += len(data)
                await trio.to_thread.run_sync(ingest.feed, data)
        manifest, _ = await trio.to_thread.run_sync(ingest.finish, record.nar_hash, record.nar_size)
        await trio.to_thread.run_sync(self._remember, record, manifest)
        self._swarm.catalogue.add(self._with(record, manifest))

    def _remember(self, record: PathRecord, manifest: ManifestId) -> None:
        self._store.put_record(self._with(record, manifest))
        self._store.flush()

    @staticmethod
    def _with(record: PathRecord, manifest: ManifestId) -> PathRecord:
        return PathRecord(
            record.store_path,
            record.nar_hash,
            record.nar_size,
            record.references,
            record.signatures,
            record.content_address,
            manifest,
            record.manifest_signatures if record.manifest == manifest else (),
        )

    # -- what a body under way needs -----------------------------------------------------------

    async def rescue(self, fetch: Fetch) -> bool:
        """The peers failed: let an upstream complete the store. True if the same blocks came."""
        if not await self._fill_from_upstream(fetch.record):
            return False
        held = self._store.record(fetch.record.store_hash)
        return held is not None and held.manifest == fetch.id

    def found_wrong(self, fetch: Fetch) -> None:
        fetch.blame()
        self._wrong[fetch.record.nar_hash] = trio.current_time() + WRONG_SECONDS

    async def released(self, fetch: Fetch) -> None:
        await self._swarm.end(fetch)


class _StoredBody(_Body):
    def __init__(self, store: BlockStore, record: PathRecord, manifest: Manifest) -> None:
        self._store = store
        self._record = record
        self._manifest = manifest

    async def __call__(self, start: int, end: int) -> AsyncIterator[bytes]:
        manifest, offset = self._manifest, 0
        for index, length in enumerate(manifest.lengths):
            if offset < end and offset + length > start:
                data = await trio.to_thread.run_sync(self._read, index)
                yield data[max(0, start - offset) : end - offset]
            offset += length

    def _read(self, index: int) -> bytes:
        try:
            block = self._store.get(self._manifest.blocks[index])
        except (BlockMissing, BlockCorrupt) as error:
            raise BodyBroken(str(error)) from error
        return piece(self._manifest, self._record.needles, index, block)


class _FetchedBody(_Body):
    """Blocks in order from 0, also for a range: the SHA-256 must see them all."""

    def __init__(self, deliveries: Deliveries, fetch: Fetch) -> None:
        self._deliveries = deliveries
        self._fetch = fetch

    async def __call__(self, start: int, end: int) -> AsyncIterator[bytes]:
        fetch = self._fetch
        fetch.readers += 1
        finished = False
        try:
            digest, offset, last = hashlib.sha256(), 0, len(fetch.manifest.lengths) - 1
            for index in range(last + 1):
                data = await self._block(index)
                digest.update(data)
                if index == last:
                    await self._verify(digest.digest())
                if offset < end and offset + len(data) > start:
                    yield data[max(0, start - offset) : end - offset]
                offset += len(data)
            finished = True
        finally:
            fetch.readers -= 1
            if finished or fetch.readers == 0:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                    await self._deliveries.released(fetch)

    async def _block(self, index: int) -> bytes:
        fetch = self._fetch
        try:
            block = await fetch.block(index)
        except NotHere as error:
            log.warning("%s: %s; trying the upstream", fetch.record.store_path, error)
            if not await self._deliveries.rescue(fetch):
                raise BodyBroken(str(error)) from error
            fetch.present(index)
            for other in range(len(fetch.manifest.blocks)):
                fetch.present(other)
            try:
                block = await fetch.block(index)
            except NotHere as again:
                raise BodyBroken(str(again)) from again
        return fetch.plain(index, block)

    async def _verify(self, digest: bytes) -> None:
        fetch = self._fetch
        if digest != fetch.record.nar_hash:
            self._deliveries.found_wrong(fetch)
            raise BodyBroken(f"{fetch.record.store_path}: the rebuilt NAR is not what was signed")
        await fetch.mark_verified()
