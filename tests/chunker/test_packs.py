"""The store on disk: crashes, torn tails, lost indexes, full disks, two processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import chunker.packs
from chunker.block import Block, Codec
from chunker.digest import BlockId, manifest_id
from chunker.errors import BlockMissing, StoreBusy, StoreError
from chunker.packs import PackStore
from tests.chunker.test_record import RECORD
from tests.golden.samples import sample_bytes

CRASH_ROUNDS = 12
BLOCKS = [Block.of(sample_bytes(40_000, f"block {number}")) for number in range(20)]


def pack(store: Path) -> Path:
    return store / "packs" / "0001.pack"


def filled(path: Path) -> None:
    store = PackStore.open(path)
    store.put(BLOCKS)
    store.put_manifest(manifest_id(b"m"), b"m", verified=True)
    store.put_record(RECORD)
    store.close()


def check_filled(store: PackStore) -> None:
    assert all(store.has([block.id for block in BLOCKS]))
    assert [store.get(block.id).data for block in BLOCKS] == [block.data for block in BLOCKS]
    assert store.manifest(manifest_id(b"m")) == b"m"
    assert store.is_verified(manifest_id(b"m"))
    assert store.record(RECORD.store_hash) == RECORD


def test_all_is_there_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path)
    store = PackStore.open(tmp_path)
    check_filled(store)
    store.close()


@pytest.mark.parametrize("damage", ["lost", "garbage", "empty"])
def test_the_index_is_rebuilt_from_the_packs(tmp_path: Path, damage: str) -> None:
    filled(tmp_path)
    index = tmp_path / "index.sqlite"
    for suffix in ("-wal", "-shm"):
        Path(f"{index}{suffix}").unlink(missing_ok=True)
    if damage == "lost":
        index.unlink()
    else:
        index.write_bytes(b"" if damage == "empty" else b"garbage" * 1000)
    store = PackStore.open(tmp_path)
    check_filled(store)
    store.close()


def test_forgotten_blocks_stay_forgotten_when_the_index_is_rebuilt(tmp_path: Path) -> None:
    filled(tmp_path)
    store = PackStore.open(tmp_path)
    store.forget(BLOCKS[0].id)
    store.close()
    (tmp_path / "index.sqlite").unlink()
    store = PackStore.open(tmp_path)
    assert store.has([BLOCKS[0].id, BLOCKS[1].id]) == [False, True]
    store.close()


@pytest.mark.parametrize("lost", [1, 20, 100, 39_999, 40_020, 60_000])
def test_a_torn_tail_is_cut(tmp_path: Path, lost: int) -> None:
    """The pack is longer than the index says, and its last record is not whole."""
    store = PackStore.open(tmp_path)
    store.put(BLOCKS[:5])
    store.flush()
    shutil.copytree(tmp_path, tmp_path / "crashed")
    store.put(BLOCKS[5:10])
    store.close()
    data = pack(tmp_path).read_bytes()
    pack(tmp_path / "crashed").write_bytes(data[:-lost])
    store = PackStore.open(tmp_path / "crashed")
    whole = 5 + 5 - (1 if lost <= 40_046 else 2)
    assert store.has([block.id for block in BLOCKS[:10]]) == [True] * whole + [False] * (10 - whole)
    store.put(BLOCKS)
    assert [store.get(block.id).data for block in BLOCKS] == [block.data for block in BLOCKS]
    store.close()


def test_garbage_after_the_end_is_cut(tmp_path: Path) -> None:
    filled(tmp_path)
    size = pack(tmp_path).stat().st_size
    with pack(tmp_path).open("ab") as file:
        file.write(bytes(range(256)) * 40)
    store = PackStore.open(tmp_path)
    check_filled(store)
    store.close()
    assert pack(tmp_path).stat().st_size == size


def test_a_lost_pack_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunker.packs, "PACK_BYTES_MAX", 200_000)
    filled(tmp_path)
    assert len(list((tmp_path / "packs").iterdir())) > 2
    pack(tmp_path).unlink()
    store = PackStore.open(tmp_path)
    held = store.has([block.id for block in BLOCKS])
    assert not held[0] and held[-1]
    with pytest.raises(BlockMissing):
        store.get(BLOCKS[0].id)
    store.close()


WRITER = """
import sys
from pathlib import Path
from chunker.block import Block
from chunker.packs import PackStore
from tests.golden.samples import sample_bytes
store = PackStore.open(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    blocks = [Block.of(sample_bytes(3000, f"{sys.argv[2]} {n}")) for n in range(number, number + 5)]
    store.put(blocks)
    store.flush()
    for block in blocks:
        sys.stdout.buffer.write(block.id)
    sys.stdout.buffer.flush()
    number += 5
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    chance = random.Random(1)
    acknowledged: list[bytes] = []
    root = Path(__file__).parents[2]
    for number in range(CRASH_ROUNDS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(number * 1_000_000)],
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)},
        )  # fmt: skip
        assert writer.stdout is not None
        acknowledged.append(writer.stdout.read(32))
        for _ in range(chance.randrange(400)):
            acknowledged.append(writer.stdout.read(32))
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read()
        acknowledged += [rest[at : at + 32] for at in range(0, len(rest) // 32 * 32, 32)]
        writer.wait()
        writer.stdout.close()
        store = PackStore.open(tmp_path)
        assert all(store.has([BlockId(name) for name in acknowledged]))
        assert list(store.verify()) == []
        store.close()
    assert len(acknowledged) > 5 * CRASH_ROUNDS


def test_two_processes_on_one_store(tmp_path: Path) -> None:
    store = PackStore.open(tmp_path)
    with pytest.raises(StoreBusy, match=f"in use by process {os.getpid()}; stop"):
        PackStore.open(tmp_path)
    store.close()
    PackStore.open(tmp_path).close()


def test_reading_beside_the_writer_changes_nothing(tmp_path: Path) -> None:
    filled(tmp_path)
    writer = PackStore.open(tmp_path)
    reader = PackStore.open(tmp_path, read_only=True)
    check_filled(reader)
    at = reader._index.database.execute(
        "SELECT at FROM blocks WHERE id = ?", (BLOCKS[3].id,)
    ).fetchone()
    with pack(tmp_path).open("r+b") as file:
        file.seek(at[0] + 7)
        file.write(b"rot")
    before = pack(tmp_path).read_bytes()
    assert list(reader.verify()) == [BLOCKS[3].id]
    assert pack(tmp_path).read_bytes() == before
    reader.close()
    writer.close()


def test_a_directory_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        PackStore.open(tmp_path / "none", read_only=True)
    (tmp_path / "packs").mkdir()
    pack(tmp_path).write_bytes(b"something else altogether")
    with pytest.raises(StoreError, match="is not a pack"):
        PackStore.open(tmp_path)
    assert pack(tmp_path).read_bytes() == b"something else altogether"


def test_blocks_are_compressed_at_rest_unless_raw(tmp_path: Path) -> None:
    text = Block.of(b"compressible " * 20_000)
    sizes = {}
    for codec in Codec:
        store = PackStore.open(tmp_path / codec.name, codec=codec)
        store.put([text])
        sizes[codec] = store.stats().block_bytes_stored
        assert store.stats().block_bytes_plain == len(text.data)
        store.close()
    assert sizes[Codec.RAW] == len(text.data)
    assert sizes[Codec.ZSTD] < len(text.data) / 100


def test_permissions_are_the_owners_alone(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    for path in (tmp_path / "store", tmp_path / "store" / "packs"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert pack(tmp_path / "store").stat().st_mode & 0o777 == 0o600


def test_a_rotten_record_is_not_taken_in(tmp_path: Path) -> None:
    """When the index is rebuilt, a block whose bytes rotted is left out; the others are not."""
    filled(tmp_path)
    store = PackStore.open(tmp_path, read_only=True)
    row = store._index.database.execute(
        "SELECT at FROM blocks WHERE id = ?", (BLOCKS[2].id,)
    ).fetchone()
    store.close()
    with pack(tmp_path).open("r+b") as file:
        file.seek(row[0] + 9)
        file.write(b"rot")
    (tmp_path / "index.sqlite").unlink()
    store = PackStore.open(tmp_path)
    assert store.has([BLOCKS[2].id, BLOCKS[3].id]) == [False, True]
    store.close()
