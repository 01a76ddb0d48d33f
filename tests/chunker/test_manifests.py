"""Decoded manifests are shared, and bounded by their bytes."""

from __future__ import annotations

from chunker import manifests
from chunker.digest import ManifestId
from chunker.ingest import Ingest
from chunker.manifests import Manifests
from chunker.store import MemoryStore
from tests.golden.samples import file_nar, sample_bytes


def store_with(count: int) -> tuple[MemoryStore, list[ManifestId]]:
    store, ids = MemoryStore(), []
    for number in range(count):
        ingest = Ingest(store, ())
        ingest.feed(file_nar(sample_bytes(5000, f"file {number}")))
        ids.append(ingest.finish_unchecked()[0])
    return store, ids


def test_a_manifest_is_decoded_once() -> None:
    store, (wanted,) = store_with(1)
    cache = Manifests(store)
    first = cache.load(wanted)
    assert first is not None
    assert cache.load(wanted) is first
    assert cache.load(ManifestId(bytes(32))) is None


def test_what_was_not_asked_for_lately_is_forgotten(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    store, ids = store_with(4)
    size = len(store.manifest(ids[0]) or b"")
    monkeypatch.setattr(manifests, "HELD_BYTES_MAX", 3 * size + size // 2)
    cache = Manifests(store)
    loaded = {wanted: cache.load(wanted) for wanted in ids[:3]}
    assert cache.load(ids[0]) is loaded[ids[0]]
    cache.load(ids[3])  # the fourth does not fit: the second was asked for longest ago
    assert cache.load(ids[0]) is loaded[ids[0]]
    assert cache.load(ids[1]) is not loaded[ids[1]]
