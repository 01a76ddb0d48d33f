"""What all tests share: a real Nix where one is needed, closures it built, and an end of each test.

A test that uses the fixture `nix`, by itself or through another, is marked `nix`: those, and only
those, `make interop-all` runs on every Nix.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.nix import Closure, Nix

TEST_SECONDS_MAX = 300
"""Of a test outside trio, as all are that start a Nix; a loop of trio would not survive the end."""

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("narswarm", deadline=None)
hypothesis.settings.load_profile("narswarm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "nix" in getattr(item, "fixturenames", ()):
            item.add_marker("nix")


@pytest.fixture(autouse=True)
def limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ends the test from within, wherever it stands: what it started is stopped as always."""
    if request.node.get_closest_marker("trio") is not None:
        yield
        return

    def end(*_: object) -> None:
        pytest.fail(f"not over after {TEST_SECONDS_MAX} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(TEST_SECONDS_MAX)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


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
