"""Where blocks, manifests and path records live: the protocol, and its version in memory.

Contract (tests/contract/test_block_store.py runs it on every implementation): what `flush`
returned for survives a crash; what was put is readable at once; only verified values enter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from .block import Block, Codec, Encoded, encode, verify
from .digest import BlockId, ManifestId
from .errors import BlockCorrupt, BlockMissing
from .record import PathRecord


class BlockStore(Protocol):
    """Thread-safe. Methods may touch the disk; call them off an event loop where that matters."""

    def has(self, ids: Iterable[BlockId]) -> list[bool]:
        """Presence, in the order asked."""
        ...

    def read(self, wanted: BlockId) -> Encoded:
        """As stored, unverified. Raises BlockMissing."""
        ...

    def get(self, wanted: BlockId) -> Block:
        """Decoded and verified. Raises BlockMissing, or BlockCorrupt (and forgets the block)."""
        ...

    def get_many(self, ids: Sequence[BlockId], buffer: bytearray | None = None) -> list[Block]:
        """`get` of each, with few reads. They may lie in `buffer`, and count until that is used
        again."""
        ...

    def put(self, blocks: Iterable[Block]) -> None:
        """Readable when this returns; durable after `flush`. Held ones are skipped.
        Raises StoreFull."""
        ...

    def forget(self, wanted: BlockId) -> None:
        """Drop a block found rotten, so that it can be fetched again. Missing is not an error."""
        ...

    def put_manifest(self, manifest: ManifestId, encoded: bytes, *, verified: bool) -> None:
        """`verified`: the SHA-256 of the NAR it rebuilds was seen to match. Never un-verifies."""
        ...

    def manifest(self, wanted: ManifestId) -> bytes | None: ...

    def is_verified(self, wanted: ManifestId) -> bool: ...

    def put_record(self, record: PathRecord) -> None:
        """One record per store path; a later one replaces it."""
        ...

    def record(self, store_hash: str) -> PathRecord | None: ...

    def records(self) -> Iterator[PathRecord]:
        """All, in order of store path."""
        ...

    def flush(self) -> None:
        """Everything put before is durable when this returns. Raises StoreFull."""
        ...

    def close(self) -> None: ...


class MemoryStore:
    """The store without a disk, for tests and simulation. `read` hands out what was put."""

    def __init__(self, codec: Codec = Codec.ZSTD) -> None:
        self._codec = codec
        self.blocks: dict[BlockId, Encoded] = {}
        self._manifests: dict[ManifestId, tuple[bytes, bool]] = {}
        self._records: dict[str, PathRecord] = {}

    def has(self, ids: Iterable[BlockId]) -> list[bool]:
        return [wanted in self.blocks for wanted in ids]

    def read(self, wanted: BlockId) -> Encoded:
        if wanted not in self.blocks:
            raise BlockMissing(wanted)
        return self.blocks[wanted]

    def get(self, wanted: BlockId) -> Block:
        try:
            return verify(wanted, self.read(wanted))
        except BlockCorrupt:
            self.forget(wanted)
            raise

    def get_many(self, ids: Sequence[BlockId], buffer: bytearray | None = None) -> list[Block]:
        return [self.get(wanted) for wanted in ids]

    def put(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            if block.id not in self.blocks:
                self.blocks[block.id] = block.encoded or encode(block.data, self._codec)

    def forget(self, wanted: BlockId) -> None:
        self.blocks.pop(wanted, None)

    def put_manifest(self, manifest: ManifestId, encoded: bytes, *, verified: bool) -> None:
        self._manifests[manifest] = (encoded, verified or self.is_verified(manifest))

    def manifest(self, wanted: ManifestId) -> bytes | None:
        return self._manifests.get(wanted, (None, False))[0]

    def is_verified(self, wanted: ManifestId) -> bool:
        return self._manifests.get(wanted, (b"", False))[1]

    def put_record(self, record: PathRecord) -> None:
        self._records[record.store_hash] = record

    def record(self, store_hash: str) -> PathRecord | None:
        return self._records.get(store_hash)

    def records(self) -> Iterator[PathRecord]:
        return iter(sorted(self._records.values(), key=lambda record: record.store_path))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
