"""Every operation by which a store changes what is on the disk, in one object.

A store calls nothing else to write. Tests give it a `Disk` that fails, or that stops for good, at
its n-th operation: a power cut can be swept over everything a store does. All raise OSError; commit
raises sqlite3.Error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


class Committing(Protocol):
    def commit(self) -> None: ...


class Disk:
    def make_directory(self, path: Path) -> None:
        """For its owner alone, with its parents."""
        path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def create(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, file: int, data: bytes, at: int) -> None:
        """All of `data`, at this offset."""
        view = memoryview(data)
        while view:
            written = os.pwrite(file, view, at)
            view = view[written:]
            at += written

    def truncate(self, file: int, length: int) -> None:
        os.ftruncate(file, length)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def sync(self, file: int) -> None:
        """Durable when this returns: the bytes, and the length."""
        os.fdatasync(file)

    def sync_directory(self, path: Path) -> None:
        """Durable when this returns: the names in it."""
        directory = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def commit(self, database: Committing) -> None:
        """Durable when this returns: the transaction."""
        database.commit()
