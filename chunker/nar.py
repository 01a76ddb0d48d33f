"""NARs: a strict streaming reader and a writer for a directory tree.

Format: Nix's src/libutil/archive.cc; strings are a 64-bit little-endian length, the bytes, and zero
padding to 8. The reader accepts what Nix accepts and nothing else: names sorted and distinct, depth
at most 64, names 255, targets 4095. It never unpacks and never buffers the contents of a file, so
its memory does not grow with the NAR. Every NAR parser in the field has had a hole; this one cannot
write.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from .errors import NarError

MAGIC = b"nix-archive-1"
DEPTH_MAX = 64
NAME_BYTES_MAX = 255
TARGET_BYTES_MAX = 4095
PIECE_BYTES = 256 * 1024
FILE_BYTES_MAX = 1 << 62


class Kind(IntEnum):
    REGULAR = 0
    EXECUTABLE = 1
    SYMLINK = 2
    DIRECTORY = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One object, in NAR order. The root has depth 0 and no name; `size` is a file's, in bytes."""

    depth: int
    name: bytes
    kind: Kind
    size: int = 0
    target: bytes = b""


class Contents(Protocol):
    """Who wants to see what files hold, before their entries come."""

    def begin(self, size: int) -> None: ...

    def feed(self, data: memoryview) -> None: ...


_Machine = Generator[int, bytes, None]


class NarReader:
    """feed bytes, get entries. Raises NarError, and is finished then."""

    def __init__(self, contents: Contents | None = None) -> None:
        self._shown = contents
        self._buffer = bytearray()
        self._skip = 0
        self._entries: list[Entry] = []
        self._offset = 0
        self._done = False
        self._machine = self._parse()
        self._need = next(self._machine)

    def feed(self, data: bytes | memoryview) -> list[Entry]:
        """Entries completed by this piece, whatever the split."""
        view, at = memoryview(data), 0
        while at < len(view):
            if self._done:
                raise NarError(f"bytes after the end of the NAR, at byte {self._offset}")
            if self._skip:
                step = min(self._skip, len(view) - at)
                self._skip -= step
                if self._shown is not None:
                    self._shown.feed(view[at : at + step])
            else:
                step = min(self._need - len(self._buffer), len(view) - at)
                self._buffer += view[at : at + step]
            at += step
            self._offset += step
            if not self._skip and len(self._buffer) == self._need:
                self._advance()
        entries, self._entries = self._entries, []
        return entries

    def finish(self) -> None:
        """Call after the last byte. Raises NarError if the NAR is not whole."""
        if not self._done:
            raise NarError(f"the NAR ends too early, after {self._offset} bytes")

    def _advance(self) -> None:
        token = bytes(self._buffer)
        self._buffer.clear()
        try:
            self._need = self._machine.send(token)
        except StopIteration:
            self._done = True

    def _fail(self, reason: str) -> NarError:
        return NarError(f"{reason}, before byte {self._offset}")

    def _parse(self) -> _Machine:
        yield from self._expect(MAGIC)
        last_names: list[bytes] = []
        name = b""
        while True:
            yield from self._expect(b"(")
            yield from self._expect(b"type")
            kind = yield from self._string(16)
            if kind == b"directory":
                self._emit(len(last_names), name, Kind.DIRECTORY)
                last_names.append(b"")
                if len(last_names) > DEPTH_MAX:
                    raise self._fail(f"directories nested deeper than {DEPTH_MAX}")
            else:
                yield from self._leaf(kind, len(last_names), name)
                if last_names:
                    yield from self._expect(b")")
            while last_names:
                token = yield from self._string(16)
                if token == b"entry":
                    name = yield from self._entry_name(last_names)
                    break
                if token != b")":
                    raise self._fail(f"{token!r} where an entry or ) must be")
                last_names.pop()
                if last_names:
                    yield from self._expect(b")")
            if not last_names:
                return

    def _leaf(self, kind: bytes, depth: int, name: bytes) -> _Machine:
        if kind == b"symlink":
            yield from self._expect(b"target")
            target = yield from self._string(TARGET_BYTES_MAX)
            if not target or b"\0" in target:
                raise self._fail("a link target that is empty or holds NUL")
            self._emit(depth, name, Kind.SYMLINK, target=target)
            yield from self._expect(b")")
            return
        if kind != b"regular":
            raise self._fail(f"{kind!r} is not a type of file")
        token = yield from self._string(16)
        executable = token == b"executable"
        if executable:
            yield from self._expect(b"")
            token = yield from self._string(16)
        if token != b"contents":
            raise self._fail(f"{token!r} where contents must be")
        size = int.from_bytes((yield 8), "little")
        if size > FILE_BYTES_MAX:
            raise self._fail(f"a file of {size} bytes")
        yield from self._contents(size)
        self._emit(depth, name, Kind.EXECUTABLE if executable else Kind.REGULAR, size)
        yield from self._expect(b")")

    def _contents(self, size: int) -> _Machine:
        padding = -size % 8
        if self._shown is not None:
            self._shown.begin(size)
        if size:
            # `skip` bytes pass by unseen; the last of them wakes the machine through `need` 0.
            self._skip = size
            yield 0
        if padding and any((yield padding)):
            raise self._fail("padding that is not zero")

    def _entry_name(self, last_names: list[bytes]) -> Generator[int, bytes, bytes]:
        yield from self._expect(b"(")
        yield from self._expect(b"name")
        name = yield from self._string(NAME_BYTES_MAX)
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise self._fail(f"the illegal name {name!r}")
        if name <= last_names[-1]:
            raise self._fail(f"the name {name!r} out of order")
        last_names[-1] = name
        yield from self._expect(b"node")
        return name

    def _string(self, bytes_max: int) -> Generator[int, bytes, bytes]:
        size = int.from_bytes((yield 8), "little")
        if size > bytes_max:
            raise self._fail(f"a string of {size} bytes where {bytes_max} are the most")
        if size == 0:
            return b""
        data = yield size + -size % 8
        if any(data[size:]):
            raise self._fail("padding that is not zero")
        return data[:size]

    def _expect(self, token: bytes) -> _Machine:
        found = yield from self._string(max(len(token), 16))
        if found != token:
            raise self._fail(f"{found!r} where {token!r} must be")

    def _emit(
        self, depth: int, name: bytes, kind: Kind, size: int = 0, target: bytes = b""
    ) -> None:
        self._entries.append(Entry(depth, name, kind, size, target))


def write_tree(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The NAR of a file tree, as `nix-store --dump` writes it, in pieces of about 256 KiB.

    Raises NarError for what a NAR cannot hold (sockets, devices) and for a file that changes.
    """
    buffer = bytearray(string(MAGIC))
    for piece in _node(os.fsencode(path)):
        buffer += piece
        if len(buffer) >= PIECE_BYTES:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer)


def string(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


OPEN, CLOSE = string(b"(") + string(b"type"), string(b")")


def _node(path: bytes) -> Iterator[bytes]:
    try:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            target = os.readlink(path)
            yield OPEN + string(b"symlink") + string(b"target") + string(target) + CLOSE
        elif stat.S_ISDIR(info.st_mode):
            yield OPEN + string(b"directory")
            for name in sorted(os.listdir(path)):
                yield string(b"entry") + string(b"(") + string(b"name") + string(name)
                yield string(b"node")
                yield from _node(os.path.join(path, name))
                yield CLOSE
            yield CLOSE
        elif stat.S_ISREG(info.st_mode):
            yield from _file(path, info)
        else:
            raise NarError(f"{os.fsdecode(path)} is neither a file, a directory nor a link")
    except OSError as error:
        raise NarError(f"{os.fsdecode(path)}: {error.strerror}") from error


def _file(path: bytes, info: os.stat_result) -> Iterator[bytes]:
    yield OPEN + string(b"regular")
    if info.st_mode & stat.S_IXUSR:
        yield string(b"executable") + string(b"")
    yield string(b"contents") + info.st_size.to_bytes(8, "little")
    left = info.st_size
    with open(path, "rb", buffering=0) as file:
        while left:
            data = file.read(min(left, PIECE_BYTES))
            if not data:
                raise NarError(f"{os.fsdecode(path)} became shorter while it was read")
            left -= len(data)
            yield data
    yield bytes(-info.st_size % 8) + CLOSE
