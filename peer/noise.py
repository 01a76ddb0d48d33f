"""The transport phase of Noise, for many messages at once and without copies it can do without.

https://github.com/libp2p/specs/blob/master/noise/README.md: each message is a two-byte big-endian
length and at most 65535 bytes of ChaCha20-Poly1305 or AES-GCM (`handshake` says when), the nonce a
counter per direction. The handshake is libp2p's; this takes over its keys and counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from chunker.digest import Bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

TAG_BYTES = 16
LENGTH_BYTES = 2
MESSAGE_BYTES_MAX = 65535
FULL_BYTES = 63 * 1024
"""Plain bytes of a message that is followed by others: the most that is a multiple of 256. Another
length costs the cipher a slower way for its last bytes, a fifth of the time of a full message."""
BUFFER_BYTES = 1024 * 1024
BUFFERS_KEPT_MAX = 4
"""One read into, one opened into, one sealed into, and one still looked at."""


FormatNonce = Callable[[int], bytes]
"""A counter as the 12 bytes that Noise gives this cipher: big-endian for AES-GCM, else little."""


class NoiseError(Exception):
    """A message that this key did not seal, or one that cannot be a message."""


class Buffers:
    """Memory for messages, shared by connections and used again once nobody looks at it: fresh
    memory costs half as much as the cipher that writes into it."""

    def __init__(self) -> None:
        self._kept: list[bytearray] = []

    def take(self, size: int) -> memoryview:
        """`size` bytes of any content, for as long as the view or a part of it lives."""
        if not BUFFER_BYTES // 4 <= size <= BUFFER_BYTES:
            return memoryview(bytearray(size))
        for buffer in self._kept:
            if _is_free(buffer):
                return memoryview(buffer)[:size]
        buffer = bytearray(BUFFER_BYTES)
        if len(self._kept) < BUFFERS_KEPT_MAX:
            self._kept.append(buffer)
        return memoryview(buffer)[:size]


def _is_free(buffer: bytearray) -> bool:
    """Whether no view of it is left: Python changes the size of no other."""
    try:
        buffer.append(buffer.pop())
    except BufferError:
        return False
    return True


class _Direction:
    """What one side seals, or opens: its cipher, and how many messages it was used for."""

    def __init__(
        self,
        cipher: AESGCM | ChaCha20Poly1305,
        format_nonce: FormatNonce,
        nonce: int,
        buffers: Buffers,
    ) -> None:
        self._cipher = cipher
        self._format_nonce = format_nonce
        self._nonce = nonce
        self._buffers = buffers


class Sealer(_Direction):
    def seal(self, pieces: Sequence[Bytes]) -> Iterator[memoryview]:
        """The pieces as messages, all but the last full, in runs of at most BUFFER_BYTES; each run
        is valid until the next is asked for."""
        total = sum(map(len, pieces))
        messages = -(-total // FULL_BYTES)
        sealed_bytes = total + messages * (LENGTH_BYTES + TAG_BYTES)
        run, end = self._buffers.take(min(sealed_bytes, BUFFER_BYTES)), 0
        for plain in _messages_of(pieces, min(total, FULL_BYTES)):
            if end + LENGTH_BYTES + len(plain) + TAG_BYTES > len(run):
                yield run[:end]
                end = 0
            start = end + LENGTH_BYTES
            end = start + len(plain) + TAG_BYTES
            run[start - LENGTH_BYTES : start] = (end - start).to_bytes(LENGTH_BYTES, "big")
            self._cipher.encrypt_into(self._format_nonce(self._nonce), plain, None, run[start:end])
            self._nonce += 1
        if end:
            yield run[:end]


def _messages_of(pieces: Iterable[Bytes], joined_bytes: int) -> Iterator[memoryview]:
    """The same bytes, each but the last FULL_BYTES long and valid until the next: from where they
    are, or joined where pieces meet."""
    joined, filled = memoryview(bytearray(joined_bytes)), 0
    for piece in pieces:
        view = memoryview(piece)
        if filled:
            part = view[: FULL_BYTES - filled]
            joined[filled : filled + len(part)] = part
            filled += len(part)
            if filled < FULL_BYTES:
                continue
            yield joined
            view = view[len(part) :]
        full = len(view) - len(view) % FULL_BYTES
        for at in range(0, full, FULL_BYTES):
            yield view[at : at + FULL_BYTES]
        filled = len(view) - full
        joined[:filled] = view[full:]
    if filled:
        yield joined[:filled]


def missing_bytes(begun: Bytes) -> int:
    """How many more are at least needed for the message that these are the beginning of."""
    if len(begun) < LENGTH_BYTES:
        return LENGTH_BYTES + TAG_BYTES - len(begun)
    return LENGTH_BYTES + (begun[0] << 8 | begun[1]) - len(begun)


def sealed_bytes_min(plain_bytes: int) -> int:
    """So many bytes at least are needed for that many."""
    messages = -(-plain_bytes // (MESSAGE_BYTES_MAX - TAG_BYTES))
    return plain_bytes + messages * (LENGTH_BYTES + TAG_BYTES)


class Opener(_Direction):
    def open(self, sealed: memoryview) -> tuple[memoryview, int]:
        """(the plain bytes of every whole message, sealed bytes used up). Raises NoiseError."""
        from cryptography.exceptions import InvalidTag

        ends, total = self._messages(sealed)
        plain, filled, start = self._buffers.take(total), 0, 0
        for end in ends:
            message = sealed[start + LENGTH_BYTES : end]
            size = len(message) - TAG_BYTES
            into = plain[filled : filled + size]
            try:
                self._cipher.decrypt_into(self._format_nonce(self._nonce), message, None, into)
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
