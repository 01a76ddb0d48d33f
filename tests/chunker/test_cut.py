"""The cut rule is frozen: golden lengths and ids, the same for any split."""

from __future__ import annotations

import json
import random
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest

from chunker.cut import BATCH_BYTES_MIN, BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Cutter
from tests.golden.samples import sample_bytes, sample_manifest

CUTS = json.loads((Path(__file__).parents[1] / "golden" / "cuts.json").read_text())


def cut(data: bytes, steps: list[int] | None = None) -> list[int]:
    cutter, sizes, at = Cutter(), [], 0
    for step in steps or [len(data)]:
        sizes += map(len, cutter.feed(data[at : at + step]))
        at += step
    assert at >= len(data)
    return [*sizes, *map(len, cutter.finish())]


def test_golden_blocks_and_manifest() -> None:
    name, manifest = sample_manifest(sample_bytes())
    assert list(manifest.lengths) == CUTS["lengths"]
    assert [block.hex() for block in manifest.blocks] == CUTS["blocks"]
    pairs = zip(manifest.rewrites.offsets, manifest.rewrites.indexes, strict=True)
    assert [list(pair) for pair in pairs] == CUTS["rewrites"]
    assert name.hex() == CUTS["manifest"]


@pytest.mark.parametrize("seed", range(8))
def test_the_same_cuts_for_any_split(seed: int) -> None:
    chance = random.Random(seed)
    data = sample_bytes(6_000_000 + seed, "any split")
    steps = []
    while sum(steps) < len(data):
        steps.append(chance.choice([1, 1000, 65_536, 700_000, 5_000_000]))
    assert cut(data, steps) == cut(data)


@pytest.mark.parametrize("over", range(-2, 3))
def test_what_has_come_so_far_ends_no_block(over: int) -> None:
    data = sample_bytes(2_000_000)
    whole = cut(data)
    for end in accumulate(whole[:-1]):
        cutter = Cutter()
        first = [*map(len, cutter.feed(data[: end + over]))]
        rest = [*map(len, cutter.feed(data[end + over :])), *map(len, cutter.finish())]
        assert first + rest == whole


def test_others_wait_for_no_more_than_a_batch() -> None:
    """What is held back is a batch, and the block that has not ended."""
    data, cutter, given = sample_bytes(3_000_000), Cutter(), 0
    lengths = cut(data)
    for at in range(0, len(data), 65_536):
        given += sum(map(len, cutter.feed(data[at : at + 65_536])))
        came = min(at + 65_536, len(data))
        ended = [end for end in accumulate(lengths) if end < came - BATCH_BYTES_MIN]
        assert given >= (ended[-1] if ended else 0)


def test_many_small_pieces_are_looked_at_together() -> None:
    cutter, data = Cutter(), sample_bytes(1_000_000)
    looks, cut_buf = 0, cutter._rule.cut_buf

    def counted(whole: bytes) -> object:
        nonlocal looks
        looks += 1
        return cut_buf(whole)

    cutter._rule = SimpleNamespace(cut_buf=counted)  # type: ignore[assignment]
    for at in range(0, len(data), 1000):
        cutter.feed(data[at : at + 1000])
    assert looks <= len(data) // BATCH_BYTES_MIN


def test_blocks_keep_the_bounds() -> None:
    sizes = cut(sample_bytes(8_000_000))
    assert sum(sizes) == 8_000_000
    assert all(BLOCK_BYTES_MIN <= size <= BLOCK_BYTES_MAX for size in sizes[:-1])
    assert max(cut(bytes(3_000_000))) <= BLOCK_BYTES_MAX


def test_an_insertion_changes_only_blocks_near_it() -> None:
    data = sample_bytes(4_000_000)
    before = sample_manifest(data)[1].blocks
    after = sample_manifest(data[:2_000_000] + b"inserted" + data[2_000_000:])[1].blocks
    assert len(set(after) - set(before)) <= 5


def test_nothing_gives_nothing() -> None:
    assert cut(b"") == []
    assert cut(b"x") == [1]
