"""What all tests share: a real Nix where one is needed, and closures it built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nix import Closure, Nix


@pytest.fixture(scope="session")
def nix(tmp_path_factory: pytest.TempPathFactory) -> Nix:
    """A real Nix with a HOME of its own. In CI its absence fails, elsewhere it skips."""
    if shutil.which("nix") is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs a real Nix: apt-get install nix-bin")
        pytest.skip("no Nix on this machine (apt-get install nix-bin)")
    return Nix(tmp_path_factory.mktemp("nix"))


@pytest.fixture(scope="session")
def closure(nix: Nix) -> Iterator[Closure]:
    """Built by nix-build: references, small and large paths, signed by the key `build-1`."""
    closure = Closure.build(nix, Path(__file__).parent / "interop" / "closure.nix")
    yield closure
    closure.delete()
