"""A small swarm benchmark with real gateways in namespaces: counts are asserted, never times."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import crowd, swarm
from benchmarks.clients import Outcome
from benchmarks.crowd import Run, Shape
from benchmarks.hosts import Link, NoHosts
from tests.hosts import hosts_or_skip

MEGABIT = 1_000_000
SHAPE = Shape(peers=3, rate_bits=100 * MEGABIT, wan_bits=100 * MEGABIT, size_bytes=4_000_000)


@pytest.mark.netns
def test_a_crowd_of_three_gets_what_was_signed(tmp_path: Path) -> None:
    """The clients compare the SHA-256 themselves; the origin's log says what left it."""
    if shutil.which("nginx") is None and not os.environ.get("CI"):
        pytest.skip("needs nginx")
    try:
        with crowd.place(SHAPE, tmp_path / "place") as place:
            direct = place.direct(1_000_000)
            run = crowd.flash(place)
    except NoHosts as error:
        pytest.skip(str(error))
    assert [outcome.failed for outcome in direct] == [0, 0, 0]
    assert [(outcome.failed, outcome.errors) for outcome in run.outcomes] == [(0, ())] * 3
    assert run.origin_bytes >= SHAPE.size_bytes
    assert len(run.statuses) == 3
    assert run.figures()["failed_requests"] == 0
    assert run.figures().keys() <= swarm.MEANING.keys()


@pytest.mark.netns
def test_nothing_is_left_when_hosts_end() -> None:
    with hosts_or_skip([Link(), Link(10 * MEGABIT)]) as made:
        sleeping = subprocess.Popen([*made[1].within, "sleep", "1000"])
        while b"sleep" not in (Path("/proc") / str(sleeping.pid) / "cmdline").read_bytes()[:5]:
            assert sleeping.poll() is None
        names = {host.namespace for host in made}
        assert names <= _namespaces()
    assert sleeping.wait() == -9
    assert not names & _namespaces()


@pytest.mark.netns
def test_hosts_end_with_an_error_inside() -> None:
    names: set[str] = set()
    with pytest.raises(ZeroDivisionError), hosts_or_skip([Link()]) as made:
        names |= {host.namespace for host in made}
        raise ZeroDivisionError
    assert names and not names & _namespaces()


def _namespaces() -> set[str]:
    shown = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in shown.stdout.splitlines() if line}


def test_the_fluid_bound_takes_the_narrowest() -> None:
    size, mega = 1_000_000, MEGABIT
    assert Shape(2, 8 * mega, 4 * mega, size).fluid_seconds == 2.0  # the internet line
    assert Shape(2, 2 * mega, 8 * mega, size).fluid_seconds == 4.0  # each one's own link
    assert Shape(10, 4 * mega, 40 * mega, size, paths=10).fluid_seconds == 20.0
    assert Shape(16, 25 * mega, 25 * mega, size).direct_seconds == 16 * 8 / 25


def test_exact_duplicates_go_before_the_estimate() -> None:
    def run(*statuses: dict[str, object]) -> Run:
        outcome = Outcome(2.0, 0, 0, ())
        shape = Shape(1, 8 * MEGABIT, 8 * MEGABIT, 1_000_000)
        return Run(shape, [outcome], [1.0], 0, list(statuses), 0.5, 0.5, 100)

    estimated: dict[str, object] = {"wire_bytes": 1_030_000, "upstream_bytes": 20_000}
    assert run(estimated).duplicate_ratio() == 0.05
    assert run({**estimated, "duplicate_bytes": 1_000}).duplicate_ratio() == 0.001
    assert run(estimated, {"wire_bytes": 0, "upstream_bytes": 0}).duplicate_ratio() == 0.05
    assert run({"wire_bytes": 0}).duplicate_ratio() is None


@pytest.mark.parametrize(
    ("text", "found"), [("25mbit", 25_000_000), ("64MB", None), ("1gbit", 10**9), ("x", None)]
)
def test_rates_have_units(text: str, found: int | None) -> None:
    if found is None:
        with pytest.raises(swarm.argparse.ArgumentTypeError):
            swarm.bits(text)
    else:
        assert swarm.bits(text) == found


def test_a_floor_that_breaks_is_seen() -> None:
    good = {**swarm.FLOORS, "seconds_max": 9.0}
    assert swarm.holds(good)
    assert not swarm.holds({**good, "failed_requests": 1})
    assert not swarm.holds({**good, "duplicate_ratio": None})
