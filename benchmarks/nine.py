"""A real Nix and a gateway with nine upstreams of which one is good, beside the good one alone.

    origin: nginx, .nar.zst, good ==internet==+
    Nix and its gateway ==========office======+ bridge
    eight bad caches ============office=======+ (benchmarks.bad_caches), nearer than the good one

The closure and the links are those of `python -m benchmarks closure`. Each round walks both ways in
turn, every time with a fresh Nix store and a fresh gateway, and gives a ratio; the figure is the
median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import debian
from benchmarks.bad_caches import KINDS
from benchmarks.closure import Scene, gateways, scene_of, substitute

ROUNDS = 5
STOP_SECONDS_MAX = 30.0

MEANING = {
    "nine_ratio": "from nine upstreams over from the good one alone; the floor is 1.1",
    "nine_ratio_range": "the least and the most of the rounds",
    "nine_seconds": "a whole substitution, nine upstreams",
    "one_seconds": "a whole substitution, the good upstream alone",
    "nine_private_requests": "that reached an address which a redirect named; the floor is 0",
    "nine_untrusted_nars": "asked of those whose narinfos nobody trusted signed; the floor is 0",
    "nine_truncated_nars": "asked in a round of the upstream that serves half of each",
    "nine_redirects_nars": "asked in a round of the upstream that redirects",
    "nine_slow_nars": "asked in a round of the slow upstream",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"both ways in turn ({ROUNDS})")


def run(options: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """The name of the result and its figures. Raises NoHosts and NoClosure."""
    closure = debian.kept()
    asked = Counter[str]()
    ratios: list[float] = []
    nine: list[float] = []
    one: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="narswarm-bench-") as directory,
        scene_of(closure, Path(directory) / "office", Path(directory) / "none") as scene,
    ):
        for number in range(options.rounds):
            if number % 2:
                nine.append(_with_bad(scene, asked))
                one.append(_alone(scene))
            else:
                one.append(_alone(scene))
                nine.append(_with_bad(scene, asked))
            ratios.append(nine[-1] / one[-1])
    figures: dict[str, object] = {
        "rounds": options.rounds,
        "nine_ratio": round(statistics.median(ratios), 3),
        "nine_ratio_range": f"{min(ratios):.3f} to {max(ratios):.3f}",
        "nine_seconds": round(statistics.median(nine), 2),
        "one_seconds": round(statistics.median(one), 2),
        "nine_private_requests": asked["private"],
        "nine_untrusted_nars": asked["unsigned nar"] + asked["foreign nar"],
    }
    for kind in ("truncated", "redirects", "slow"):
        figures[f"nine_{kind}_nars"] = round(asked[f"{kind} nar"] / options.rounds, 1)
    return "nine", figures


def _alone(scene: Scene) -> float:
    return _substitute(scene, (), {})


def _with_bad(scene: Scene, asked: Counter[str]) -> float:
    """The bad ones are fresh as well: how often they were `asked` is added."""
    with _bad_caches(scene, asked) as (words, environment):
        return _substitute(scene, words, environment)


def _substitute(scene: Scene, words: tuple[str, ...], environment: dict[str, str]) -> float:
    store = scene.top / "gateway"
    try:
        with gateways(scene, store, None, words, environment) as (gateway,):
            return substitute(scene.client, gateway.url, scene.closure, scene.top)
    finally:
        shutil.rmtree(store)


@contextmanager
def _bad_caches(
    scene: Scene, asked: Counter[str]
) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """On a host of their own: (options for a gateway, its environment)."""
    host, direct = scene.neighbour, urlsplit(scene.origin).hostname
    process = subprocess.Popen(
        [*host.within, sys.executable, "-m", "benchmarks.bad_caches",
         str(scene.closure.cache), host.address, str(direct)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert len(said["options"]) == 2 * len(KINDS)
        yield tuple(said["options"]), said["environment"]
        told, _ = process.communicate(timeout=STOP_SECONDS_MAX)
        asked.update(json.loads(told))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
