"""What came in last is at hand, and no more than that."""

from __future__ import annotations

from chunker.block import Block
from peer.recent import RECENT_BYTES_MAX, Recent


def block(number: int, size: int) -> Block:
    return Block.of(number.to_bytes(4, "big") * (size // 4))


def test_the_oldest_give_way() -> None:
    recent, size = Recent(), 128 * 1024
    blocks = [block(number, size) for number in range(RECENT_BYTES_MAX // size + 3)]
    for one in blocks:
        recent.put([one])
    assert [one for one in blocks if recent.get(one.id) is None] == blocks[:3]


def test_what_comes_twice_counts_once() -> None:
    recent, size = Recent(), RECENT_BYTES_MAX // 16
    blocks = [block(number, size) for number in range(16)]
    recent.put(blocks + blocks)
    assert all(recent.get(one.id) is one for one in blocks)
