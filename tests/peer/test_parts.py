"""Whose part each block is: as many bytes for everybody, and the same for all who look."""

from __future__ import annotations

import random

from peer.parts import Parts


def lengths_of(blocks: int) -> list[int]:
    """As they are cut: 32 to 512 KiB."""
    chance = random.Random(1)
    return [min(max(int(chance.gauss(149_000, 90_000)), 32_768), 524_288) for _ in range(blocks)]


def test_nobody_is_ahead_by_more_than_one_block() -> None:
    lengths, parts, had = lengths_of(2000), Parts(15), [0] * 15
    for index, length in enumerate(lengths):
        assert had[parts.place(index, lengths)] == min(had)
        had[parts.place(index, lengths)] += length
    assert max(had) - min(had) <= max(lengths)


def test_it_does_not_matter_when_one_looks() -> None:
    """A manifest grows, and some hear of its end later, or look at its end first."""
    lengths = lengths_of(300)
    step, back = Parts(7), Parts(7)
    as_it_grew = [step.place(index, lengths[: index + 1]) for index in range(300)]
    assert as_it_grew == [back.place(index, lengths) for index in reversed(range(300))][::-1]
