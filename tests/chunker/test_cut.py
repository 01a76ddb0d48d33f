"""The cut rule is frozen: golden lengths and ids, the same for any split."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from chunker.cut import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Cutter
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
