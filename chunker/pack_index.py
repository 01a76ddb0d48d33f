"""Where everything in the packs is: one SQLite file, which can always be made anew from the packs.

Rows are written inside a transaction that the store begins with its first record of a batch and
commits once the packs are on the disk, so the index never says more than the packs hold.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .block import Encoded
from .digest import BlockId, ManifestId
from .errors import BlockMissing

SQL_VARIABLES_MAX = 500
RUN_BYTES_MAX = 2 * 1024 * 1024
GAP_BYTES_MAX = 64 * 1024
"""Between two blocks that are still read at once: less than a second read costs."""
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


class Place(NamedTuple):
    """A payload in a pack; `stored` and `length` (plain) in bytes."""

    pack: int
    at: int
    stored: int
    length: int
    codec: int


class Index:
    """Not thread-safe: the store holds its guard. Everything raises sqlite3.Error."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        source = f"file:{path}?mode=ro" if read_only else str(path)
        self.database = sqlite3.connect(
            source, uri=read_only, check_same_thread=False, isolation_level=None
        )
        try:
            if read_only:
                self.database.execute("SELECT count(*) FROM packs")
                return
            check = self.database.execute("PRAGMA quick_check(1)").fetchone()
            if check != ("ok",):
                raise sqlite3.DatabaseError(str(check))
            self.database.execute("PRAGMA journal_mode=WAL")
            self.database.execute("PRAGMA synchronous=FULL")
            self.database.executescript(_SCHEMA)
        except sqlite3.Error:
            self.database.close()
            raise

    def close(self) -> None:
        self.database.close()

    # -- the transaction ---------------------------------------------------------------------

    @property
    def in_transaction(self) -> bool:
        return self.database.in_transaction

    def begin(self) -> None:
        if not self.database.in_transaction:
            self.database.execute("BEGIN")

    def commit(self) -> None:
        self.database.execute("COMMIT")

    def rollback(self) -> None:
        if self.database.in_transaction:
            self.database.execute("ROLLBACK")

    # -- packs -------------------------------------------------------------------------------

    def packs(self) -> dict[int, int]:
        """Number of each pack, and how many of its bytes are indexed."""
        return dict(self.database.execute("SELECT pack, indexed FROM packs"))

    def set_indexed(self, pack: int, end: int) -> None:
        self.database.execute("INSERT OR REPLACE INTO packs VALUES (?, ?)", (pack, end))

    def forget_pack(self, pack: int) -> None:
        for table in ("blocks", "manifests", "packs"):
            self.database.execute(f"DELETE FROM {table} WHERE pack = ?", (pack,))

    # -- blocks ------------------------------------------------------------------------------

    def places(self, ids: Sequence[bytes]) -> dict[bytes, Place]:
        """Of those that are held."""
        found: dict[bytes, Place] = {}
        for at in range(0, len(ids), SQL_VARIABLES_MAX):
            part = ids[at : at + SQL_VARIABLES_MAX]
            marks = ",".join("?" * len(part))
            rows = self.database.execute(
                f"SELECT id, pack, at, stored, length, codec FROM blocks WHERE id IN ({marks})",
                part,
            )
            found.update((row[0], Place(*row[1:])) for row in rows)
        return found

    def held(self, ids: Sequence[bytes]) -> set[bytes]:
        found: set[bytes] = set()
        for at in range(0, len(ids), SQL_VARIABLES_MAX):
            part = ids[at : at + SQL_VARIABLES_MAX]
            marks = ",".join("?" * len(part))
            rows = self.database.execute(f"SELECT id FROM blocks WHERE id IN ({marks})", part)
            found.update(row[0] for row in rows)
        return found

    def block_ids(self) -> list[BlockId]:
        return [row[0] for row in self.database.execute("SELECT id FROM blocks ORDER BY id")]

    def add_block(self, name: BlockId, pack: int, at: int, encoded: Encoded) -> None:
        self.database.execute(
            "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?, ?)",
            (name, pack, at, len(encoded.payload), encoded.length, int(encoded.codec)),
        )

    def forget_block(self, name: BlockId) -> None:
        self.database.execute("DELETE FROM blocks WHERE id = ?", (name,))

    # -- manifests and records ---------------------------------------------------------------

    def manifest(self, wanted: ManifestId) -> tuple[int, int, int, bool] | None:
        """(pack, offset, bytes stored, verified)"""
        row = self.database.execute(
            "SELECT pack, at, stored, verified FROM manifests WHERE id = ?", (wanted,)
        ).fetchone()
        return None if row is None else (row[0], row[1], row[2], bool(row[3]))

    def add_manifest(self, name: ManifestId, pack: int, at: int, stored: int) -> None:
        self.database.execute(
            "INSERT OR IGNORE INTO manifests VALUES (?, ?, ?, ?, 0)", (name, pack, at, stored)
        )

    def mark_verified(self, name: ManifestId) -> None:
        self.database.execute("UPDATE manifests SET verified = 1 WHERE id = ?", (name,))

    def record(self, store_hash: str) -> bytes | None:
        row = self.database.execute(
            "SELECT record FROM paths WHERE hash = ?", (store_hash,)
        ).fetchone()
        return None if row is None else row[0]

    def records(self) -> list[bytes]:
        return [row[0] for row in self.database.execute("SELECT record FROM paths ORDER BY path")]

    def add_record(self, store_hash: str, path: str, encoded: bytes) -> None:
        self.database.execute(
            "INSERT OR REPLACE INTO paths VALUES (?, ?, ?)", (store_hash, path, encoded)
        )

    def count(self) -> tuple[int, int, int, int, int]:
        """(blocks, their bytes stored, their plain bytes, manifests, records)"""
        blocks, stored, plain = self.database.execute(
            "SELECT count(*), ifnull(sum(stored), 0), ifnull(sum(length), 0) FROM blocks"
        ).fetchone()
        manifests = self.database.execute("SELECT count(*) FROM manifests").fetchone()[0]
        records = self.database.execute("SELECT count(*) FROM paths").fetchone()[0]
        return blocks, stored, plain, manifests, records


def runs(
    ids: Sequence[BlockId], places: dict[bytes, Place]
) -> Iterator[list[tuple[BlockId, Place]]]:
    """Neighbours in one pack, in order, up to RUN_BYTES_MAX. Raises BlockMissing."""
    run: list[tuple[BlockId, Place]] = []
    for wanted in ids:
        place = places.get(wanted)
        if place is None:
            raise BlockMissing(wanted)
        if run:
            first, last = run[0][1], run[-1][1]
            near = (
                place.pack == last.pack and 0 <= place.at - last.at - last.stored <= GAP_BYTES_MAX
            )
            if not near or place.at + place.stored - first.at > RUN_BYTES_MAX:
                yield run
                run = []
        run.append((wanted, place))
    if run:
        yield run
