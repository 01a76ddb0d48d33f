"""The transport phase of Noise, for many messages at once and without copies it can do without.

https://github.com/libp2p/specs/blob/master/noise/README.md: each message is a two-byte big-endian
length and at most 65535 bytes of ChaCha20-Poly1305, the nonce a counter per direction. The
handshake is libp2p's; this takes over its keys and counters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

TAG_BYTES = 16
LENGTH_BYTES = 2
MESSAGE_BYTES_MAX = 65535
PLAIN_BYTES_MAX = MESSAGE_BYTES_MAX - TAG_BYTES
SMALL_BYTES = 1024
"""Pieces below this share a message; others are sealed from where they are."""


class NoiseError(Exception):
    """A message that this key did not seal, or one that cannot be a message."""


class Sealer:
    """`bytes_max`: the most plain bytes sealed at once."""

    def __init__(self, cipher: ChaCha20Poly1305, nonce: int, bytes_max: int) -> None:
        self._cipher = cipher
        self._nonce = nonce
        messages = 2 * (bytes_max // SMALL_BYTES) + 2
        self._sealed = memoryview(bytearray(bytes_max + messages * (LENGTH_BYTES + TAG_BYTES)))

    def seal(self, pieces: Iterable[bytes | memoryview]) -> memoryview:
        """The pieces as one run of messages; valid until the next call."""
        end, small = 0, bytearray()
        for piece in pieces:
            if len(piece) < SMALL_BYTES and len(small) < SMALL_BYTES:
                small += piece
                continue
            end = self._add(self._add(end, small), piece)
            small.clear()
        return self._sealed[: self._add(end, small)]

    def _add(self, end: int, plain: bytes | bytearray | memoryview) -> int:
        """Seal `plain` behind the first `end` sealed bytes; where those end now."""
        sealed, view = self._sealed, memoryview(plain)
        for at in range(0, len(view), PLAIN_BYTES_MAX):
            part = view[at : at + PLAIN_BYTES_MAX]
            size = len(part) + TAG_BYTES
            sealed[end : end + LENGTH_BYTES] = size.to_bytes(LENGTH_BYTES, "big")
            end += LENGTH_BYTES
            self._cipher.encrypt_into(_nonce(self._nonce), part, None, sealed[end : end + size])
            self._nonce += 1
            end += size
        view.release()
        return end


class Opener:
    def __init__(self, cipher: ChaCha20Poly1305, nonce: int) -> None:
        self._cipher = cipher
        self._nonce = nonce

    def open(self, sealed: memoryview) -> tuple[memoryview, int]:
        """(the plain bytes of every whole message, sealed bytes used up). Raises NoiseError."""
        from cryptography.exceptions import InvalidTag

        ends, total = self._messages(sealed)
        plain, filled, start = memoryview(bytearray(total)), 0, 0
        for end in ends:
            message = sealed[start + LENGTH_BYTES : end]
            size = len(message) - TAG_BYTES
            into = plain[filled : filled + size]
            try:
                self._cipher.decrypt_into(_nonce(self._nonce), message, None, into)
            except InvalidTag:
                raise NoiseError("a message that the peer did not seal") from None
            self._nonce += 1
            filled += size
            start = end
        return plain, start

    @staticmethod
    def _messages(sealed: memoryview) -> tuple[list[int], int]:
        """(where each whole message ends, their plain bytes)"""
        ends, at, total = [], 0, 0
        while len(sealed) - at >= LENGTH_BYTES:
            size = sealed[at] << 8 | sealed[at + 1]
            if size < TAG_BYTES:
                raise NoiseError(f"a message of {size} bytes")
            at += LENGTH_BYTES + size
            if at > len(sealed):
                break
            ends.append(at)
            total += size - TAG_BYTES
        return ends, total


def _nonce(counter: int) -> bytes:
    return b"\0\0\0\0" + counter.to_bytes(8, "little")
