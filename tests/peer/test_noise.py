"""Sealing and opening runs of Noise messages."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from peer.noise import MESSAGE_BYTES_MAX, NoiseError, Opener, Sealer

KEY = b"k" * 32
BYTES_MAX = 1024 * 1024


def pair(nonce: int = 0) -> tuple[Sealer, Opener]:
    cipher = ChaCha20Poly1305(KEY)
    return Sealer(cipher, nonce, BYTES_MAX), Opener(cipher, nonce)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_sealed_in_any_pieces_opens_in_any_splits(seed: int) -> None:
    chance = random.Random(seed)
    sealer, opener = pair(nonce=seed << 33)
    sent, wire, got = b"", b"", b""
    for _ in range(chance.randrange(1, 6)):
        sizes = [chance.choice([0, 1, 12, 500, 1024, 5000, 65519, 65520, 200_000]) for _ in "four"]
        pieces = [chance.randbytes(size) for size in sizes]
        sent += b"".join(pieces)
        wire += bytes(sealer.seal(pieces))
    left = b""
    while wire:
        size = chance.randrange(1, 150_000)
        left, wire = left + wire[:size], wire[size:]
        plain, used = opener.open(memoryview(left))
        got, left = got + bytes(plain), left[used:]
    assert (got, left) == (sent, b"")


def test_small_pieces_share_a_message() -> None:
    sealer, opener = pair()
    sealed = bytes(sealer.seal([b"header", b"body", b"header", b"x" * 900]))
    assert len(sealed) == 2 + 16 + 6 + 4 + 6 + 900
    assert bytes(opener.open(memoryview(sealed))[0]) == b"headerbodyheader" + b"x" * 900


def test_many_pieces_of_the_dearest_size_fit() -> None:
    """The buffer is sized for the worst mix of lengths."""
    sealer, opener = pair()
    pieces = [b"a" * 1023, b"b" * 1024] * (BYTES_MAX // 2047)
    plain, _ = opener.open(memoryview(bytes(sealer.seal(pieces))))
    assert bytes(plain) == b"".join(pieces)


def test_a_changed_byte_is_refused() -> None:
    sealer, opener = pair()
    sealed = bytearray(sealer.seal([b"x" * 100_000]))
    sealed[70_000] ^= 1
    with pytest.raises(NoiseError):
        opener.open(memoryview(bytes(sealed)))


def test_a_message_again_is_refused() -> None:
    sealer, opener = pair()
    sealed = bytes(sealer.seal([b"once"]))
    assert bytes(opener.open(memoryview(sealed))[0]) == b"once"
    with pytest.raises(NoiseError):
        opener.open(memoryview(sealed))


def test_what_cannot_be_a_message_is_refused() -> None:
    with pytest.raises(NoiseError):
        pair()[1].open(memoryview(b"\0\x0f" + bytes(15)))


def test_half_a_message_waits() -> None:
    sealed = bytes(pair()[0].seal([b"x" * MESSAGE_BYTES_MAX]))
    plain, used = pair()[1].open(memoryview(sealed[:1000]))
    assert (bytes(plain), used) == (b"", 0)
