"""Every input that once mattered, and a short run of the fuzzer itself."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from tests.fuzz.mutation import Finding, Fuzzer
from tests.fuzz.targets import TARGETS

STEPS = 300


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_holds(name: str) -> None:
    target = TARGETS[name]
    corpus = target.corpus()
    assert len(corpus) > 5
    for data in corpus.values():
        target.try_one(data, Random(0))


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str) -> None:
    fuzzer = Fuzzer(TARGETS[name], Random(1))
    for _ in range(STEPS):
        fuzzer.step()
    assert fuzzer.runs > STEPS


def test_the_fuzzer_finds_what_is_wrong() -> None:
    """The canary: a parser that cannot stand a second Content-Length."""

    def breaks(data: bytes, chance: Random) -> None:
        assert data.count(b"Content-Length") < 2

    with pytest.raises(Finding):
        fuzzer = Fuzzer(replace(TARGETS["requests"], try_one=breaks), Random(1))
        for _ in range(5000):
            fuzzer.step()
