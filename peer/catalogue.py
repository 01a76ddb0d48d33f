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
        self.may_have = may_have
        self._by_salted: dict[bytes, str] = {}
        self._by_manifest: dict[ManifestId, set[str]] = {}
        self._under_way: dict[ManifestId, PathRecord] = {}
        for record in store.records():
            self.add(record)

    def add(self, record: PathRecord) -> None:
        """Call when a record entered the store, or when its download begins."""
        self._by_salted[salted(self.salt, record.store_hash)] = record.store_hash
        self._by_manifest.setdefault(record.manifest, set()).add(record.store_hash)

    def begin(self, record: PathRecord) -> None:
        """A NAR of which blocks are here and more come: it is served from the first block on.
        Whole ones go before it in `look_up`. Call `end` when its blocks are offered no more."""
        self._under_way[record.manifest] = record
        self._by_salted[salted(self.salt, record.store_hash)] = record.store_hash

    def end(self, manifest: ManifestId) -> None:
        self._under_way.pop(manifest, None)

    def look_up(self, asker: PeerId, question: bytes) -> PathRecord | None:
        store_hash = self._by_salted.get(question)
        if store_hash is None:
            return None
        record = self._store.record(store_hash) or self._begun(store_hash)
        if record is None or not self.may_have(asker, record):
            return None
        return record

    def _begun(self, store_hash: str) -> PathRecord | None:
        found = (r for r in self._under_way.values() if r.store_hash == store_hash)
        return next(found, None)

    def may_read(self, asker: PeerId, manifest: ManifestId) -> PathRecord | None:
        """A record through which `asker` may have this manifest and its blocks, or None."""
        begun = self._under_way.get(manifest)
        if begun is not None and self.may_have(asker, begun):
            return begun
        for store_hash in sorted(self._by_manifest.get(manifest, ())):
            record = self._store.record(store_hash)
            if record is None or record.manifest != manifest:
                continue
            if self.may_have(asker, record):
                return record
        return None
