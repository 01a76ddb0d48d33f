"""The bytes of a pack file. Pure.

    pack   := "NARSWARM-PACK-1\\n" record*
    record := kind u8 | codec u8 | plain length u32 | stored length u32 | id 32 | crc u32 | payload

All little-endian; `crc` is the CRC-32 of the header before it, so that a torn or rotten header is
told from a rotten payload, whose record can be stepped over. Kinds: block, manifest, verified (a
manifest's mark, empty), path record, forgotten (a block found rotten, empty). Appending in order
and replaying in order gives the same index, so the index can always be rebuilt.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO

from .block import BLOCK_BYTES_MAX, Codec, Encoded
from .manifest import MANIFEST_BYTES_MAX

MAGIC = b"NARSWARM-PACK-1\n"
_HEADER = struct.Struct("<BBII32s")
HEADER_BYTES = _HEADER.size + 4


class RecordKind(IntEnum):
    BLOCK = 1
    MANIFEST = 2
    VERIFIED = 3
    PATH = 4
    FORGOTTEN = 5


@dataclass(frozen=True, slots=True)
class Header:
    kind: RecordKind
    codec: Codec
    length: int
    stored: int
    id: bytes


def write_header(kind: RecordKind, name: bytes, encoded: Encoded) -> bytes:
    head = _HEADER.pack(kind, encoded.codec, encoded.length, len(encoded.payload), name)
    return head + zlib.crc32(head).to_bytes(4, "little")


def read_header(data: bytes) -> Header | None:
    """None for anything but a whole header with a matching checksum and sane lengths."""
    if len(data) != HEADER_BYTES:
        return None
    if zlib.crc32(data[: _HEADER.size]) != int.from_bytes(data[_HEADER.size :], "little"):
        return None
    kind, codec, length, stored, name = _HEADER.unpack(data[: _HEADER.size])
    most = BLOCK_BYTES_MAX if kind == RecordKind.BLOCK else MANIFEST_BYTES_MAX
    try:
        header = Header(RecordKind(kind), Codec(codec), length, stored, name)
    except ValueError:
        return None
    return header if max(length, stored) <= most else None


def scan(file: BinaryIO, start: int) -> Iterator[tuple[int, Header, bytes]]:
    """(payload offset, header, payload) of each whole record from `start` on; stops at a tear."""
    file.seek(start)
    while True:
        header = read_header(file.read(HEADER_BYTES))
        if header is None:
            return
        at = file.tell()
        payload = file.read(header.stored)
        if len(payload) != header.stored:
            return
        yield at, header, payload
