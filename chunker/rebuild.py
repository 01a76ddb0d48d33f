"""Manifest and store in, NAR out: any range, store hashes restored. The inverse of `ingest`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from .block import Block
from .digest import Bytes, nix32_encode
from .errors import ManifestError, NarMismatch
from .manifest import Manifest
from .references import Rewrites, needles_digest, restore
from .store import BlockStore


def check_needles(manifest: Manifest, needles: Sequence[bytes]) -> None:
    """Raises ManifestError if the manifest was made for other references."""
    if needles_digest(needles) != manifest.needles_digest:
        raise ManifestError("the manifest was made for other references than the record names")
    if len(manifest.rewrites) and max(manifest.rewrites.indexes) >= len(needles):
        raise ManifestError("the manifest names a reference that the record does not have")


class Layout(Protocol):
    """What a manifest, also one that still grows, says of where blocks lie."""

    @property
    def offsets(self) -> Sequence[int]: ...

    @property
    def rewrites(self) -> Rewrites: ...


def piece(manifest: Layout, needles: Sequence[bytes], index: int, block: Block) -> Bytes:
    """The bytes of the NAR for which `block` (verified) stands at `index` of the manifest."""
    return restore(block.data, manifest.offsets[index], manifest.rewrites, needles)


def rebuild(
    manifest: Manifest,
    needles: Sequence[bytes],
    store: BlockStore,
    start: int = 0,
    end: int | None = None,
) -> Iterator[Bytes]:
    """Bytes start..end of the NAR. Raises ManifestError, BlockMissing or BlockCorrupt."""
    check_needles(manifest, needles)
    stop = manifest.nar_size if end is None else end
    for index, offset in enumerate(manifest.offsets):
        if offset < stop and offset + manifest.lengths[index] > start:
            data = piece(manifest, needles, index, store.get(manifest.blocks[index]))
            yield data[max(0, start - offset) : stop - offset]


def check_nar(manifest: Manifest, needles: Sequence[bytes], store: BlockStore) -> None:
    """SHA-256 over the rebuilt NAR. Raises NarMismatch, BlockMissing or BlockCorrupt."""
    digest = hashlib.sha256()
    for data in rebuild(manifest, needles, store):
        digest.update(data)
    if digest.digest() != manifest.nar_hash:
        raise NarMismatch(
            f"the rebuilt NAR has the hash {nix32_encode(digest.digest())}, "
            f"signed is {nix32_encode(manifest.nar_hash)}"
        )
