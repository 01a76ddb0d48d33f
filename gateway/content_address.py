"""Content addresses: paths whose name follows from their contents, so that nobody need sign them.

| CA field               | type in the store path     | the hash is of                      |
|------------------------|----------------------------|-------------------------------------|
| text:sha256:H          | text:REFERENCES            | the one file                        |
| fixed:r:sha256:H       | source:REFERENCES[:self]   | the NAR, modulo the own hash part   |
| fixed:ALGORITHM:H      | output:out, no references  | the one file                        |
| fixed:r:ALGORITHM:H    | output:out, no references  | the NAR, modulo the own hash part   |
| fixed:git:ALGORITHM:H  | output:out, no references  | the directory (gateway.git_tree)    |

Format: Nix's src/libstore/store-dir-config.cc (makeStorePath, makeType, makeFixedOutputPath),
content-address.cc and references.cc (HashModuloSink: self-references count as zeros, and `|OFFSET`
of each is hashed behind the NAR). The store path binds H and the references; it does not bind
NarHash and NarSize, which whoever gave the record may have invented. So `recomputes` is half of the
proof, and `ContentCheck`, fed the whole NAR, the other half. Only where nothing but NarHash itself
is in H (`fixed:r:sha256` without self-references) the record proves all of it but its NarSize.
`git` and BLAKE3 are experiments of newer versions (seen with 2.26 and 2.34). A `git` address of
anything but a directory does not say whether that is a file, an executable or a link: such a path
needs a signature here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from chunker.digest import Bytes, Digest, new_blake3, nix32_decode, nix32_encode
from chunker.record import STORE_DIRECTORY, PathRecord
from chunker.references import Normaliser

from . import git_tree
from .git_tree import GitTree

Method = Literal["text", "flat", "nar", "git"]
PATH_HASH_BYTES = 20
DIGEST_BYTES = {"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64, "blake3": 32}
_ALGORITHMS: dict[Method, tuple[str, ...]] = {"text": ("sha256",), "git": git_tree.ALGORITHMS}
"""Of those methods that do not take all."""
_PREFIXES: dict[Method, str] = {"flat": "", "nar": "r:", "git": "git:"}


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


_FILE_HEAD = b"".join(
    map(_string, (b"nix-archive-1", b"(", b"type", b"regular", b"contents"))
)  # a file that is not executable, up to the length of its contents
_FILE_END = _string(b")")


@dataclass(frozen=True, slots=True)
class ContentAddress:
    method: Method
    algorithm: str
    digest: bytes


def parse(text: str) -> ContentAddress | None:
    """A CA field as Nix writes it, in base32; None for anything else."""
    kind, _, rest = text.partition(":")
    method: Method
    if kind == "text":
        method = "text"
    elif kind == "fixed":
        method = "nar" if rest.startswith("r:") else "git" if rest.startswith("git:") else "flat"
        rest = rest.removeprefix(_PREFIXES[method])
    else:
        return None
    algorithm, _, digits = rest.partition(":")
    size = DIGEST_BYTES.get(algorithm)
    if size is None or algorithm not in _ALGORITHMS.get(method, DIGEST_BYTES):
        return None
    try:
        return ContentAddress(method, algorithm, nix32_decode(digits, size))
    except ValueError:
        return None


def recomputes(record: PathRecord) -> bool:
    """Whether the record's CA field, name and references give its store path, and its NarHash does
    not contradict them."""
    address = parse(record.content_address)
    if address is None:
        return False
    name = record.store_path[len(STORE_DIRECTORY) + 34 :]
    path = store_path_of(address, name, record.references, record.store_path)
    if path != record.store_path:
        return False
    return record.nar_hash == address.digest if binds_nar_hash(record) else True


def binds_nar_hash(record: PathRecord) -> bool:
    """Whether the hash in the CA field is the NarHash, so that a NAR which matches the one needs
    no other check."""
    is_of_nar = record.content_address.startswith("fixed:r:sha256:")
    return is_of_nar and record.store_path not in record.references


def store_path_of(
    address: ContentAddress, name: str, references: tuple[str, ...], own: str
) -> str | None:
    """The path of such contents. `references` are full paths, sorted; `own` among them stands for
    itself. None where Nix would not make one."""
    others = [path for path in references if path != own]
    to_itself = len(others) < len(references)
    if address.method == "text":
        return None if to_itself else _path(":".join(["text", *others]), address.digest, name)
    if address.method == "nar" and address.algorithm == "sha256":
        kind = ":".join(["source", *others, *(["self"] if to_itself else [])])
        return _path(kind, address.digest, name)
    if references:
        return None
    inner = f"fixed:out:{_PREFIXES[address.method]}{address.algorithm}:{address.digest.hex()}:"
    return _path("output:out", hashlib.sha256(inner.encode()).digest(), name)


def _path(kind: str, digest: bytes, name: str) -> str:
    text = f"{kind}:sha256:{digest.hex()}:{STORE_DIRECTORY}:{name}"
    whole = hashlib.sha256(text.encode()).digest()
    folded = bytearray(PATH_HASH_BYTES)
    for at, byte in enumerate(whole):
        folded[at % PATH_HASH_BYTES] ^= byte
    return f"{STORE_DIRECTORY}/{nix32_encode(bytes(folded))}-{name}"


class ContentCheck:
    """feed the NAR in any split, then ask whether it `holds`. For a record that `recomputes`."""

    def __init__(self, record: PathRecord) -> None:
        address = parse(record.content_address)
        assert address is not None, "only what recomputes is checked"
        self._wanted = address.digest
        reader: _Nar | _File | GitTree
        if address.method == "git":
            reader = GitTree(address.algorithm)
        elif address.method == "nar":
            reader = _Nar(_new(address.algorithm), record.store_hash.encode())
        else:
            reader = _File(_new(address.algorithm))
        self._reader = reader
        self.feed: Callable[[Bytes], None] = reader.feed
        self._finish = reader.finish

    def holds(self) -> bool:
        """To be called once, after the last byte."""
        return self._finish() == self._wanted

    @property
    def is_undecided(self) -> bool:
        """It does not hold, but neither is it wrong: the address fits other kinds of file too."""
        return self._reader.lone == self._wanted if isinstance(self._reader, GitTree) else False


def _new(algorithm: str) -> Digest:
    if algorithm == "blake3":
        return new_blake3()
    return hashlib.new(algorithm, usedforsecurity=False)


class _Nar:
    def __init__(self, digest: Digest, own: bytes) -> None:
        self._digest = digest
        self._modulo = Normaliser([own])

    def feed(self, data: Bytes) -> None:
        self._digest.update(self._modulo.feed(bytes(data)))

    def finish(self) -> bytes:
        self._digest.update(self._modulo.finish())
        for offset in self._modulo.rewrites.offsets:
            self._digest.update(b"|%d" % offset)
        return self._digest.digest()


class _File:
    """The contents of a NAR that is one file which is not executable; no other NAR has a hash."""

    def __init__(self, digest: Digest) -> None:
        self._digest = digest
        self._head = bytearray()
        self._left = -1
        """Bytes of contents still to come; -1: the head is not whole."""
        self._end = bytearray()
        self._size = 0
        self._wrong = False

    def feed(self, data: Bytes) -> None:
        view = memoryview(data)
        if self._left < 0:
            wanted = len(_FILE_HEAD) + 8 - len(self._head)
            self._head += view[:wanted]
            view = view[wanted:]
            if len(self._head) == len(_FILE_HEAD) + 8:
                self._left = self._size = int.from_bytes(self._head[-8:], "little")
                self._wrong = self._head[:-8] != _FILE_HEAD
        if self._left > 0:
            self._digest.update(view[: self._left])
            taken = min(self._left, len(view))
            self._left -= taken
            view = view[taken:]
        self._end += view[: len(_FILE_END) + 8 - len(self._end)]

    def finish(self) -> bytes:
        whole = self._left == 0 and self._end == bytes(-self._size % 8) + _FILE_END
        return self._digest.digest() if whole and not self._wrong else b""
