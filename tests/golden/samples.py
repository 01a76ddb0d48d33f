"""Bytes and NARs that are the same on every machine, for tests that compare."""

from __future__ import annotations

import hashlib
from array import array

from chunker.digest import ManifestId
from chunker.ingest import Ingest
from chunker.manifest import Manifest
from chunker.store import BlockStore, MemoryStore

NEEDLES = (b"0rqy849vwr418yra085l8qlnpnl6859m", b"zcq178g5vxv56lkyfabq2z4jgfvx06zg")


def sample_bytes(count: int = 3_000_000, seed: str = "sample") -> bytes:
    """Looks random; every 100 kB one of the needles stands in it."""
    data = bytearray(hashlib.shake_128(seed.encode()).digest(count))
    for number, at in enumerate(range(50_000, count - 32, 100_000)):
        data[at : at + 32] = NEEDLES[number % 2]
    return bytes(data)


def string(data: bytes) -> bytes:
    """A string of a NAR."""
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


def strings(*texts: bytes) -> bytes:
    return b"".join(map(string, texts))


def file_nar(contents: bytes) -> bytes:
    """A NAR of one regular file."""
    head = strings(b"nix-archive-1", b"(", b"type", b"regular", b"contents")
    return head + string(contents) + string(b")")


def sample_manifest(
    contents: bytes, store: BlockStore | None = None
) -> tuple[ManifestId, Manifest]:
    ingest = Ingest(store if store is not None else MemoryStore(), NEEDLES)
    ingest.feed(file_nar(contents))
    return ingest.finish_unchecked()


def lengths(*values: int) -> array[int]:
    return array("I", values)
