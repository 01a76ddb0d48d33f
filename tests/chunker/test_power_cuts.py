"""A disk that fails, or a machine that stops, at every single operation of a store's work.

The work is an ingest of several NARs over several packs, with a block forgotten on the way, or the
rebuild of an index. After each cut the store is opened again: everything that was acknowledged is
there, every manifest that is marked verified can be rebuilt from it, and the same work done again
ends in the same store. A power cut loses, besides, what was written but not synced.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import chunker.packs
from chunker.block import Block, Codec
from chunker.digest import BlockId, ManifestId
from chunker.disk import Committing, Disk
from chunker.errors import StoreError, StoreFull
from chunker.ingest import Ingest
from chunker.manifest import decode_manifest
from chunker.packs import PackStore
from chunker.rebuild import rebuild
from tests.chunker.test_record import RECORD
from tests.golden.samples import file_nar, sample_bytes

NARS = [file_nar(sample_bytes(size, f"nar {size}")) for size in (200_000, 900_000, 30_000, 500_000)]
STRAY = Block.of(sample_bytes(60_000, "stray"))


class PowerCut(BaseException):
    """Nothing runs after it: not even a handler of OSError."""


class CuttingDisk(Disk):
    """The n-th operation fails half done with `error`, once; or (None) the machine stops there."""

    def __init__(self, at: int = -1, error: int | None = None, seed: int = 0) -> None:
        self.operations = 0
        self.synced: dict[str, int] = {}
        """How long each file was when it was last made durable."""
        self._at = at
        self._error = error
        self._stopped = False
        self._chance = random.Random(seed)

    def _before(self, what: Callable[[], object] | None = None) -> None:
        if self._stopped:
            raise PowerCut
        self.operations += 1
        if self.operations - 1 != self._at:
            return
        if what is not None:
            what()
        if self._error is not None:
            raise OSError(self._error, os.strerror(self._error))
        self._stopped = True
        raise PowerCut

    def make_directory(self, path: Path) -> None:
        self._before()
        super().make_directory(path)

    def create(self, path: Path) -> int:
        self._before()
        return super().create(path)

    def write(self, file: int, data: bytes, at: int) -> None:
        half = data[: self._chance.randrange(len(data))]
        self._before(lambda: super(CuttingDisk, self).write(file, half, at))
        super().write(file, data, at)

    def truncate(self, file: int, length: int) -> None:
        self._before()
        super().truncate(file, length)
        name = os.readlink(f"/proc/self/fd/{file}")
        self.synced[name] = min(self.synced.get(name, 0), length)

    def rename(self, source: Path, target: Path) -> None:
        self._before()
        super().rename(source, target)

    def sync(self, file: int) -> None:
        self._before()
        super().sync(file)
        self.synced[os.readlink(f"/proc/self/fd/{file}")] = os.fstat(file).st_size

    def sync_directory(self, path: Path) -> None:
        self._before()
        super().sync_directory(path)

    def commit(self, database: Committing) -> None:
        self._before()
        super().commit(database)

    def lose_what_was_not_synced(self, directory: Path) -> None:
        """Some of it: a disk may have written any part on its own."""
        for path in (directory / "packs").glob("*.pack"):
            size, durable = path.stat().st_size, self.synced.get(str(path), 0)
            if size > durable:
                kept = self._chance.randrange(durable, size + 1)
                os.truncate(path, kept)
                if kept > durable and self._chance.random() < 0.3:
                    at = self._chance.randrange(durable, kept)
                    with path.open("r+b") as file:
                        file.seek(at)
                        file.write(bytes(min(4096, kept - at)))


class Acknowledged:
    def __init__(self) -> None:
        self.blocks: set[BlockId] = set()
        self.manifests: dict[ManifestId, bytes] = {}
        self.records = 0


def work(store: PackStore, said: Acknowledged) -> None:
    """Raises whatever the disk does to it."""
    for number, nar in enumerate(NARS):
        ingest = Ingest(store, ())
        ingest.feed(nar)
        name, manifest = ingest.finish_unchecked()
        store.put_record(record(number, name))
        if number == 1:
            store.put([STRAY])
            store.forget(STRAY.id)
        store.flush()
        said.blocks.update(manifest.blocks)
        said.manifests[name] = nar
        said.records = number + 1


def record(number: int, manifest: ManifestId):  # type: ignore[no-untyped-def]
    path = f"/nix/store/{'0123456789abcdfghijklmnpqrsvwxyz'[number] * 32}-n{number}"
    return replace(RECORD, store_path=path, manifest=manifest)


def check(store: PackStore, said: Acknowledged) -> None:
    assert all(store.has(said.blocks))
    for name, nar in said.manifests.items():
        assert store.is_verified(name)
        encoded = store.manifest(name)
        assert encoded is not None
        assert b"".join(rebuild(decode_manifest(encoded), (), store)) == nar
    assert len(list(store.records())) >= said.records
    for held in store.records():
        if store.is_verified(held.manifest):
            encoded = store.manifest(held.manifest)
            assert encoded is not None
            assert all(store.has(decode_manifest(encoded).blocks))
    assert list(store.verify()) == []


def rebuild_index(directory: Path) -> None:
    """Both ways in which an index is made anew: it is lost, or it is garbage."""
    for suffix in ("-wal", "-shm"):
        Path(f"{directory}/index.sqlite{suffix}").unlink(missing_ok=True)
    (directory / "index.sqlite").write_bytes(b"garbage" * 1000)


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few NARs fill several packs and several batches."""
    monkeypatch.setattr(chunker.packs, "PACK_BYTES_MAX", 600_000)
    monkeypatch.setattr(chunker.packs, "BATCH_BYTES", 150_000)


def operations_of(directory: Path) -> int:
    disk = CuttingDisk()
    store = PackStore.open(directory, disk=disk)
    said = Acknowledged()
    work(store, said)
    store.close()
    assert said.records == len(NARS)
    return disk.operations


def test_a_power_cut_at_every_operation_of_an_ingest(tmp_path: Path) -> None:
    operations = operations_of(tmp_path / "whole")
    assert operations > 40
    for at in range(operations):
        directory, disk, said = tmp_path / f"at{at}", CuttingDisk(at, seed=at), Acknowledged()
        stopping = PackStore(directory, Codec.ZSTD, False, disk)
        with suppress(PowerCut):
            stopping._open()
            work(stopping, said)
            stopping.flush()
        stopping._release()  # the process is gone; its descriptors and its lock go with it
        disk.lose_what_was_not_synced(directory)
        store = PackStore.open(directory)
        check(store, said)
        work(store, said)
        check(store, said)
        store.close()
        shutil.rmtree(directory)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_every_operation_of_an_ingest(tmp_path: Path, error: int) -> None:
    """The store says so in its own words, keeps what it acknowledged, and goes on afterwards."""
    operations = operations_of(tmp_path / "whole")
    failures = 0
    for at in range(operations):
        directory, said = tmp_path / f"at{at}", Acknowledged()
        disk = CuttingDisk(at, error, seed=at)
        try:
            store = PackStore.open(directory, disk=disk)
        except StoreError as failure:
            assert "cannot use the store" in str(failure)
            store = PackStore.open(directory)
        try:
            work(store, said)
        except StoreError as failure:
            failures += 1
            assert isinstance(failure, StoreFull) is (error == errno.ENOSPC)
        check(store, said)
        work(store, said)
        check(store, said)
        store.close()
        (directory / "index.sqlite").unlink()  # and the packs alone tell the same
        store = PackStore.open(directory)
        check(store, said)
        store.close()
        shutil.rmtree(directory)
    assert failures > 30


@pytest.mark.parametrize("error", [None, errno.ENOSPC])
def test_a_cut_at_every_operation_of_an_index_rebuild(tmp_path: Path, error: int | None) -> None:
    said = Acknowledged()
    store = PackStore.open(tmp_path / "whole")
    work(store, said)
    store.close()
    with (tmp_path / "whole" / "packs" / "0002.pack").open("ab") as file:
        file.write(b"torn")
    rebuild_index(tmp_path / "whole")
    at, done = 0, False
    while not done:
        directory, disk = tmp_path / f"at{at}", CuttingDisk(at, error, seed=at)
        shutil.copytree(tmp_path / "whole", directory)
        store = PackStore(directory, Codec.ZSTD, False, disk)
        try:
            store._open()
            done = True
        except (PowerCut, OSError):
            pass
        finally:
            store._release()
        store = PackStore.open(directory)
        check(store, said)
        store.close()
        shutil.rmtree(directory)
        at += 1
    assert at > 5
