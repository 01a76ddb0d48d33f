"""A block at rest and on the wire, and the only two ways to obtain a verified one.

`Block.of(data)` computes the id; `verify(...)` decodes foreign bytes and compares. A store takes
only `Block`, so bytes that were never hashed cannot enter it (design invariant 3).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import IntEnum

import zstandard

from .digest import BlockId, Bytes, block_id
from .errors import BlockCorrupt

BLOCK_BYTES_MAX = 512 * 1024
ZSTD_LEVEL = 3


class Codec(IntEnum):
    RAW = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Encoded:
    """A block as stored or sent; `length` is that of the plain bytes. Nothing here is verified."""

    codec: Codec
    length: int
    payload: Bytes


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes whose BLAKE3 is `id`. Make one with `Block.of` or `verify`, never directly."""

    id: BlockId
    data: Bytes
    encoded: Encoded | None = None
    """The form in which it arrived, kept so that a store need not encode it again."""

    @classmethod
    def of(cls, data: bytes) -> Block:
        assert len(data) <= BLOCK_BYTES_MAX
        return cls(block_id(data), data)


_local = threading.local()


def encode(data: Bytes, codec: Codec = Codec.ZSTD) -> Encoded:
    """zstd at level 3, or raw where that is not smaller."""
    if codec is Codec.ZSTD:
        if not hasattr(_local, "compressor"):
            _local.compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        payload = _local.compressor.compress(data)
        if len(payload) < len(data):
            return Encoded(Codec.ZSTD, len(data), payload)
    return Encoded(Codec.RAW, len(data), data)


def verify(wanted: BlockId, encoded: Encoded) -> Block:
    """Decode and hash. Raises BlockCorrupt; output is bounded by `encoded.length` <= 512 KiB."""
    if not 0 < encoded.length <= BLOCK_BYTES_MAX:
        raise BlockCorrupt(wanted, f"a length of {encoded.length} bytes")
    data = encoded.payload
    if encoded.codec is Codec.ZSTD:
        data = _decompress(wanted, encoded)
    if len(data) != encoded.length:
        raise BlockCorrupt(wanted, f"{len(data)} bytes where {encoded.length} were announced")
    if block_id(data) != wanted:
        raise BlockCorrupt(wanted, "its BLAKE3 does not match")
    return Block(wanted, data, encoded)


def _decompress(wanted: BlockId, encoded: Encoded) -> Bytes:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    try:
        size = zstandard.frame_content_size(encoded.payload)
        if size != encoded.length:
            raise BlockCorrupt(wanted, f"its zstd frame holds {size} bytes, not {encoded.length}")
        data: bytes = _local.decompressor.decompress(
            encoded.payload, max_output_size=encoded.length, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise BlockCorrupt(wanted, f"zstd: {error}") from error
    return data
