"""What every BlockStore must do; each test runs on each implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chunker.block import Block, Codec, verify
from chunker.digest import ManifestId, manifest_id
from chunker.errors import BlockCorrupt, BlockMissing
from chunker.packs import PackStore
from chunker.store import BlockStore, MemoryStore
from tests.chunker.test_record import RECORD
from tests.golden.samples import sample_bytes

MAKERS: dict[str, Callable[[Path], BlockStore]] = {
    "memory": lambda _: MemoryStore(),
    "memory raw": lambda _: MemoryStore(Codec.RAW),
    "packs": lambda path: PackStore.open(path),
    "packs raw": lambda path: PackStore.open(path, codec=Codec.RAW),
}
TEXT = Block.of(b"compressible " * 5000)
NOISE = Block.of(sample_bytes(100_000))
SMALL = Block.of(b"x")


@pytest.fixture(params=sorted(MAKERS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockStore]:
    store = MAKERS[request.param](tmp_path / "store")
    yield store
    store.close()


def test_what_was_put_is_there_at_once(store: BlockStore) -> None:
    store.put([TEXT, NOISE, SMALL])
    assert store.has([SMALL.id, bytes(32), TEXT.id]) == [True, False, True]  # type: ignore[list-item]
    for block in (TEXT, NOISE, SMALL):
        assert store.get(block.id).data == block.data
        assert verify(block.id, store.read(block.id)).data == block.data


def test_many_at_once(store: BlockStore) -> None:
    """In any order, some twice, across several reads."""
    blocks = [Block.of(sample_bytes(90_000, f"many {number}")) for number in range(40)]
    store.put([TEXT, *blocks[:20]])
    store.flush()
    store.put([SMALL, *blocks[20:]])
    wanted = [*blocks, SMALL, TEXT, blocks[7], *reversed(blocks)]
    found = store.get_many([block.id for block in wanted])
    assert [block.id for block in found] == [block.id for block in wanted]
    assert [bytes(block.data) for block in found] == [block.data for block in wanted]
    for size in (0, 100_000, 1_000_000, 10_000_000):  # any part of them fits into the buffer
        again = store.get_many([block.id for block in wanted], bytearray(size))
        assert [bytes(block.data) for block in again] == [block.data for block in wanted]
    assert store.get_many([]) == []
    with pytest.raises(BlockMissing):
        store.get_many([TEXT.id, NOISE.id])


def test_putting_twice_is_no_error_and_takes_no_room(store: BlockStore) -> None:
    store.put([TEXT, TEXT])
    store.put([TEXT])
    store.flush()
    if isinstance(store, PackStore):
        assert store.stats().blocks == 1
    assert store.get(TEXT.id).data == TEXT.data


def test_missing_and_forgotten(store: BlockStore) -> None:
    with pytest.raises(BlockMissing) as caught:
        store.read(TEXT.id)
    assert caught.value.wanted == TEXT.id
    with pytest.raises(BlockMissing):
        store.get(TEXT.id)
    store.put([TEXT])
    store.forget(TEXT.id)
    store.forget(TEXT.id)
    assert store.has([TEXT.id]) == [False]
    store.put([TEXT])
    assert store.get(TEXT.id).data == TEXT.data


def test_more_ids_than_sql_has_variables(store: BlockStore) -> None:
    blocks = [Block.of(number.to_bytes(4, "big")) for number in range(3000)]
    store.put(blocks[::2])
    present = store.has([block.id for block in blocks] * 15)
    assert len(present) == 45_000
    assert present[:3000] == [True, False] * 1500


def test_manifests_and_their_mark(store: BlockStore) -> None:
    encoded = b"a manifest"
    name = manifest_id(encoded)
    assert store.manifest(name) is None and not store.is_verified(name)
    store.put_manifest(name, encoded, verified=False)
    assert store.manifest(name) == encoded and not store.is_verified(name)
    store.put_manifest(name, encoded, verified=True)
    assert store.is_verified(name)
    store.put_manifest(name, encoded, verified=False)
    assert store.is_verified(name)


def test_records_by_store_hash_the_last_counts(store: BlockStore) -> None:
    assert store.record(RECORD.store_hash) is None
    store.put_record(RECORD)
    later = replace(RECORD, manifest=ManifestId(b"n" * 32))
    store.put_record(later)
    store.put_record(later)
    other = replace(RECORD, store_path="/nix/store/0rqy849vwr418yra085l8qlnpnl6859m-a")
    store.put_record(other)
    assert store.record(RECORD.store_hash) == later
    assert list(store.records()) == [other, later]


@pytest.mark.parametrize("one", [True, False])
def test_only_verified_bytes_come_out(store: BlockStore, one: bool) -> None:
    """A block that rotted is reported once, and may be put again."""
    store.put([NOISE])
    store.flush()
    if isinstance(store, PackStore):
        row = store._index.database.execute("SELECT pack, at FROM blocks").fetchone()
        with store._pack_path(row[0]).open("r+b") as file:
            file.seek(row[1] + 50)
            file.write(b"rot")
    else:
        assert isinstance(store, MemoryStore)
        held = store.blocks[NOISE.id]
        store.blocks[NOISE.id] = replace(held, payload=b"rot" + held.payload[3:])
    with pytest.raises(BlockCorrupt) as caught:
        store.get(NOISE.id) if one else store.get_many([NOISE.id])
    assert caught.value.wanted == NOISE.id
    assert store.has([NOISE.id]) == [False]
    store.put([NOISE])
    assert store.get(NOISE.id).data == NOISE.data
