"""Decoders with a bound: an upstream's NAR never becomes more than the NarSize that was signed.

Output leaves in pieces of at most 1 MiB, so that a bomb costs one piece of memory and not its size.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from typing import Protocol

import brotli
import zstandard

from .errors import UpstreamError, UpstreamLied

PIECE_BYTES = 1024 * 1024
XZ_MEMORY_BYTES_MAX = 80 * 1024 * 1024
"""`xz -9` needs 65 MiB, more only what nobody means well with."""
ZSTD_WINDOW_BYTES_MAX = 1 << 27


_ERRORS = (
    OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError, brotli.error,
)  # fmt: skip


class _Codec(Protocol):
    def pieces(self, data: bytes) -> Iterator[bytes]: ...
    @property
    def at_end(self) -> bool: ...


class _Plain:
    at_end = True

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), PIECE_BYTES):
            yield data[at : at + PIECE_BYTES]


class _Bounded:
    """bz2 and lzma: `decompress(data, max_length)`, `needs_input`, `eof`."""

    def __init__(self, codec: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> None:
        self._codec = codec

    @property
    def at_end(self) -> bool:
        return self._codec.eof

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._codec.eof:
            raise UpstreamLied("bytes after the end of the compressed NAR")
        yield self._codec.decompress(data, PIECE_BYTES)
        while not self._codec.needs_input and not self._codec.eof:
            yield self._codec.decompress(b"", PIECE_BYTES)


class _Gzip:
    def __init__(self) -> None:
        self._codec = zlib.decompressobj(wbits=31)

    @property
    def at_end(self) -> bool:
        return self._codec.eof

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data and not self._codec.eof:
            yield self._codec.decompress(data, PIECE_BYTES)
            data = self._codec.unconsumed_tail
        if data or self._codec.unused_data:
            raise UpstreamLied("bytes after the end of the compressed NAR")


class _Zstd:
    """Input is fed in small steps: the codec has no output bound, but a block of 128 KiB takes at
    least 4 bytes, so a step gives at most 2 MiB."""

    STEP_BYTES = 64

    def __init__(self) -> None:
        factory = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
        self._codec = factory.decompressobj(write_size=PIECE_BYTES)

    @property
    def at_end(self) -> bool:
        return self._codec.eof

    def pieces(self, data: bytes) -> Iterator[bytes]:
        out = bytearray()
        for at in range(0, len(data), self.STEP_BYTES):
            if self._codec.eof:
                raise UpstreamLied("bytes after the end of the compressed NAR")
            out += self._codec.decompress(data[at : at + self.STEP_BYTES])
            if len(out) >= PIECE_BYTES:
                yield bytes(out)
                out.clear()
        yield bytes(out)


class _Brotli:
    """Its window is at most 16 MiB (RFC 7932; "large window" streams are refused)."""

    def __init__(self) -> None:
        self._codec = brotli.Decompressor()

    @property
    def at_end(self) -> bool:
        return bool(self._codec.is_finished())

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._codec.is_finished():
            raise UpstreamLied("bytes after the end of the compressed NAR")
        piece = self._codec.process(data, output_buffer_limit=PIECE_BYTES)
        # It takes more input while it still holds output, so both are asked.
        while piece or not self._codec.can_accept_more_data():
            yield piece
            if self._codec.is_finished():
                return
            piece = self._codec.process(b"", output_buffer_limit=PIECE_BYTES)


class Decoder:
    """feed compressed bytes, get plain pieces. Raises UpstreamLied."""

    def __init__(self, codec: _Codec, output_bytes_max: int) -> None:
        self._codec = codec
        self._left = output_bytes_max

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            for piece in self._codec.pieces(data):
                self._left -= len(piece)
                if self._left < 0:
                    raise UpstreamLied("the NAR is longer than its signed NarSize")
                if piece:
                    yield piece
        except _ERRORS as error:
            raise UpstreamLied(f"the compressed NAR is damaged: {error}") from error

    def finish(self) -> None:
        if not self._codec.at_end:
            raise UpstreamLied("the compressed NAR ends too early")


def make_decoder(compression: str, output_bytes_max: int) -> Decoder:
    """`compression` as in a narinfo. Raises UpstreamError for an unknown one."""
    codec: _Codec
    if compression == "none":
        codec = _Plain()
    elif compression == "xz":
        codec = _Bounded(lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY_BYTES_MAX))
    elif compression == "bzip2":
        codec = _Bounded(bz2.BZ2Decompressor())
    elif compression == "gzip":
        codec = _Gzip()
    elif compression == "zstd":
        codec = _Zstd()
    elif compression == "br":
        codec = _Brotli()
    else:
        raise UpstreamError(f"the compression {compression!r:.40} is not known here")
    return Decoder(codec, output_bytes_max)
