"""The store on disk: append-only packs and an SQLite index that can be rebuilt from them.

    DIR/lock              held (flock) by the one process that writes; its pid inside
    DIR/packs/NNNN.pack   records in order of arrival (see pack_format); a new file after 1 GiB
    DIR/index.sqlite      where each thing is, and how far each pack is indexed

Order of a batch: append, fdatasync, commit the index. After a crash the packs may be longer than
the index says: whole records there are taken in, a torn tail is cut. Between batches, what was put
is found through the uncommitted index transaction, so it is readable at once. A batch that cannot
be made durable is dropped whole. Nothing that a peer sent ever becomes a file name.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from .block import Block, Codec, Encoded, encode, verify
from .digest import BlockId, ManifestId, manifest_id
from .disk import Disk
from .errors import BlockCorrupt, BlockMissing, RecordError, StoreBusy, StoreError, StoreFull
from .pack_format import MAGIC, Header, RecordKind, scan, write_header
from .pack_index import Index, Place, runs
from .record import PathRecord, decode_record, encode_record

log = logging.getLogger(__name__)

BATCH_BYTES = 8 * 1024 * 1024
PACK_BYTES_MAX = 1024 * 1024 * 1024
_NO_ID = bytes(32)


@dataclass(frozen=True, slots=True)
class StoreStats:
    blocks: int
    block_bytes_stored: int
    block_bytes_plain: int
    manifests: int
    records: int


class PackStore:
    """Thread-safe. Open with `PackStore.open`; `close` flushes."""

    def __init__(self, directory: Path, codec: Codec, read_only: bool, disk: Disk) -> None:
        self._directory = directory
        self._disk = disk
        self._codec = codec
        self._read_only = read_only
        self._guard = threading.RLock()
        self._lock_file = -1
        self._files: dict[int, int] = {}
        self._pack = 0
        self._end = 0
        self._unsynced = 0

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        codec: Codec = Codec.ZSTD,
        read_only: bool = False,
        disk: Disk | None = None,
    ) -> PackStore:
        """Raises StoreBusy if another process writes here, StoreError if it cannot be used."""
        store = cls(directory, codec, read_only, disk or Disk())
        try:
            store._open()
        except (OSError, sqlite3.Error) as error:
            store._release()
            raise StoreError(f"cannot use the store {directory}: {error}") from error
        except StoreError:
            store._release()
            raise
        return store

    # -- opening -----------------------------------------------------------------------------

    def _open(self) -> None:
        index = self._directory / "index.sqlite"
        if self._read_only:
            if not index.exists():
                raise StoreError(f"there is no store at {self._directory}; name one with --store")
            self._index = Index(index, read_only=True)
            return
        for directory in (self._directory, self._directory / "packs"):
            self._disk.make_directory(directory)
        self._take_lock()
        try:
            self._index = Index(index, read_only=False)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # no room, no permission: nothing is wrong with what the file says
            log.warning("the index of %s is damaged (%s); rebuilding it", self._directory, error)
            for suffix in ("-wal", "-shm", ""):
                damaged = Path(f"{index}{suffix}")
                if damaged.exists():
                    self._disk.rename(damaged, Path(f"{damaged}.damaged"))
            self._index = Index(index, read_only=False)
        self._catch_up()

    def _take_lock(self) -> None:
        path = self._directory / "lock"
        self._lock_file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock_file, 32, 0).decode(errors="replace").strip() or "unknown"
            raise StoreBusy(self._directory, holder) from None
        os.ftruncate(self._lock_file, 0)
        os.pwrite(self._lock_file, f"{os.getpid()}\n".encode(), 0)

    def _catch_up(self) -> None:
        """Index what the packs hold beyond the index, cut torn tails, forget lost packs."""
        known = self._index.packs()
        here = sorted(
            int(path.stem)
            for path in (self._directory / "packs").glob("*.pack")
            if path.stem.isdigit()
        )
        self._index.begin()
        for pack in sorted(set(known) - set(here)):
            log.warning("pack %04d is gone; its blocks are forgotten", pack)
            self._index.forget_pack(pack)
        for pack in here:
            self._index_pack(pack, known.get(pack, 0))
        self._disk.commit(self._index)
        self._pack = here[-1] if here else 0
        if not here:
            self._new_pack()
        self._end = os.fstat(self._file(self._pack)).st_size

    def _index_pack(self, pack: int, indexed: int) -> None:
        path = self._pack_path(pack)
        size = path.stat().st_size
        if size == indexed and size > 0:
            return
        if indexed > size:
            log.warning("pack %04d lost its last %d bytes", pack, indexed - size)
            self._index.forget_pack(pack)
            indexed = 0
        writable = self._file(pack)
        with path.open("rb") as file:
            if indexed == 0 and file.read(len(MAGIC)) != MAGIC:
                if size > len(MAGIC):
                    raise StoreError(f"{path} is not a pack; move it out of the store")
                self._disk.truncate(writable, 0)
                self._disk.write(writable, MAGIC, 0)
                size = len(MAGIC)
            end = max(indexed, len(MAGIC))
            for at, header, payload in scan(file, end):
                self._replay(pack, at, header, payload)
                end = at + header.stored
        if end < size:
            log.warning("cut a torn tail of %d bytes off pack %04d", size - end, pack)
            self._disk.truncate(writable, end)
        self._disk.sync(writable)
        self._index.set_indexed(pack, end)

    def _replay(self, pack: int, at: int, header: Header, payload: bytes) -> None:
        encoded = Encoded(header.codec, header.length, payload)
        if header.kind is RecordKind.BLOCK:
            try:
                verify(BlockId(header.id), encoded)
            except BlockCorrupt as error:
                log.warning("skipped in pack %04d: %s", pack, error)
                return
            self._index.add_block(BlockId(header.id), pack, at, encoded)
        elif header.kind is RecordKind.MANIFEST:
            if manifest_id(payload) == header.id:
                self._index.add_manifest(ManifestId(header.id), pack, at, len(payload))
        elif header.kind is RecordKind.VERIFIED:
            self._index.mark_verified(ManifestId(header.id))
        elif header.kind is RecordKind.FORGOTTEN:
            self._index.forget_block(BlockId(header.id))
        else:
            try:
                record = decode_record(payload)
            except RecordError as error:
                log.warning("skipped in pack %04d: %s", pack, error)
                return
            self._index.add_record(record.store_hash, record.store_path, payload)

    # -- BlockStore --------------------------------------------------------------------------

    def has(self, ids: Iterable[BlockId]) -> list[bool]:
        wanted = list(ids)
        with self._guard:
            held = self._index.held(wanted)
        return [name in held for name in wanted]

    def read(self, wanted: BlockId) -> Encoded:
        with self._guard:
            place = self._index.places([wanted]).get(wanted)
            if place is None:
                raise BlockMissing(wanted)
            file = self._file(place.pack)
        payload = os.pread(file, place.stored, place.at)
        return Encoded(Codec(place.codec), place.length, payload)

    def get(self, wanted: BlockId) -> Block:
        return self._verified(wanted, self.read(wanted))

    def get_many(self, ids: Sequence[BlockId], buffer: bytearray | None = None) -> list[Block]:
        with self._guard:
            places = self._index.places(ids)
        room = memoryview(b"" if buffer is None else buffer)
        blocks: list[Block] = []
        for run in runs(ids, places):
            data, room = self._read_run(run, room)
            for wanted, place in run:
                stored = data[place.at - run[0][1].at :][: place.stored]
                blocks.append(
                    self._verified(wanted, Encoded(Codec(place.codec), place.length, stored))
                )
        return blocks

    def _read_run(
        self, run: list[tuple[BlockId, Place]], room: memoryview
    ) -> tuple[memoryview, memoryview]:
        """What holds the neighbours of a run, read at once, and the room that is left. A short
        read shows as corrupt blocks."""
        start, size = run[0][1].at, run[-1][1].at + run[-1][1].stored - run[0][1].at
        with self._guard:
            file = self._file(run[0][1].pack)
        if size > len(room):
            return memoryview(os.pread(file, size, start)), room
        count = os.preadv(file, [room[:size]], start)
        return room[:count], room[size:]

    def _verified(self, wanted: BlockId, encoded: Encoded) -> Block:
        """A rotten block is forgotten, so that it may be put again."""
        try:
            return verify(wanted, encoded)
        except BlockCorrupt:
            if not self._read_only:
                with suppress(StoreError):  # that it is rotten is what must be said
                    self.forget(wanted)
            raise

    def put(self, blocks: Iterable[Block]) -> None:
        several = list(blocks)
        fresh = [
            (block, block.encoded if self._fits(block.encoded) else encode(block.data, self._codec))
            for block, held in zip(several, self.has([b.id for b in several]), strict=True)
            if not held
        ]
        with self._batch():
            for block, encoded in fresh:
                assert encoded is not None
                pack, at = self._append(RecordKind.BLOCK, block.id, encoded)
                self._index.add_block(block.id, pack, at, encoded)

    def _fits(self, encoded: Encoded | None) -> bool:
        return encoded is not None and (encoded.codec is self._codec or self._codec is Codec.ZSTD)

    def forget(self, wanted: BlockId) -> None:
        with self._batch():
            if self.has([wanted])[0]:
                self._append(RecordKind.FORGOTTEN, wanted, Encoded(Codec.RAW, 0, b""))
                self._index.forget_block(wanted)

    def put_manifest(self, manifest: ManifestId, encoded: bytes, *, verified: bool) -> None:
        with self._batch():
            if self._index.manifest(manifest) is None:
                whole = Encoded(Codec.RAW, len(encoded), encoded)
                pack, at = self._append(RecordKind.MANIFEST, manifest, whole)
                self._index.add_manifest(manifest, pack, at, len(encoded))
            if verified and not self.is_verified(manifest):
                self._append(RecordKind.VERIFIED, manifest, Encoded(Codec.RAW, 0, b""))
                self._index.mark_verified(manifest)

    def manifest(self, wanted: ManifestId) -> bytes | None:
        with self._guard:
            row = self._index.manifest(wanted)
            if row is None:
                return None
            file = self._file(row[0])
        encoded = os.pread(file, row[2], row[1])
        return encoded if manifest_id(encoded) == wanted else None

    def is_verified(self, wanted: ManifestId) -> bool:
        with self._guard:
            row = self._index.manifest(wanted)
        return row is not None and row[3]

    def put_record(self, record: PathRecord) -> None:
        encoded = encode_record(record)
        with self._batch():
            if self._index.record(record.store_hash) == encoded:
                return
            self._append(RecordKind.PATH, _NO_ID, Encoded(Codec.RAW, len(encoded), encoded))
            self._index.add_record(record.store_hash, record.store_path, encoded)

    def record(self, store_hash: str) -> PathRecord | None:
        with self._guard:
            encoded = self._index.record(store_hash)
        return None if encoded is None else decode_record(encoded)

    def records(self) -> Iterator[PathRecord]:
        with self._guard:
            rows = self._index.records()
        return (decode_record(row) for row in rows)

    def flush(self) -> None:
        with self._batch():
            if self._index.in_transaction:
                self._commit()

    def close(self) -> None:
        with self._guard:
            try:
                if not self._read_only:
                    self.flush()
            finally:
                self._release()

    def stats(self) -> StoreStats:
        with self._guard:
            return StoreStats(*self._index.count())

    def verify(self) -> Iterator[BlockId]:
        """The ids of blocks that are rotten. Changes nothing; may run beside the writer."""
        with self._guard:
            names = self._index.block_ids()
        for name in names:
            try:
                verify(name, self.read(name))
            except BlockMissing:
                continue
            except (BlockCorrupt, OSError):
                yield name

    # -- writing -----------------------------------------------------------------------------

    @contextmanager
    def _batch(self) -> Iterator[None]:
        """Everything that writes does so in here. Raises StoreFull, or StoreError."""
        with self._guard:
            try:
                yield
                if self._unsynced >= BATCH_BYTES:
                    self._commit()
            except (OSError, sqlite3.Error) as error:
                self._retreat(error)

    def _append(self, kind: RecordKind, name: bytes, encoded: Encoded) -> tuple[int, int]:
        assert not self._read_only
        record = write_header(kind, name, encoded) + encoded.payload
        if self._end > PACK_BYTES_MAX:
            self._commit()
            self._new_pack()
        self._index.begin()
        self._disk.write(self._file(self._pack), record, self._end)
        at = self._end + len(record) - len(encoded.payload)
        self._end += len(record)
        self._unsynced += len(record)
        return self._pack, at

    def _commit(self) -> None:
        self._index.begin()
        self._disk.sync(self._file(self._pack))
        self._index.set_indexed(self._pack, self._end)
        self._disk.commit(self._index)
        self._unsynced = 0

    def _retreat(self, error: Exception) -> NoReturn:
        """Drop the batch that could not be made durable; all acknowledged before stays."""
        self._index.rollback()
        self._end = self._index.packs().get(self._pack, len(MAGIC))
        self._unsynced = 0
        # Also where cutting the pack fails: what is written next lies over what is dropped.
        with suppress(OSError):
            self._disk.truncate(self._file(self._pack), self._end)
        full = isinstance(error, sqlite3.Error) and "full" in str(error)
        if full or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(
                f"no room left for the store {self._directory}; free some space, nothing that was "
                "acknowledged is lost"
            ) from error
        raise StoreError(f"cannot write to the store {self._directory}: {error}") from error

    def _new_pack(self) -> None:
        """The next one, empty. The old one stays in use where this fails."""
        number = self._pack + 1
        file = self._disk.create(self._pack_path(number))
        try:
            self._disk.truncate(file, 0)
            self._disk.write(file, MAGIC, 0)
            self._disk.sync(file)
            self._disk.sync_directory(self._directory / "packs")
            self._index.set_indexed(number, len(MAGIC))
        except (OSError, sqlite3.Error):
            os.close(file)
            raise
        self._files[number] = file
        self._pack, self._end = number, len(MAGIC)

    # -- files -------------------------------------------------------------------------------

    def _pack_path(self, pack: int) -> Path:
        return self._directory / "packs" / f"{pack:04d}.pack"

    def _file(self, pack: int) -> int:
        if pack not in self._files:
            mode = os.O_RDONLY if self._read_only else os.O_RDWR
            self._files[pack] = os.open(self._pack_path(pack), mode | os.O_CLOEXEC)
        return self._files[pack]

    def _release(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        if hasattr(self, "_index"):
            self._index.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1
