"""One NAR on its way to Nix: from the store, from peers, from an upstream, or from all in turn.

| what is here                       | how it is delivered                                         |
|------------------------------------|-------------------------------------------------------------|
| a verified manifest, every block   | straight from the store                                     |
| peers that cover what is missing   | block by block behind a Fetch                               |
| an upstream that has it            | block by block behind a Filling, as it is cut and stored    |
| none of these                      | None: 404 before the first byte                             |

A NAR that was never verified here passes through SHA-256 and keeps its last block back until the
whole matched; a body that turns out wrong raises BodyBroken, which cuts the connection. When the
peers fail in the middle, the body goes on behind a Filling: honest sources derive the same blocks.
A NarHash whose body was cut as wrong serves no ranges for a while, because Nix would join the right
tail to the wrong head; for the same reason a range is served only from the manifest that the whole
began with.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

import trio

from chunker.digest import Bytes, ManifestId, NarHash
from chunker.errors import BlockCorrupt, BlockMissing
from chunker.manifest import Manifest
from chunker.rebuild import piece
from chunker.record import PathRecord
from chunker.store import BlockStore
from peer.errors import NotHere, PeerError
from peer.fetch import STUCK_SECONDS_MAX, Fetch
from peer.swarm import Swarm

from .errors import UpstreamError
from .filling import Filling
from .offer import is_signed
from .pump import BodyBroken, Readable
from .signing import KeyRing
from .trust import Admitted
from .upstream import Upstream

log = logging.getLogger(__name__)

WRONG_SECONDS = 600.0
FULL_SECONDS = 10.0
"""How long nothing is begun after the store could not be written."""
SOURCES_SECONDS_MAX = 4.0
RESCUE_SECONDS = 1.0
"""How long a block that no live peer holds is waited for where an upstream stands by."""
CLEAN_UP_SECONDS_MAX = 5.0
BATCH_BYTES = 1536 * 1024
"""Read at once: with what lies between the blocks it fits into a pump's buffer."""
BEGUN_MAX = 100_000
WRONGS_MAX = 10_000

Body = Callable[[int, int], AsyncIterator[Bytes] | Readable]
"""body(start, end) gives exactly end - start bytes of the NAR."""


class Deliveries:
    """All NARs under way; the same NAR is fetched once however many ask."""

    def __init__(
        self,
        store: BlockStore,
        swarm: Swarm,
        upstreams: tuple[Upstream, ...],
        publish_keys: KeyRing,
    ) -> None:
        self.upstream_bytes = 0
        self.patience_seconds = RESCUE_SECONDS if upstreams else STUCK_SECONDS_MAX
        self._store = store
        self._swarm = swarm
        self._upstreams = upstreams
        self._publish_keys = publish_keys
        self._full_until = float("-inf")
        self._wrong: dict[NarHash, float] = {}
        self._begun: dict[NarHash, ManifestId | None] = {}
        self._fillings: dict[NarHash, Filling] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Owns the downloads from upstreams; they go on when their reader goes away."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def is_wrong(self, nar_hash: NarHash) -> bool:
        """A body of this NAR was cut as wrong lately: no ranges."""
        return self._wrong.get(nar_hash, 0.0) > trio.current_time()

    async def open(self, admitted: Admitted, *, ranged: bool = False) -> Body | None:
        """None: this NAR cannot be finished here. A range (`ranged`) goes on with what Nix has
        from before, so only from the manifest that the last delivery of the whole began with."""
        record = admitted.record
        found = await self._choose(record)
        if found is None:
            return None
        manifest, body = found
        if ranged and self._begun.get(record.nar_hash, manifest) != manifest:
            log.warning("%s: no range from another manifest", record.store_path)
            return None
        if len(self._begun) >= BEGUN_MAX:
            self._begun.clear()
        if not ranged:
            self._begun[record.nar_hash] = manifest
        return body

    async def _choose(self, record: PathRecord) -> tuple[ManifestId | None, Body] | None:
        """The manifest (None: it grows behind an upstream) and the body of a delivery."""
        held = self._store.record(record.store_hash)
        if held is not None and held.nar_hash == record.nar_hash:
            manifest = await trio.to_thread.run_sync(self._complete, held)
            if manifest is not None:
                return held.manifest, _StoredBody(self._store, held, manifest)
        filling = self._fillings.get(record.nar_hash)
        if filling is None and (fetch := await self._from_peers(record)) is not None:
            return fetch.id, _FetchedBody(self, fetch)
        if filling is None and trio.current_time() < self._full_until:
            return None  # 404 at once: Nix goes to its next substituter, and costs no upstream
        filling = filling or self.fill(record)
        if filling is not None and await filling.has_started():
            return None, _FilledBody(self, filling)
        return None

    def _complete(self, record: PathRecord) -> Manifest | None:
        if not self._store.is_verified(record.manifest):
            return None
        manifest = self._swarm.load_manifest(record.manifest)
        return manifest if manifest and all(self._store.has(manifest.blocks)) else None

    async def _from_peers(self, record: PathRecord) -> Fetch | None:
        public = is_signed(record, self._publish_keys)
        try:
            questions = self._swarm.questions
            offers = await questions.find(record.store_hash, SOURCES_SECONDS_MAX, public=public)
            offers += await questions.please(
                record.store_hash, SOURCES_SECONDS_MAX, [peer for peer, _ in offers]
            )
            offers = [offer for offer in offers if offer[1].nar_hash == record.nar_hash]
            return await Fetch.open(self._swarm, record, offers, public=public)
        except PeerError as error:
            log.warning("peers cannot deliver %s: %s", record.store_path, error)
            return None

    # -- what a body under way needs -----------------------------------------------------------

    def fill(self, record: PathRecord) -> Filling | None:
        """The running download of this NAR, or a new one; None without upstreams."""
        filling = self._fillings.get(record.nar_hash)
        if filling is None and self._upstreams and self._nursery is not None:
            filling = Filling(self._store, record, self._upstreams)
            self._fillings[record.nar_hash] = filling
            self._nursery.start_soon(self._run_filling, filling)
        return filling

    async def _run_filling(self, filling: Filling) -> None:
        try:
            await filling.run(self._filled)
        finally:
            self.upstream_bytes += filling.bytes_received
            if filling.store_failed:
                self._full_until = trio.current_time() + FULL_SECONDS
            del self._fillings[filling.record.nar_hash]

    def _filled(self, filling: Filling) -> None:
        assert filling.manifest is not None
        record, manifest = filling.record, filling.manifest
        vouched = record.manifest_signatures if record.manifest == manifest else ()
        record = replace(record, manifest=manifest, manifest_signatures=vouched)
        self._store.put_record(record)
        self._swarm.catalogue.add(record)
        if self._begun.get(record.nar_hash, manifest) is None and filling.attempts == 1:
            self._begun[record.nar_hash] = manifest

    def found_wrong(self, record: PathRecord) -> None:
        if len(self._wrong) >= WRONGS_MAX:
            self._wrong.clear()
        self._wrong[record.nar_hash] = trio.current_time() + WRONG_SECONDS


class _StoredBody:
    def __init__(self, store: BlockStore, record: PathRecord, manifest: Manifest) -> None:
        self._store = store
        self._record = record
        self._manifest = manifest

    def __call__(self, start: int, end: int) -> _StoredReader:
        return _StoredReader(self._store, self._record, self._manifest, start, end)


class _StoredReader:
    """Bytes start..end of a NAR that is here in whole, each block verified as it is read."""

    def __init__(
        self, store: BlockStore, record: PathRecord, manifest: Manifest, start: int, end: int
    ) -> None:
        self._store = store
        self._record = record
        self._manifest = manifest
        self._at = start
        self._end = end
        self._next = bisect_right(manifest.offsets, start) - 1

    def read(self, buffer: bytearray) -> list[Bytes]:
        """The next blocks of about BATCH_BYTES. Raises BodyBroken."""
        manifest, needles = self._manifest, self._record.needles
        batch = self._batch()
        try:
            blocks = self._store.get_many(manifest.blocks[batch.start : batch.stop], buffer)
        except (BlockMissing, BlockCorrupt) as error:
            raise BodyBroken(str(error)) from error
        pieces: list[Bytes] = []
        for index, block in zip(batch, blocks, strict=True):
            data = piece(manifest, needles, index, block)
            offset = manifest.offsets[index]
            if offset < self._at or offset + len(data) > self._end:
                data = memoryview(data)[max(0, self._at - offset) : self._end - offset]
            pieces.append(data)
        return pieces

    def _batch(self) -> range:
        offsets, lengths = self._manifest.offsets, self._manifest.lengths
        first = last = self._next
        size = 0
        while last < len(offsets) and offsets[last] < self._end and size < BATCH_BYTES:
            size += lengths[last]
            last += 1
        self._next = last
        return range(first, last)


async def _checked(
    record: PathRecord,
    start: int,
    end: int,
    read: Callable[[int, int], Awaitable[Bytes]],
    wrong: Callable[[], None],
) -> AsyncGenerator[Bytes, None]:
    """Bytes start..end of what `read(index, offset)` gives. All blocks pass, also for a range, as
    the SHA-256 must see them; the last one only when it matched."""
    digest, offset, index = hashlib.sha256(), 0, 0
    while offset < record.nar_size:
        data = await read(index, offset)
        digest.update(data)
        whole = offset + len(data) >= record.nar_size
        if whole and digest.digest() != record.nar_hash:
            wrong()
            raise BodyBroken(f"{record.store_path}: the rebuilt NAR is not what was signed")
        if offset < end and offset + len(data) > start:
            yield data[max(0, start - offset) : end - offset]
        offset += len(data)
        index += 1


class _FilledBody:
    def __init__(self, deliveries: Deliveries, filling: Filling) -> None:
        self._deliveries = deliveries
        self._filling = filling

    async def __call__(self, start: int, end: int) -> AsyncIterator[Bytes]:
        record = self._filling.record
        async with aclosing(_checked(record, start, end, self._read, self._wrong)) as pieces:
            async for data in pieces:
                yield data

    def _wrong(self) -> None:
        self._deliveries.found_wrong(self._filling.record)

    async def _read(self, index: int, offset: int) -> Bytes:
        try:
            return await self._filling.piece(index, offset)
        except (UpstreamError, BlockMissing, BlockCorrupt) as error:
            raise BodyBroken(str(error)) from error


class _FetchedBody:
    def __init__(self, deliveries: Deliveries, fetch: Fetch) -> None:
        self._deliveries = deliveries
        self._fetch = fetch
        self._filling: Filling | None = None

    async def __call__(self, start: int, end: int) -> AsyncIterator[Bytes]:
        fetch = self._fetch
        fetch.readers += 1
        last = False
        try:
            checked = _checked(fetch.record, start, end, self._read, self._wrong)
            async with aclosing(checked) as pieces:
                async for data in pieces:
                    yield data
            last = True
            await fetch.mark_verified()
        finally:
            fetch.readers -= 1
            if last or fetch.readers == 0:
                with trio.CancelScope(
                    shield=True, deadline=trio.current_time() + CLEAN_UP_SECONDS_MAX
                ):
                    await fetch.close()

    def _wrong(self) -> None:
        self._fetch.blame()
        self._deliveries.found_wrong(self._fetch.record)

    async def _read(self, index: int, offset: int) -> Bytes:
        fetch = self._fetch
        if self._filling is None:
            try:
                block = await fetch.block(index, self._deliveries.patience_seconds)
                return fetch.plain(index, block)
            except NotHere as error:
                self._filling = self._deliveries.fill(fetch.record)
                if self._filling is None:
                    raise BodyBroken(str(error)) from error
                log.warning("%s; going on with an upstream", error)
        return await self._rescued(self._filling, index, offset)

    async def _rescued(self, filling: Filling, index: int, offset: int) -> Bytes:
        """The peers are gone: the same block behind an upstream's download."""
        try:
            if await filling.block(index) != self._fetch.manifest.blocks[index]:
                raise BodyBroken(f"{filling.record.store_path}: the upstream has other blocks")
            return await filling.piece(index, offset)
        except (UpstreamError, BlockMissing, BlockCorrupt) as error:
            raise BodyBroken(str(error)) from error
