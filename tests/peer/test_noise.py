"""Sealing and opening runs of Noise messages."""

from __future__ import annotations

import random

import pytest
from noise.backends.default.ciphers import AESGCMCipher, ChaCha20Cipher, CryptographyCipher

from peer.noise import (
    BUFFER_BYTES,
    BUFFERS_KEPT_MAX,
    FULL_BYTES,
    MESSAGE_BYTES_MAX,
    Buffers,
    NoiseError,
    Opener,
    Sealer,
)

KEY = b"k" * 32


def pair(nonce: int = 0, kind: type[CryptographyCipher] = ChaCha20Cipher) -> tuple[Sealer, Opener]:
    cipher, buffers = kind(), Buffers()
    cipher.initialize(KEY)
    inside = cipher.cipher, cipher.format_nonce, nonce, buffers
    return Sealer(*inside), Opener(*inside)


def whole(sealer: Sealer, pieces: list[bytes]) -> bytes:
    return b"".join(bytes(run) for run in sealer.seal(pieces))


def sizes(sealed: bytes) -> list[int]:
    """Of the messages, as they are."""
    found, at = [], 0
    while at < len(sealed):
        found.append(sealed[at] << 8 | sealed[at + 1])
        at += 2 + found[-1]
    return found


@pytest.mark.parametrize("kind", [AESGCMCipher, ChaCha20Cipher])
@pytest.mark.parametrize("seed", range(20))
def test_what_is_sealed_in_any_pieces_opens_in_any_splits(
    seed: int, kind: type[CryptographyCipher]
) -> None:
    chance = random.Random(seed)
    sealer, opener = pair(seed << 33, kind)
    sent, wire, got = b"", b"", b""
    for _ in range(chance.randrange(1, 6)):
        sizes = [
            chance.choice([0, 1, 12, 500, 1024, 5000, FULL_BYTES, 65520, 200_000, 2_000_000])
            for _ in "four"
        ]
        pieces = [chance.randbytes(size) for size in sizes]
        sent += b"".join(pieces)
        wire += whole(sealer, pieces)
    left = b""
    while wire:
        size = chance.randrange(1, BUFFER_BYTES)
        left, wire = left + wire[:size], wire[size:]
        plain, used = opener.open(memoryview(left))
        got, left = got + bytes(plain), left[used:]
    assert (got, left) == (sent, b"")


def test_small_pieces_share_a_message() -> None:
    sealer, opener = pair()
    sealed = whole(sealer, [b"header", b"body", b"header", b"x" * 900])
    assert len(sealed) == 2 + 16 + 6 + 4 + 6 + 900
    assert bytes(opener.open(memoryview(sealed))[0]) == b"headerbodyheader" + b"x" * 900


def test_all_messages_but_the_last_are_full_wherever_pieces_meet() -> None:
    """A message of another length costs the cipher a fifth more."""
    pieces = [b"a" * 12, b"b" * 152_000, b"c" * 12, b"d" * 300_000, b"e" * FULL_BYTES]
    sealed = sizes(whole(pair()[0], pieces))
    total = sum(map(len, pieces))
    assert sealed == [FULL_BYTES + 16] * (total // FULL_BYTES) + [total % FULL_BYTES + 16]


def test_runs_fit_into_a_buffer_and_are_sealed_as_they_are_asked_for() -> None:
    sealer, opener = pair()
    runs = [bytes(run) for run in sealer.seal([b"x" * 5 * BUFFER_BYTES])]
    assert max(map(len, runs)) <= BUFFER_BYTES
    assert sum(len(opener.open(memoryview(run))[0]) for run in runs) == 5 * BUFFER_BYTES


def test_memory_is_used_again_once_nobody_looks_at_it() -> None:
    buffers = Buffers()
    first = buffers.take(BUFFER_BYTES)
    first[0] = 7
    part = first[:1]
    del first
    assert buffers.take(BUFFER_BYTES)[0] == 0  # a part is still looked at
    del part
    assert buffers.take(BUFFER_BYTES)[0] == 7


def test_no_more_memory_is_kept_than_a_few_buffers() -> None:
    buffers = Buffers()
    taken = [buffers.take(BUFFER_BYTES) for _ in range(BUFFERS_KEPT_MAX + 3)]
    del taken
    assert len(buffers._kept) == BUFFERS_KEPT_MAX


def test_a_changed_byte_is_refused() -> None:
    sealer, opener = pair()
    sealed = bytearray(whole(sealer, [b"x" * 100_000]))
    sealed[70_000] ^= 1
    with pytest.raises(NoiseError):
        opener.open(memoryview(bytes(sealed)))


def test_a_message_again_is_refused() -> None:
    sealer, opener = pair()
    sealed = whole(sealer, [b"once"])
    assert bytes(opener.open(memoryview(sealed))[0]) == b"once"
    with pytest.raises(NoiseError):
        opener.open(memoryview(sealed))


def test_what_cannot_be_a_message_is_refused() -> None:
    with pytest.raises(NoiseError):
        pair()[1].open(memoryview(b"\0\x0f" + bytes(15)))


def test_half_a_message_waits() -> None:
    sealed = whole(pair()[0], [b"x" * MESSAGE_BYTES_MAX])
    plain, used = pair()[1].open(memoryview(sealed[:1000]))
    assert (bytes(plain), used) == (b"", 0)
