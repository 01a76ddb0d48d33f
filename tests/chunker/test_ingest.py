"""NAR in, manifest and blocks out, NAR back; a wrong NAR leaves no manifest."""

from __future__ import annotations

import hashlib
import random
import tracemalloc

import pytest

from chunker.digest import NarHash
from chunker.errors import BlockMissing, ManifestError, NarError, NarMismatch
from chunker.ingest import Ingest
from chunker.rebuild import check_nar, rebuild
from chunker.store import MemoryStore
from tests.golden.samples import NEEDLES, file_nar, sample_bytes, string, strings

NAR = file_nar(sample_bytes(2_500_000))
HASH = NarHash(hashlib.sha256(NAR).digest())


def fed(store: MemoryStore, nar: bytes = NAR) -> Ingest:
    ingest = Ingest(store, NEEDLES, nar_size_max=len(NAR))
    ingest.feed(nar)
    return ingest


def test_what_goes_in_comes_out() -> None:
    store = MemoryStore()
    name, manifest = fed(store).finish(HASH, len(NAR))
    assert store.is_verified(name)
    assert b"".join(rebuild(manifest, NEEDLES, store)) == NAR
    check_nar(manifest, NEEDLES, store)


@pytest.mark.parametrize("seed", range(20))
def test_any_range(seed: int) -> None:
    store, chance = MemoryStore(), random.Random(seed)
    _, manifest = fed(store).finish(HASH, len(NAR))
    start = chance.randrange(len(NAR))
    end = chance.randrange(start, len(NAR) + 1)
    assert b"".join(rebuild(manifest, NEEDLES, store, start, end)) == NAR[start:end]


def test_a_wrong_nar_leaves_no_manifest() -> None:
    store = MemoryStore()
    with pytest.raises(NarMismatch, match="hash"):
        fed(store).finish(NarHash(bytes(32)), len(NAR))
    with pytest.raises(NarMismatch, match="signed are"):
        fed(store).finish(HASH, len(NAR) + 8)
    with pytest.raises(NarError, match="too early"):
        fed(store, NAR[:-8]).finish(HASH, len(NAR))
    with pytest.raises(NarMismatch, match="more than"):
        fed(store, NAR + b"\0")
    assert store._manifests == {}


def test_the_second_of_two_equal_nars_adds_nothing() -> None:
    store = MemoryStore()
    first = fed(store)
    first.finish(HASH, len(NAR))
    second = fed(store)
    second.finish(HASH, len(NAR))
    assert first.new_blocks > 10 and second.new_blocks == 0
    assert second.held_blocks == first.new_blocks


def test_rebuild_refuses_other_references_and_missing_blocks() -> None:
    store = MemoryStore()
    _, manifest = fed(store).finish(HASH, len(NAR))
    with pytest.raises(ManifestError, match="other references"):
        list(rebuild(manifest, NEEDLES[:1], store))
    store.forget(manifest.blocks[3])
    with pytest.raises(BlockMissing):
        list(rebuild(manifest, NEEDLES, store))


class NoStore(MemoryStore):
    """Keeps nothing, so that only ingest's own memory counts."""

    def put(self, blocks: object) -> None:
        pass


def test_memory_does_not_grow_with_the_nar() -> None:
    """A file of 256 MB: at most 24 MB more than before at any time."""
    size = 256_000_000
    piece = sample_bytes(1_000_000)
    ingest = Ingest(NoStore(), NEEDLES)
    tracemalloc.start()
    try:
        ingest.feed(strings(b"nix-archive-1", b"(", b"type", b"regular", b"contents"))
        ingest.feed(size.to_bytes(8, "little"))
        for _ in range(size // len(piece)):
            ingest.feed(piece)
        ingest.feed(string(b")"))
        ingest.finish_unchecked()
        assert tracemalloc.get_traced_memory()[1] < 24_000_000
    finally:
        tracemalloc.stop()
