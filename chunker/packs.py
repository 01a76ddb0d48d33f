"""The store on disk: append-only packs and an SQLite index that can be rebuilt from them.

    DIR/lock              held (flock) by the one process that writes; its pid inside
    DIR/packs/NNNN.pack   records in order of arrival (see pack_format); a new file after 1 GiB
    DIR/index.sqlite      where each thing is, and how far each pack is indexed

Order of a batch: append, fdatasync, commit the index. After a crash the packs may be longer than
the index says: whole records there are taken in, a torn tail is cut. Between batches, what was put
is found through the uncommitted index transaction, so it is readable at once. Nothing that a peer
sent ever becomes a file name.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .block import Block, Codec, Encoded, encode, verify
from .digest import BlockId, ManifestId, manifest_id
from .errors import BlockCorrupt, BlockMissing, RecordError, StoreBusy, StoreError, StoreFull
from .pack_format import MAGIC, Header, RecordKind, scan, write_header
from .record import PathRecord, decode_record, encode_record, store_hash

log = logging.getLogger(__name__)

BATCH_BYTES = 8 * 1024 * 1024
PACK_BYTES_MAX = 1024 * 1024 * 1024
SQL_VARIABLES_MAX = 500
_NO_ID = bytes(32)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS packs (pack INTEGER PRIMARY KEY, indexed INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (id BLOB PRIMARY KEY, pack INTEGER NOT NULL,
    at INTEGER NOT NULL, stored INTEGER NOT NULL, length INTEGER NOT NULL,
    codec INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS manifests (id BLOB PRIMARY KEY, pack INTEGER NOT NULL,
    at INTEGER NOT NULL, stored INTEGER NOT NULL, verified INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS paths (hash TEXT PRIMARY KEY, path TEXT NOT NULL, record BLOB NOT NULL)
    WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class StoreStats:
    blocks: int
    block_bytes_stored: int
    block_bytes_plain: int
    manifests: int
    records: int


class PackStore:
    """Thread-safe. Open with `PackStore.open`; `close` flushes."""

    def __init__(self, directory: Path, codec: Codec, read_only: bool) -> None:
        self._directory = directory
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
        cls, directory: Path, *, codec: Codec = Codec.ZSTD, read_only: bool = False
    ) -> PackStore:
        """Raises StoreBusy if another process writes here, StoreError if it cannot be used."""
        store = cls(directory, codec, read_only)
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
            self._database = sqlite3.connect(
                f"file:{index}?mode=ro", uri=True, check_same_thread=False, isolation_level=None
            )
            self._database.execute("SELECT count(*) FROM packs")
            return
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self._directory / "packs").mkdir(exist_ok=True, mode=0o700)
        self._take_lock()
        try:
            self._connect(index)
        except sqlite3.DatabaseError as error:
            log.warning("the index of %s is damaged (%s); rebuilding it", self._directory, error)
            self._database.close()
            for suffix in ("", "-wal", "-shm"):
                damaged = Path(f"{index}{suffix}")
                if damaged.exists():
                    damaged.rename(f"{damaged}.damaged")
            self._connect(index)
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

    def _connect(self, index: Path) -> None:
        self._database = sqlite3.connect(index, check_same_thread=False, isolation_level=None)
        check = self._database.execute("PRAGMA quick_check(1)").fetchone()
        if check != ("ok",):
            raise sqlite3.DatabaseError(str(check))
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)

    def _catch_up(self) -> None:
        """Index what the packs hold beyond the index, cut torn tails, forget lost packs."""
        known = dict(self._database.execute("SELECT pack, indexed FROM packs"))
        here = sorted(
            int(path.stem)
            for path in (self._directory / "packs").glob("*.pack")
            if path.stem.isdigit()
        )
        self._database.execute("BEGIN")
        for pack in sorted(set(known) - set(here)):
            log.warning("pack %04d is gone; its blocks are forgotten", pack)
            for table in ("blocks", "manifests", "packs"):
                self._database.execute(f"DELETE FROM {table} WHERE pack = ?", (pack,))
        for pack in here:
            self._index_pack(pack, known.get(pack, 0))
        self._database.execute("COMMIT")
        self._pack = here[-1] if here else 0
        if not here:
            self._new_pack()
        self._end = os.fstat(self._file(self._pack)).st_size

    def _index_pack(self, pack: int, indexed: int) -> None:
        path = self._pack_path(pack)
        size = path.stat().st_size
        if size == indexed:
            return
        with path.open("r+b") as file:
            if indexed == 0 and file.read(len(MAGIC)) != MAGIC:
                if size > len(MAGIC):
                    raise StoreError(f"{path} is not a pack; move it out of the store")
                file.truncate(0)
                file.write(MAGIC)
                size = len(MAGIC)
            end = min(max(indexed, len(MAGIC)), size)
            for at, header, payload in scan(file, end):
                self._replay(pack, at, header, payload)
                end = at + header.stored
            if end < size:
                log.warning("cut a torn tail of %d bytes off pack %04d", size - end, pack)
                file.truncate(end)
        self._set_indexed(pack, end)

    def _replay(self, pack: int, at: int, header: Header, payload: bytes) -> None:
        encoded = Encoded(header.codec, header.length, payload)
        if header.kind is RecordKind.BLOCK:
            try:
                verify(BlockId(header.id), encoded)
            except BlockCorrupt as error:
                log.warning("skipped in pack %04d: %s", pack, error)
                return
            self._index_block(BlockId(header.id), pack, at, encoded)
        elif header.kind is RecordKind.MANIFEST:
            if manifest_id(payload) == header.id:
                self._index_manifest(ManifestId(header.id), pack, at, len(payload))
        elif header.kind is RecordKind.VERIFIED:
            self._index_verified(ManifestId(header.id))
        elif header.kind is RecordKind.FORGOTTEN:
            self._database.execute("DELETE FROM blocks WHERE id = ?", (header.id,))
        else:
            try:
                record = decode_record(payload)
            except RecordError as error:
                log.warning("skipped in pack %04d: %s", pack, error)
                return
            self._index_record(record, payload)

    # -- BlockStore --------------------------------------------------------------------------

    def has(self, ids: Iterable[BlockId]) -> list[bool]:
        wanted = list(ids)
        held: set[bytes] = set()
        with self._guard:
            for at in range(0, len(wanted), SQL_VARIABLES_MAX):
                part = wanted[at : at + SQL_VARIABLES_MAX]
                marks = ",".join("?" * len(part))
                rows = self._database.execute(f"SELECT id FROM blocks WHERE id IN ({marks})", part)
                held.update(row[0] for row in rows)
        return [name in held for name in wanted]

    def read(self, wanted: BlockId) -> Encoded:
        with self._guard:
            row = self._database.execute(
                "SELECT pack, at, stored, length, codec FROM blocks WHERE id = ?", (wanted,)
            ).fetchone()
            if row is None:
                raise BlockMissing(wanted)
            pack, at, stored, length, codec = row
            file = self._file(pack)
        payload = os.pread(file, stored, at)
        return Encoded(Codec(codec), length, payload)

    def get(self, wanted: BlockId) -> Block:
        try:
            return verify(wanted, self.read(wanted))
        except BlockCorrupt:
            if not self._read_only:
                self.forget(wanted)
            raise

    def put(self, blocks: Iterable[Block]) -> None:
        several = list(blocks)
        fresh = [
            (block, block.encoded if self._fits(block.encoded) else encode(block.data, self._codec))
            for block, held in zip(several, self.has([b.id for b in several]), strict=True)
            if not held
        ]
        with self._guard:
            for block, encoded in fresh:
                assert encoded is not None
                pack, at = self._append(RecordKind.BLOCK, block.id, encoded)
                self._index_block(block.id, pack, at, encoded)
            self._maybe_flush()

    def _fits(self, encoded: Encoded | None) -> bool:
        return encoded is not None and (encoded.codec is self._codec or self._codec is Codec.ZSTD)

    def forget(self, wanted: BlockId) -> None:
        with self._guard:
            if self.has([wanted])[0]:
                self._append(RecordKind.FORGOTTEN, wanted, Encoded(Codec.RAW, 0, b""))
                self._database.execute("DELETE FROM blocks WHERE id = ?", (wanted,))

    def put_manifest(self, manifest: ManifestId, encoded: bytes, *, verified: bool) -> None:
        with self._guard:
            if self._manifest_row(manifest) is None:
                whole = Encoded(Codec.RAW, len(encoded), encoded)
                pack, at = self._append(RecordKind.MANIFEST, manifest, whole)
                self._index_manifest(manifest, pack, at, len(encoded))
            if verified and not self.is_verified(manifest):
                self._append(RecordKind.VERIFIED, manifest, Encoded(Codec.RAW, 0, b""))
                self._index_verified(manifest)
            self._maybe_flush()

    def manifest(self, wanted: ManifestId) -> bytes | None:
        with self._guard:
            row = self._manifest_row(wanted)
            if row is None:
                return None
            file = self._file(row[0])
        encoded = os.pread(file, row[2], row[1])
        return encoded if manifest_id(encoded) == wanted else None

    def is_verified(self, wanted: ManifestId) -> bool:
        with self._guard:
            row = self._manifest_row(wanted)
        return row is not None and bool(row[3])

    def put_record(self, record: PathRecord) -> None:
        encoded = encode_record(record)
        with self._guard:
            row = self._database.execute(
                "SELECT record FROM paths WHERE hash = ?", (record.store_hash,)
            ).fetchone()
            if row == (encoded,):
                return
            self._append(RecordKind.PATH, _NO_ID, Encoded(Codec.RAW, len(encoded), encoded))
            self._index_record(record, encoded)
            self._maybe_flush()

    def record(self, store_hash: str) -> PathRecord | None:
        with self._guard:
            row = self._database.execute(
                "SELECT record FROM paths WHERE hash = ?", (store_hash,)
            ).fetchone()
        return None if row is None else decode_record(row[0])

    def records(self) -> Iterator[PathRecord]:
        with self._guard:
            rows = self._database.execute("SELECT record FROM paths ORDER BY path").fetchall()
        return (decode_record(row[0]) for row in rows)

    def flush(self) -> None:
        with self._guard:
            if self._database.in_transaction:
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
            blocks, stored, plain = self._database.execute(
                "SELECT count(*), ifnull(sum(stored), 0), ifnull(sum(length), 0) FROM blocks"
            ).fetchone()
            manifests = self._database.execute("SELECT count(*) FROM manifests").fetchone()[0]
            records = self._database.execute("SELECT count(*) FROM paths").fetchone()[0]
        return StoreStats(blocks, stored, plain, manifests, records)

    def verify(self) -> Iterator[BlockId]:
        """The ids of blocks that are rotten. Changes nothing; may run beside the writer."""
        with self._guard:
            names = [row[0] for row in self._database.execute("SELECT id FROM blocks ORDER BY id")]
        for name in names:
            try:
                verify(BlockId(name), self.read(BlockId(name)))
            except BlockMissing:
                continue
            except (BlockCorrupt, OSError):
                yield BlockId(name)

    # -- writing -----------------------------------------------------------------------------

    def _append(self, kind: RecordKind, name: bytes, encoded: Encoded) -> tuple[int, int]:
        assert not self._read_only
        if not self._database.in_transaction:
            self._database.execute("BEGIN")
        if self._end > PACK_BYTES_MAX:
            self._commit()
            self._new_pack()
            self._database.execute("BEGIN")
        record = write_header(kind, name, encoded) + encoded.payload
        try:
            write_all(self._file(self._pack), record, self._end)
        except OSError as error:
            self._retreat(error)
        at = self._end + len(record) - len(encoded.payload)
        self._end += len(record)
        self._unsynced += len(record)
        return self._pack, at

    def _maybe_flush(self) -> None:
        if self._unsynced >= BATCH_BYTES:
            self._commit()

    def _commit(self) -> None:
        try:
            os.fdatasync(self._file(self._pack))
            self._set_indexed(self._pack, self._end)
            self._database.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            self._retreat(error)
        self._unsynced = 0

    def _retreat(self, error: Exception) -> None:
        """Drop the batch that could not be made durable; all acknowledged before stays."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")
        row = self._database.execute(
            "SELECT indexed FROM packs WHERE pack = ?", (self._pack,)
        ).fetchone()
        self._end = row[0] if row is not None else len(MAGIC)
        self._unsynced = 0
        os.ftruncate(self._file(self._pack), self._end)
        full = isinstance(error, sqlite3.Error) and "full" in str(error)
        if full or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(
                f"no room left for the store {self._directory}; free some space, nothing that was "
                "acknowledged is lost"
            ) from error
        raise StoreError(f"cannot write to the store {self._directory}: {error}") from error

    def _new_pack(self) -> None:
        self._pack += 1
        file = os.open(self._pack_path(self._pack), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._files[self._pack] = file
        write_all(file, MAGIC, 0)
        os.fsync(file)
        directory = os.open(self._directory / "packs", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._end = len(MAGIC)
        self._set_indexed(self._pack, self._end)

    def _set_indexed(self, pack: int, end: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO packs VALUES (?, ?)", (pack, end))

    def _index_block(self, name: BlockId, pack: int, at: int, encoded: Encoded) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?, ?)",
            (name, pack, at, len(encoded.payload), encoded.length, int(encoded.codec)),
        )

    def _index_manifest(self, name: ManifestId, pack: int, at: int, stored: int) -> None:
        self._database.execute(
            "INSERT OR IGNORE INTO manifests VALUES (?, ?, ?, ?, 0)", (name, pack, at, stored)
        )

    def _index_verified(self, name: ManifestId) -> None:
        self._database.execute("UPDATE manifests SET verified = 1 WHERE id = ?", (name,))

    def _index_record(self, record: PathRecord, encoded: bytes) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO paths VALUES (?, ?, ?)",
            (store_hash(record.store_path), record.store_path, encoded),
        )

    def _manifest_row(self, wanted: ManifestId) -> tuple[int, int, int, int] | None:
        row: tuple[int, int, int, int] | None = self._database.execute(
            "SELECT pack, at, stored, verified FROM manifests WHERE id = ?", (wanted,)
        ).fetchone()
        return row

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
        if hasattr(self, "_database"):
            self._database.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1


def write_all(file: int, data: bytes, at: int) -> None:
    """pwrite until all is written. Raises OSError; tests replace it to fail on purpose."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view = view[written:]
        at += written
