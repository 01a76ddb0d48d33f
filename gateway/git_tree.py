"""The id that Git gives to the tree in a NAR. Pure.

    file, link    HASH("blob SIZE\\0" contents or target)
    directory     HASH("tree SIZE\\0" entries), an entry being "MODE NAME\\0" and the raw id;
                  sorted as if names of directories ended in a slash

Format: Nix's src/libutil/git.cc (dump, dumpTree), which is Git's own, but that an empty directory
is an entry here. Modes stand in the entries alone, so that a lone file, the same file executable,
and a link whose target it spells all have one id: only of a directory the id says all that the NAR
does.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chunker.digest import Bytes
from chunker.errors import NarError
from chunker.nar import Entry, Kind, NarReader

if TYPE_CHECKING:
    from hashlib import _Hash

ALGORITHMS = ("sha1", "sha256")
OPEN_ENTRIES_MAX = 262_144
"""Of the directories from the root to where the reader is; about 60 MB. More proves nothing."""
_MODES = {
    Kind.REGULAR: b"100644",
    Kind.EXECUTABLE: b"100755",
    Kind.SYMLINK: b"120000",
    Kind.DIRECTORY: b"40000",
}


@dataclass
class _Directory:
    name: bytes
    entries: list[tuple[bytes, bytes]] = field(default_factory=list)
    """What it is sorted by, and what is hashed."""

    def add(self, kind: Kind, name: bytes, identity: bytes) -> None:
        key = name + b"/" if kind is Kind.DIRECTORY else name
        self.entries.append((key, b"%s %s\0%s" % (_MODES[kind], name, identity)))


class GitTree:
    """feed the NAR in any split, `finish` once."""

    def __init__(self, algorithm: str) -> None:
        assert algorithm in ALGORITHMS
        self._algorithm = algorithm
        self._blobs = _Blobs(self._begin)
        self._reader = NarReader(self._blobs)
        self._open: list[_Directory] = []
        """From the root to where the reader is."""
        self._open_entries = 0
        self._root = b""
        self.lone = b""
        """The id of a root that is no directory, which says too little of it."""
        self._wrong = False

    def feed(self, data: Bytes) -> None:
        if self._wrong:
            return
        try:
            entries = self._reader.feed(data)
        except NarError:
            self._wrong = True
            return
        for entry in entries:
            self._take(entry)

    def finish(self) -> bytes:
        """The id of the root; empty where that is no directory, or what was fed no NAR."""
        try:
            self._reader.finish()
        except NarError:
            self._wrong = True
        if self._wrong:
            self.lone = b""
            return b""
        self._close(0)
        return self._root

    def _take(self, entry: Entry) -> None:
        self._close(entry.depth)
        if entry.kind is Kind.DIRECTORY:
            self._open.append(_Directory(entry.name))
            return
        if entry.kind is Kind.SYMLINK:
            identity = self._id(b"blob", entry.target)
        else:
            identity = self._blobs.done.popleft()
        if self._open:
            self._add(entry.kind, entry.name, identity)
        else:
            self.lone = identity

    def _add(self, kind: Kind, name: bytes, identity: bytes) -> None:
        self._open[-1].add(kind, name, identity)
        self._open_entries += 1
        self._wrong = self._wrong or self._open_entries > OPEN_ENTRIES_MAX

    def _close(self, depth: int) -> None:
        while len(self._open) > depth:
            closed = self._open.pop()
            self._open_entries -= len(closed.entries)
            identity = self._id(b"tree", b"".join(text for _, text in sorted(closed.entries)))
            if self._open:
                self._add(Kind.DIRECTORY, closed.name, identity)
            else:
                self._root = identity

    def _id(self, kind: bytes, data: bytes) -> bytes:
        digest = self._begin(kind, len(data))
        digest.update(data)
        return digest.digest()

    def _begin(self, kind: bytes, size: int) -> _Hash:
        head = b"%s %d\0" % (kind, size)
        return hashlib.new(self._algorithm, head, usedforsecurity=False)


class _Blobs:
    """Ids of files whose contents went by, the first in the NAR first."""

    def __init__(self, begin: Callable[[bytes, int], _Hash]) -> None:
        self.done: deque[bytes] = deque()
        self._begin = begin
        self._left = 0

    def begin(self, size: int) -> None:
        self._digest = self._begin(b"blob", size)
        self._left = size
        self._end()

    def feed(self, data: memoryview) -> None:
        self._digest.update(data)
        self._left -= len(data)
        self._end()

    def _end(self) -> None:
        if self._left == 0:
            self.done.append(self._digest.digest())
