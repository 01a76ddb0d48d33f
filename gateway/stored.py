"""A NAR that is whole here: a body of it from disk, and the source of a body that began elsewhere.

StoredBody    all of it, or a range, read in batches by a worker thread (`pump`)
HeldSource    the rest of a body whose first source was lost while another reader, or a member
              that asked us to fetch it, brought the whole: no peer and no upstream is asked
"""

from __future__ import annotations

from bisect import bisect_right

import trio

from chunker.digest import Bytes, ManifestId
from chunker.errors import BlockCorrupt, BlockMissing
from chunker.manifest import Manifest
from chunker.rebuild import piece
from chunker.record import PathRecord
from chunker.store import BlockStore

from .pump import BodyBroken
from .sources import SourceLost

BATCH_BYTES = 1536 * 1024
"""Read at once: with what lies between the blocks it fits into a pump's buffer."""


class StoredBody:
    def __init__(self, store: BlockStore, record: PathRecord, manifest: Manifest) -> None:
        self._store = store
        self._record = record
        self._manifest = manifest

    def __call__(self, start: int, end: int) -> StoredReader:
        return StoredReader(self._store, self._record, self._manifest, start, end)


class StoredReader:
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


class HeldSource:
    """See `sources.Source`."""

    def __init__(self, store: BlockStore, record: PathRecord, manifest: Manifest) -> None:
        self.manifest: ManifestId | None = record.manifest
        self._store = store
        self._record = record
        self._whole = manifest

    async def piece(self, index: int, offset: int) -> Bytes:
        offsets = self._whole.offsets
        if index >= len(offsets) or offsets[index] != offset:
            raise SourceLost(f"{self._record.store_path}: what is here has other blocks")
        return await trio.to_thread.run_sync(self._read, index)

    def _read(self, index: int) -> Bytes:
        try:
            block = self._store.get(self._whole.blocks[index])
        except (BlockMissing, BlockCorrupt) as error:
            raise SourceLost(str(error)) from error
        return piece(self._whole, self._record.needles, index, block)

    async def verified(self, first: int) -> ManifestId | None:
        return self.manifest  # it was before

    def blame(self) -> None:
        """It was seen to be right."""

    async def leave(self) -> None:
        """It goes on being here."""
