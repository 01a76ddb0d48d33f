"""NAR in, manifest and blocks out: read strictly, normalise, cut, store, and check the NarHash.

A push pipeline, so that an upstream's NAR is cut while it streams through. Blocks enter the store
as they come (each is named by its own hash); the manifest only when the whole was seen to match.
Memory: one batch of blocks and some 40 bytes for each block of the NAR.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from .block import Block
from .cut import CUT_RULE, Cutter
from .digest import BlockId, ManifestId, NarHash, manifest_id, nix32_encode
from .errors import NarMismatch
from .manifest import FileMapWriter, Manifest, encode_manifest
from .nar import Entry, NarReader
from .references import Normaliser, Rewrites, needles_digest
from .store import BlockStore

PIECE_BYTES = 1024 * 1024


class Ingest:
    """feed, then `finish`. `nar_size_max`: more bytes than that raise NarMismatch at once."""

    def __init__(
        self, store: BlockStore, needles: Sequence[bytes], *, nar_size_max: int | None = None
    ) -> None:
        self.bytes_fed = 0
        self.new_blocks = 0
        self.held_blocks = 0
        self._store = store
        self._needles = needles
        self._nar_size_max = nar_size_max
        self._digest = hashlib.sha256()
        self._reader = NarReader()
        self._normaliser = Normaliser(needles)
        self._cutter = Cutter()
        self._files = FileMapWriter()
        self.blocks: list[BlockId] = []
        """Grows as blocks are cut and stored, before the NAR is known to be right."""
        self.lengths = array("I")

    @property
    def rewrites(self) -> Rewrites:
        """Those of all blocks so far, and perhaps more."""
        return self._normaliser.rewrites

    def feed(self, data: bytes) -> None:
        """Raises NarError, NarMismatch or StoreFull."""
        for at in range(0, len(data), PIECE_BYTES):
            self._feed(data[at : at + PIECE_BYTES])

    def finish(self, nar_hash: NarHash, nar_size: int) -> tuple[ManifestId, Manifest]:
        """Check and store the manifest. Raises NarError, NarMismatch or StoreFull."""
        self._drain()
        found = self._digest.digest()
        if self.bytes_fed != nar_size:
            raise NarMismatch(f"the NAR has {self.bytes_fed} bytes, signed are {nar_size}")
        if found != nar_hash:
            raise NarMismatch(
                f"the NAR has the hash {nix32_encode(found)}, signed is {nix32_encode(nar_hash)}"
            )
        return self._commit(nar_hash)

    def finish_unchecked(self) -> tuple[ManifestId, Manifest]:
        """Where nobody has said the hash: in tests and measurements."""
        self._drain()
        return self._commit(NarHash(self._digest.digest()))

    def _feed(self, data: bytes) -> None:
        self.bytes_fed += len(data)
        if self._nar_size_max is not None and self.bytes_fed > self._nar_size_max:
            raise NarMismatch(f"more than the {self._nar_size_max} bytes that were signed")
        self._digest.update(data)
        for entry in self._reader.feed(data):
            self._map(entry)
        self._keep(self._cutter.feed(self._normaliser.feed(data)))

    def _drain(self) -> None:
        self._reader.finish()
        self._keep(self._cutter.feed(self._normaliser.finish()))
        self._keep(self._cutter.finish())

    def _map(self, entry: Entry) -> None:
        plain = self._normaliser.apply
        self._files.add(
            Entry(entry.depth, plain(entry.name), entry.kind, entry.size, plain(entry.target))
        )

    def _keep(self, pieces: list[bytes]) -> None:
        blocks = [Block.of(piece) for piece in pieces]
        held = sum(self._store.has([block.id for block in blocks]))
        self._store.put(blocks)
        self.held_blocks += held
        self.new_blocks += len(blocks) - held
        self.lengths.extend(len(block.data) for block in blocks)
        self.blocks.extend(block.id for block in blocks)

    def _commit(self, nar_hash: NarHash) -> tuple[ManifestId, Manifest]:
        manifest = Manifest(
            nar_hash,
            self.bytes_fed,
            CUT_RULE,
            needles_digest(self._needles),
            tuple(self.blocks),
            self.lengths,
            self.rewrites,
            self._files.finish(),
        )
        encoded = encode_manifest(manifest)
        name = manifest_id(encoded)
        self._store.put_manifest(name, encoded, verified=True)
        return name, manifest
