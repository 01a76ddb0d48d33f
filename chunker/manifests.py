"""Manifests read from a store, decoded once and kept while they are in use.

Decoding is strict and slow (a NAR with many references: 1 ms per MB), and one manifest is asked for
by every request for its NAR and every Want of every peer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from .digest import ManifestId
from .manifest import Manifest, decode_manifest
from .store import BlockStore

HELD_BYTES_MAX = 8 * 1024 * 1024
"""As encoded; decoded they take several times as much."""


class Manifests:
    """Thread-safe; the least recently asked for is forgotten first."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._guard = threading.Lock()
        self._held: OrderedDict[ManifestId, tuple[Manifest, int]] = OrderedDict()
        self._bytes = 0

    def load(self, wanted: ManifestId) -> Manifest | None:
        """None where the store does not have it. Raises ManifestError, or StoreError."""
        with self._guard:
            if wanted in self._held:
                self._held.move_to_end(wanted)
                return self._held[wanted][0]
        encoded = self._store.manifest(wanted)
        if encoded is None:
            return None
        manifest = decode_manifest(encoded)
        with self._guard:
            if wanted not in self._held:
                self._held[wanted] = manifest, len(encoded)
                self._bytes += len(encoded)
            while self._bytes > HELD_BYTES_MAX and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1][1]
        return manifest
