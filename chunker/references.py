"""Store hashes in and out of NARs: normalising makes two builds that differ only in them equal.

Needles are the hash parts of the references and of the path itself (32 characters, sorted,
distinct). Each occurrence anywhere, leftmost first and never overlapping, is overwritten by 32 zero
bytes, so offsets do not move; the rewrites (offset, needle) make it lossless.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import ahocorasick_rs
import blake3

from .digest import STORE_HASH_CHARS, Bytes

NEEDLE_BYTES = STORE_HASH_CHARS
ZEROS = bytes(NEEDLE_BYTES)


def needles_digest(needles: Sequence[bytes]) -> bytes:
    """BLAKE3 of the needles one after another; catches a disagreement on references."""
    return blake3.blake3(b"".join(needles)).digest()


@dataclass(frozen=True, slots=True)
class Rewrites:
    """Offsets in the NAR, ascending, at least 32 apart, and the index of the needle at each."""

    offsets: array[int]
    indexes: array[int]

    def __len__(self) -> int:
        return len(self.offsets)

    def encode(self) -> bytes:
        """Varints: gap since the end of the one before, index; canonical."""
        out, end = bytearray(), 0
        for offset, index in zip(self.offsets, self.indexes, strict=True):
            write_varint(out, offset - end)
            write_varint(out, index)
            end = offset + NEEDLE_BYTES
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes) -> Rewrites:
        """Raises ValueError for anything but what `encode` writes."""
        offsets, indexes, at, end = array("Q"), array("I"), 0, 0
        while at < len(data):
            gap, at = read_varint(data, at)
            index, at = read_varint(data, at)
            if end + gap >= 1 << 63 or index >= 1 << 32:
                raise ValueError("a rewrite beyond any NAR")
            offsets.append(end + gap)
            indexes.append(index)
            end += gap + NEEDLE_BYTES
        return cls(offsets, indexes)


class Normaliser:
    """feed the NAR in any split, get it normalised; holds back at most 31 bytes."""

    def __init__(self, needles: Sequence[bytes]) -> None:
        assert all(len(needle) == NEEDLE_BYTES for needle in needles)
        self.rewrites = Rewrites(array("Q"), array("I"))
        self._finder = ahocorasick_rs.BytesAhoCorasick(list(needles)) if needles else None
        self._tail = b""
        self._offset = 0

    def feed(self, data: bytes) -> bytes:
        return self._pass(self._tail + data, NEEDLE_BYTES - 1)

    def finish(self) -> bytes:
        return self._pass(self._tail, 0)

    def apply(self, data: bytes) -> bytes:
        """One piece by itself (a name, a link target), without recording rewrites."""
        if self._finder is None or len(data) < NEEDLE_BYTES:
            return data
        out = bytearray(data)
        for _, start, end in self._finder.find_matches_as_indexes(data):
            out[start:end] = ZEROS
        return bytes(out)

    def _pass(self, data: bytes, held_back: int) -> bytes:
        matches = self._finder.find_matches_as_indexes(data) if self._finder is not None else []
        upto = max(0, len(data) - held_back)
        out = data
        if matches:
            upto = max(upto, matches[-1][2])
            buffer = bytearray(data)
            for index, start, end in matches:
                buffer[start:end] = ZEROS
                self.rewrites.offsets.append(self._offset + start)
                self.rewrites.indexes.append(index)
            out = bytes(buffer)
        self._tail = data[upto:]
        self._offset += upto
        return out[:upto]


def restore(data: Bytes, offset: int, rewrites: Rewrites, needles: Sequence[bytes]) -> Bytes:
    """The piece of the NAR at `offset` with its hashes back; they may straddle its borders."""
    first = bisect_right(rewrites.offsets, offset - NEEDLE_BYTES)
    last = bisect_left(rewrites.offsets, offset + len(data), first)
    if first == last:
        return data
    # Joined from slices: one copy of the block, whatever the number of rewrites.
    pieces: list[Bytes] = []
    view, done = memoryview(data), 0
    starts, names = rewrites.offsets[first:last], rewrites.indexes[first:last]
    for start, name in zip(starts, names, strict=True):
        at = start - offset
        needle = needles[name]
        if at < 0:
            needle, at = needle[-at:], 0
        pieces += (view[done:at], needle)
        done = at + len(needle)
    pieces.append(view[done:])
    return b"".join(pieces)[: len(data)]


def write_varint(out: bytearray, number: int) -> None:
    """LEB128, as in protobuf."""
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, next position). Raises ValueError if cut, longer than needed or over 63 bits."""
    number = shift = 0
    while True:
        if at >= len(data) or shift > 56:
            raise ValueError("a number is cut or too long")
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            if byte == 0 and shift:
                raise ValueError("a number is longer than it need be")
            return number, at
        shift += 7
