"""Names of content: BlockId, ManifestId and NarHash, and Nix's base32.

BLAKE3-256 (https://github.com/BLAKE3-team/BLAKE3) names blocks and manifests; SHA-256 is Nix's.
"""

from __future__ import annotations

from typing import NewType, Protocol

import blake3

BlockId = NewType("BlockId", bytes)
"""BLAKE3-256 of a block's plain bytes; 32 bytes."""
ManifestId = NewType("ManifestId", bytes)
"""BLAKE3-256 of a manifest's canonical bytes; 32 bytes."""
NarHash = NewType("NarHash", bytes)
"""SHA-256 of a NAR; 32 bytes."""

Bytes = bytes | memoryview
"""A view is a part of what was read or received at once, and keeps all of that alive."""

DIGEST_BYTES = 32
STORE_HASH_CHARS = 32
NIX32_ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
NIX32_REMEMBERED_MAX = 512
"""A narinfo is read, verified, and soon after written anew, all with the same hash."""
_NIX32_PAIRS = [first + second for first in NIX32_ALPHABET for second in NIX32_ALPHABET]
_NIX32_DIGITS = frozenset(NIX32_ALPHABET)
_AS_BASE_32 = bytes(
    b"0123456789abcdefghijklmnopqrstuv"[NIX32_ALPHABET.index(char)] if char in _NIX32_DIGITS else 33
    for char in map(chr, range(256))
)
"""To the digits that `int` reads, and all else to one that it refuses (!)."""
_remembered: dict[bytes, str] = {}
"""Bytes and their digits, which are one text alone."""


class Digest(Protocol):
    """As hashlib has them."""

    def update(self, data: Bytes, /) -> object: ...

    def digest(self) -> bytes: ...


def new_blake3() -> Digest:
    return blake3.blake3()


def block_id(data: Bytes) -> BlockId:
    return BlockId(blake3.blake3(data).digest())


def manifest_id(encoded: bytes) -> ManifestId:
    return ManifestId(blake3.blake3(encoded).digest())


def nix32_encode(data: bytes) -> str:
    """Nix's base32 (src/libutil/hash.cc, printHash32): least significant digit last, no padding."""
    text = _remembered.get(data)
    if text is None:
        number = int.from_bytes(data, "little")
        digits = (len(data) * 8 + 4) // 5
        pairs = [_NIX32_PAIRS[(number >> (5 * n)) & 1023] for n in range(digits & ~1, -1, -2)]
        text = _remember(data, "".join(pairs)[2 * len(pairs) - digits :])
    return text


def nix32_decode(text: str, size_bytes: int = DIGEST_BYTES) -> bytes:
    """The inverse of `nix32_encode`. Raises ValueError for a wrong length, digit or overflow."""
    if len(text) != (size_bytes * 8 + 4) // 5:
        raise ValueError(f"{len(text)} base32 digits cannot be {size_bytes} bytes")
    try:
        number = int(text.encode().translate(_AS_BASE_32), 32)
    except ValueError:
        wrong = next(char for char in text if char not in _NIX32_DIGITS)
        raise ValueError(f"{wrong!r} is not a digit of Nix's base32") from None
    if number >> (size_bytes * 8):
        raise ValueError("base32 text has bits beyond its length")
    data = number.to_bytes(size_bytes, "little")
    _remember(data, text)
    return data


def _remember(data: bytes, text: str) -> str:
    if len(_remembered) >= NIX32_REMEMBERED_MAX:
        _remembered.clear()
    _remembered[data] = text
    return text
