"""What this peer holds, and who may know of it.

A question carries BLAKE3(salt || store hash), so only who holds the path can tell what was asked.
`may_have(asker, record)` is the policy (gateway.offer); whatever it denies answers exactly like a
path that is not here: same content, same look-up.

For a summary that policy has to be asked about every path, and each answer costs signature checks.
So paths are grouped: `audience(record)` is a key such that records with the same one are for the
same askers. It is computed once for each path; then one verdict for each audience will do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import blake3

from chunker.digest import ManifestId
from chunker.record import PathRecord
from chunker.store import BlockStore

from .identity import PeerId
from .messages import PREFIX_BYTES

MayHave = Callable[[PeerId, PathRecord], bool]
Audience = Callable[[PathRecord], Hashable]
Listener = Callable[[PathRecord, bool], None]


def salted(salt: bytes, store_hash: str) -> bytes:
    return blake3.blake3(salt + store_hash.encode()).digest()


def prefix(salt: bytes, store_hash: str) -> bytes:
    """What a summary tells of a path."""
    return salted(salt, store_hash)[:PREFIX_BYTES]


def _its_own(record: PathRecord) -> Hashable:
    return record.store_hash


class Catalogue:
    """The index of a store for one salt (32 random bytes, new with every start)."""

    def __init__(
        self, store: BlockStore, salt: bytes, may_have: MayHave, audience: Audience = _its_own
    ) -> None:
        self.salt = salt
        self._store = store
        self.may_have = may_have
        self._by_salted: dict[bytes, str] = {}
        self._by_manifest: dict[ManifestId, set[str]] = {}
        self._under_way: dict[ManifestId, PathRecord] = {}
        self._under_way_of: dict[str, tuple[PathRecord, ...]] = {}
        """By store hash; tuples, for threads read them."""
        self._audience = audience
        self._audiences: dict[str, Hashable] = {}
        self._listeners: set[Listener] = set()
        for record in store.records():
            self._index(record)

    def add(self, record: PathRecord) -> None:
        """Call when a record entered the store, or when its download begins."""
        self._index(record)
        self._audiences[record.store_hash] = self._audience(record)
        self._tell(record, held=True)

    def remove(self, record: PathRecord) -> None:
        """Call when a record left the store."""
        self._by_salted.pop(salted(self.salt, record.store_hash), None)
        self._audiences.pop(record.store_hash, None)
        holders = self._by_manifest.get(record.manifest, set())
        holders.discard(record.store_hash)
        if not holders:
            self._by_manifest.pop(record.manifest, None)
        self._tell(record, held=False)

    def listen(self, listener: Listener) -> None:
        """It is called with every record that comes (True) or goes (False)."""
        self._listeners.add(listener)

    def unlisten(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def forget_audiences(self) -> None:
        """The policy looks at other keys than before."""
        self._audiences.clear()

    def holds(self, store_hash: str) -> bool:
        return salted(self.salt, store_hash) in self._by_salted

    def begin(self, record: PathRecord) -> None:
        """A NAR of which blocks are here and more come: it is served from the first block on.
        Whole ones go before it in `look_up`. Call `end` when its blocks are offered no more."""
        self._under_way[record.manifest] = record
        others = self._under_way_of.get(record.store_hash, ())
        others = tuple(other for other in others if other.manifest != record.manifest)
        self._under_way_of[record.store_hash] = (*others, record)
        self._by_salted[salted(self.salt, record.store_hash)] = record.store_hash
        self._tell(record, held=True)

    def end(self, manifest: ManifestId) -> None:
        record = self._under_way.pop(manifest, None)
        if record is None:
            return
        others = self._under_way_of.pop(record.store_hash)
        left = tuple(other for other in others if other.manifest != manifest)
        if left:
            self._under_way_of[record.store_hash] = left
            return
        if self._store.record(record.store_hash) is None:
            self._by_salted.pop(salted(self.salt, record.store_hash), None)
            self._tell(record, held=False)

    def look_up(self, asker: PeerId, question: bytes) -> PathRecord | None:
        store_hash = self._by_salted.get(question)
        if store_hash is None:
            return None
        record = self._store.record(store_hash) or self._begun(store_hash)
        if record is None or not self.may_have(asker, record):
            return None
        return record

    def _begun(self, store_hash: str) -> PathRecord | None:
        """What began last: what began before it may be lost, and is left by its readers one by
        one."""
        return next(reversed(self._under_way_of.get(store_hash, ())), None)

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

    def prefixes(self, asker: PeerId) -> list[bytes]:
        """Of every path that `asker` may have, ascending. To be called in a thread: the first call
        reads every record, later ones one of each audience."""
        verdicts: dict[Hashable, bool] = {}
        found = []
        for question, store_hash in list(self._by_salted.items()):
            audience = self._audiences.get(store_hash)
            verdict = None if audience is None else verdicts.get(audience)
            if verdict is None:
                record = self._store.record(store_hash) or self._begun(store_hash)
                if record is None:
                    continue
                audience = self._audience(record)
                self._audiences.setdefault(store_hash, audience)  # what `add` said is newer
                if audience not in verdicts:
                    verdicts[audience] = self.may_have(asker, record)
                verdict = verdicts[audience]
            if verdict:
                found.append(question[:PREFIX_BYTES])
        found.sort()
        return found

    def for_asker(self, asker: PeerId, records: Iterable[PathRecord]) -> list[bytes]:
        """The prefixes of those of `records` that `asker` may have."""
        return [
            prefix(self.salt, record.store_hash)
            for record in records
            if self.may_have(asker, record)
        ]

    def _index(self, record: PathRecord) -> None:
        self._by_salted[salted(self.salt, record.store_hash)] = record.store_hash
        self._by_manifest.setdefault(record.manifest, set()).add(record.store_hash)

    def _tell(self, record: PathRecord, *, held: bool) -> None:
        for listener in list(self._listeners):
            listener(record, held)
