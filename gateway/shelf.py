"""Realisations and logs that `nix copy --to` and `nix store copy-log` put here: small files, kept
as they came.

    put(path, data) -> a file named by a hash of `path`; too much on the shelf: the oldest go
    get(path)       -> its bytes, if they are here

A path is a URL's, longer than a file name may be, and no file is named by what somebody sent. What
was read back is judged anew by whoever asked for it: a key that counted then may be denied now.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import trio

FILES_MAX = 65_536
BYTES_MAX = 1024**3
_UNFINISHED = "unfinished"


class Shelf:
    def __init__(self, directory: Path, bytes_max: int = BYTES_MAX) -> None:
        """`directory` is ours alone. Raises OSError, as all here."""
        self._directory = directory
        self._bytes_max = bytes_max
        self._one_at_a_time = trio.CapacityLimiter(1)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / _UNFINISHED).unlink(missing_ok=True)
        found = [(entry.stat(), entry.name) for entry in os.scandir(directory)]
        found.sort(key=lambda entry: entry[0].st_mtime_ns)
        self._sizes = {name: stat.st_size for stat, name in found}
        """The oldest first."""

    async def put(self, path: str, data: bytes) -> None:
        """Durable when it returns."""
        async with self._one_at_a_time:
            await trio.to_thread.run_sync(self._write, _name(path), data)

    async def get(self, path: str) -> bytes | None:
        name = _name(path)
        if name not in self._sizes:
            return None
        async with self._one_at_a_time:
            return await trio.to_thread.run_sync(self._read, name)

    def _write(self, name: str, data: bytes) -> None:
        unfinished = self._directory / _UNFINISHED
        with unfinished.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, self._directory / name)
        self._sizes.pop(name, None)
        self._sizes[name] = len(data)
        while len(self._sizes) > FILES_MAX or sum(self._sizes.values()) > self._bytes_max:
            oldest = next(iter(self._sizes))
            (self._directory / oldest).unlink(missing_ok=True)
            del self._sizes[oldest]

    def _read(self, name: str) -> bytes | None:
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None


def _name(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()
