"""The lookup benchmark in small: every figure is there, and every question was answered."""

from __future__ import annotations

import os
import shutil

import pytest

from benchmarks import lookup

NEEDED = ("nginx", "curl", "openssl")
MISSING = [name for name in NEEDED if shutil.which(name) is None]


@pytest.mark.skipif(bool(MISSING) and "CI" not in os.environ, reason=f"no {MISSING} here")
def test_a_small_run_measures_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PATHS", 60), ("ROUNDS", 1), ("MEMBERS", 1), ("QUESTIONS", 3)):
        monkeypatch.setattr(lookup, name, value)
    monkeypatch.setattr(lookup, "WRK_SECONDS", 1)
    figures = lookup.run()
    assert figures.keys() == lookup.MEANING.keys()
    with_wrk = {name for name in figures if "requests" in name}
    assert all(figures[name] is not None for name in figures.keys() - with_wrk)
