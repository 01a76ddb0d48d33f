"""What this peer holds, and who may know of it.

A question carries BLAKE3(salt || store hash), so only who holds the path can tell what was asked.
`may_have(asker, record)` is the policy (gateway.offer); whatever it denies answers exactly like a
path that is not here: same content, same look-up.
"""

from __future__ import annotations

from collections.abc import Callable

import blake3

from chunker.digest import ManifestId
from chunker.record import PathRecord
from chunker.store import BlockStore

from .identity import PeerId

MayHave = Callable[[PeerId, PathRecord], bool]


def salted(salt: bytes, store_hash: str) -> bytes:
    return blake3.blake3(salt + store_hash.encode()).digest()


class Catalogue:
    """The index of a store for one salt (32 random bytes, new with every start)."""

    def __init__(self, store: BlockStore, salt: bytes, may_have: MayHave) -> None:
        self.salt = salt
        self._store = store
        self._may_have = may_have
        self._by_salted: dict[bytes, str] = {}
        self._by_manifest: dict[ManifestId, set[str]] = {}
        for record in store.records():
            self.add(record)

    def add(self, record: PathRecord) -> None:
        """Call when a record entered the store, or when its download begins."""
        self._by_salted[salted(self.salt, record.store_hash)] = record.store_hash
        self._by_manifest.setdefault(record.manifest, set()).add(record.store_hash)

    def look_up(self, asker: PeerId, question: bytes) -> PathRecord | None:
        store_hash = self._by_salted.get(question)
        record = self._store.record(store_hash) if store_hash is not None else None
        if record is None or not self._may_have(asker, record):
            return None
        return record

    def may_read(self, asker: PeerId, manifest: ManifestId) -> PathRecord | None:
        """A record through which `asker` may have this manifest and its blocks, or None."""
        for store_hash in sorted(self._by_manifest.get(manifest, ())):
            record = self._store.record(store_hash)
            if record is None or record.manifest != manifest:
                continue
            if self._may_have(asker, record):
                return record
        return None
