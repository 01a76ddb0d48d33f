"""The strict NAR reader against Nix's own bytes, hostile bytes, and any split."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunker.digest import nix32_encode
from chunker.errors import NarError
from chunker.nar import Entry, Kind, NarReader, write_tree
from tests.golden.make import make_tree
from tests.golden.samples import file_nar, string, strings
from tests.nix import Nix

GOLDEN = Path(__file__).parents[1] / "golden"
TREE = (GOLDEN / "tree.nar").read_bytes()
MAGIC = string(b"nix-archive-1")


def read(data: bytes) -> list[Entry]:
    reader = NarReader()
    entries = reader.feed(data)
    reader.finish()
    return entries


def directory(*entries: tuple[bytes, bytes]) -> bytes:
    """A directory node; each entry is (name, node)."""
    body = b"".join(
        strings(b"entry", b"(", b"name", name, b"node") + node + string(b")")
        for name, node in entries
    )
    return strings(b"(", b"type", b"directory") + body + string(b")")


def file(contents: bytes = b"") -> bytes:
    return strings(b"(", b"type", b"regular", b"contents") + string(contents) + string(b")")


def link(target: bytes) -> bytes:
    return strings(b"(", b"type", b"symlink", b"target", target, b")")


def test_reads_what_nix_wrote() -> None:
    entries = read(TREE)
    assert [(entry.depth, entry.name, entry.kind) for entry in entries] == [
        (0, b"", Kind.DIRECTORY),
        (1, b"Z", Kind.REGULAR),
        (1, b"a", Kind.REGULAR),
        (1, b"a.b", Kind.REGULAR),
        (1, b"ab", Kind.SYMLINK),
        (1, b"dir", Kind.DIRECTORY),
        (2, b"empty", Kind.DIRECTORY),
        (2, b"file", Kind.REGULAR),
        (1, b"programme", Kind.EXECUTABLE),
        (1, "üml".encode(), Kind.SYMLINK),
    ]
    assert entries[2].size == 256 * 33
    assert entries[4].target == b"../somewhere/else"


def test_writes_what_nix_writes(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    nar = b"".join(write_tree(tmp_path / "tree"))
    assert nar == TREE
    known = json.loads((GOLDEN / "tree.json").read_text())
    assert nix32_encode(hashlib.sha256(nar).digest()) == known["nix32"]
    assert len(nar) == known["bytes"]


@pytest.mark.nix
def test_writes_what_this_nix_writes(tmp_path: Path, nix: Nix) -> None:
    make_tree(tmp_path / "tree")
    dumped = subprocess.run(
        ["nix-store", "--dump", tmp_path / "tree"], capture_output=True, check=True
    ).stdout
    assert b"".join(write_tree(tmp_path / "tree")) == dumped


@pytest.mark.parametrize("step", [1, 3, 7, 8, 64, 1000])
def test_any_split_gives_the_same_entries(step: int) -> None:
    reader, entries = NarReader(), []
    for at in range(0, len(TREE), step):
        entries += reader.feed(TREE[at : at + step])
    reader.finish()
    assert entries == read(TREE)


HOSTILE = {
    "wrong magic": string(b"nix-archive-2") + file(),
    "empty": b"",
    "bytes after the end": MAGIC + file() + b"\0",
    "whole NAR twice": TREE + TREE,
    "parent name": MAGIC + directory((b"..", file())),
    "dot name": MAGIC + directory((b".", file())),
    "empty name": MAGIC + directory((b"", file())),
    "slash in name": MAGIC + directory((b"a/b", file())),
    "NUL in name": MAGIC + directory((b"a\0b", file())),
    "absolute name": MAGIC + directory((b"/etc", file())),
    "names out of order": MAGIC + directory((b"b", file()), (b"a", file())),
    "name twice": MAGIC + directory((b"a", file()), (b"a", file())),
    "link then directory of one name": MAGIC
    + directory((b"a", link(b"/etc")), (b"a", directory((b"passwd", file())))),
    "name of 256 bytes": MAGIC + directory((b"n" * 256, file())),
    "target of 4096 bytes": MAGIC + link(b"t" * 4096),
    "empty target": MAGIC + link(b""),
    "NUL in target": MAGIC + link(b"a\0b"),
    "unknown type": MAGIC + strings(b"(", b"type", b"fifo", b")"),
    "executable directory": MAGIC + strings(b"(", b"type", b"directory", b"executable", b"", b")"),
    "executable with a value": MAGIC
    + strings(b"(", b"type", b"regular", b"executable", b"x", b"contents", b"", b")"),
    "padding that is not zero": MAGIC
    + strings(b"(", b"type", b"regular", b"contents")
    + (1).to_bytes(8, "little") + b"x" + b"\0\0\0\0\0\0\1" + string(b")"),
    "string padding that is not zero": MAGIC[:-1] + b"\1",
    "endless file": MAGIC
    + strings(b"(", b"type", b"regular", b"contents") + (1 << 63).to_bytes(8, "little"),
    "endless string": MAGIC + (1 << 40).to_bytes(8, "little"),
    "no type": MAGIC + strings(b"(", b")"),
    "entry without node": MAGIC
    + strings(b"(", b"type", b"directory", b"entry", b"(", b"name", b"a", b")", b")"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_refuses(name: str) -> None:
    with pytest.raises(NarError):
        read(HOSTILE[name])


def test_limits_are_nix_limits() -> None:
    assert len(read(MAGIC + directory((b"n" * 255, link(b"t" * 4095))))) == 2
    node = file()
    for _ in range(64):
        node = directory((b"d", node))
    assert len(read(MAGIC + node)) == 65
    with pytest.raises(NarError, match="deeper than 64"):
        read(MAGIC + directory((b"d", node)))


@pytest.mark.parametrize("end", range(0, len(file_nar(b"x" * 20)), 5))
def test_a_truncated_nar_is_not_whole(end: int) -> None:
    reader = NarReader()
    reader.feed(file_nar(b"x" * 20)[:end])
    with pytest.raises(NarError, match="too early"):
        reader.finish()


@given(st.integers(0, len(TREE) - 1), st.integers(1, 255))
@settings(max_examples=400)
def test_a_flipped_byte_parses_or_raises_only_its_own_error(at: int, change: int) -> None:
    data = bytearray(TREE)
    data[at] ^= change
    try:
        read(bytes(data))
    except NarError:
        pass


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_garbage_raises_only_its_own_error(data: bytes) -> None:
    with pytest.raises(NarError):
        read(MAGIC + data)


def test_a_large_file_is_not_kept() -> None:
    reader = NarReader()
    reader.feed(MAGIC + strings(b"(", b"type", b"regular", b"contents"))
    reader.feed((1 << 40).to_bytes(8, "little"))
    piece = bytes(1 << 20)
    for _ in range(64):
        reader.feed(piece)
    assert len(reader._buffer) == 0


def test_what_a_nar_cannot_hold_is_named(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(NarError, match="socket is neither"):
            list(write_tree(tmp_path))
    with pytest.raises(NarError, match="No such file"):
        list(write_tree(tmp_path / "missing"))
    assert os.path.isdir(tmp_path)
