"""A real Nix substitutes a real closure (benchmarks.debian) in an office, and from nginx beside it.

    origin: nginx, .nar.zst ===internet===+
    Nix and its gateway =======office=====+ bridge
    its neighbour, a gateway ===office====+

| way    | Nix asks    | the gateway's store | the neighbour's         |
|--------|-------------|---------------------|-------------------------|
| direct | the origin  |                     |                         |
| held   | its gateway | empty               | has the whole closure   |
| cold   | its gateway | empty               | empty: nobody holds it  |
| alone  | its gateway | empty               | there is no neighbour   |

Each round walks all ways in turn, every time with a fresh Nix store and fresh gateways that have
met before the clock starts; a ratio is over `direct` of the same round, and the figure is the
median of the rounds. On loopback, where every link is as fast as the machine, the same is done
once, for information: there all share the same processors.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import debian
from benchmarks.hosts import Host, Link, hosts
from benchmarks.members import cpu_seconds, fill_store
from benchmarks.origin import Nginx
from gateway.program import Program
from peer.identity import load_or_create

INTERNET_BITS = 100_000_000
OFFICE_BITS = 1_000_000_000
ROUNDS = 5
MEMORY_BYTES_MIN = 8 * 1024**3
WAYS = ("direct", "held", "cold", "alone")
SUBSTITUTIONS_AT_ONCE = 16
"""What Nix does since 2.14 (max-substitution-jobs). Those before count them as builds."""
NIX_SECONDS_MAX = 600.0

MEANING = {
    "closure_paths": "paths of the closure",
    "closure_nar_mb": "size of their NARs",
    "closure_file_mb": "size of the .nar.zst at the origin",
    "rounds": "all ways in turn, so many times; ratios and seconds are medians",
    "held_ratio": "from an office neighbour over nginx behind the internet; the floor is 0.6",
    "cold_ratio": "where nobody holds anything, over the same; the floor is 1.15",
    "alone_ratio": "the same without any neighbour",
    **{f"{way}_seconds": f"a whole substitution, {way}" for way in WAYS},
    "held_ratio_range": "the least and the most of the rounds",
    "cold_ratio_range": "the least and the most of the rounds",
    "held_cpu_seconds": "of the gateway and its neighbour, in one substitution",
    "cold_cpu_seconds": "the same where nobody holds anything",
    "alone_cpu_seconds": "of the gateway alone",
    "in_memory": "whether stores are in memory; on disk (`--disk`) Nix's own syncing counts too",
    **{f"loopback_{way}_seconds": f"{way}, all on one machine, once" for way in WAYS},
}


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything but the gateways. `full` is a store that holds the closure."""

    closure: debian.Kept
    client: Host
    neighbour: Host
    origin: str
    full: Path
    top: Path


@dataclass(frozen=True, slots=True)
class Took:
    seconds: float
    cpu_seconds: float


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"all ways in turn ({ROUNDS})")
    parser.add_argument("--disk", action="store_true", help="all stores on disk, not in memory")


def run(options: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """The name of the result and its figures. Raises NoHosts and NoClosure."""
    closure = debian.kept()
    memory = None if options.disk else _memory()
    with tempfile.TemporaryDirectory(prefix="narswarm-bench-", dir=memory) as directory:
        top = Path(directory)
        full = top / "full"
        fill_store(full, closure.cache, trust(closure))
        with scene_of(closure, top / "office", full) as scene:
            rounds = [
                {way: walk(scene, way) for way in _turned(WAYS, number)}
                for number in range(options.rounds)
            ]
        with scene_of(closure, top / "loopback", full, near=True) as scene:
            loopback = {way: walk(scene, way) for way in WAYS}
    figures = _figures(closure, rounds, loopback)
    figures["in_memory"] = memory is not None
    return "closure" if memory else "closure-disk", figures


def _memory() -> Path | None:
    """Where files cost no disk, if there is room. Nix writes each path to disk before it goes on,
    and on a slow disk that alone takes longer than all that is compared here."""
    place = Path("/dev/shm")
    there = place.is_dir() and shutil.disk_usage(place).free >= MEMORY_BYTES_MIN
    return place if there else None


def _turned(ways: Sequence[str], number: int) -> Sequence[str]:
    """Nobody is always first."""
    first = number % len(ways)
    return (*ways[first:], *ways[:first])


@contextmanager
def scene_of(closure: debian.Kept, top: Path, full: Path, *, near: bool = False) -> Iterator[Scene]:
    """`near`: all on one host."""
    top.mkdir()
    office = Link(OFFICE_BITS)
    links = [Link()] if near else [Link(INTERNET_BITS, shared=True), office, office]
    with hosts(links) as made:
        origin, client, neighbour = made * 3 if near else made
        nginx = Nginx(origin, closure.cache, top / "nginx")
        try:
            yield Scene(closure, client, neighbour, nginx.url, full, top)
        finally:
            nginx.stop()


def walk(scene: Scene, way: str) -> Took:
    if way == "direct":
        return Took(substitute(scene.client, scene.origin, scene.closure, scene.top), 0.0)
    stores = scene.top / "stores"
    stores.mkdir()
    neighbour = {"held": scene.full, "cold": stores / "neighbour", "alone": None}[way]
    try:
        with gateways(scene, stores / "client", neighbour) as programs:
            used = sum(cpu_seconds(program.process.pid) for program in programs)
            took = substitute(scene.client, programs[0].url, scene.closure, scene.top)
            used = sum(cpu_seconds(program.process.pid) for program in programs) - used
            return Took(took, used)
    finally:
        shutil.rmtree(stores)


@contextmanager
def gateways(
    scene: Scene,
    own: Path,
    neighbour: Path | None,
    more: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[list[Program]]:
    """The client's, and the neighbour's behind it; they have met. `more` options are for all."""
    places = [(scene.client, own)]
    if neighbour is not None:
        places.append((scene.neighbour, neighbour))
    ids = []
    for _, store in places:
        store.mkdir(mode=0o700, exist_ok=True)
        ids.append(load_or_create(store / "identity").peer_id)
    words = ("gateway", *trust(scene.closure), *more, "--upstream", scene.origin)
    with ExitStack() as stack:
        programs: list[Program] = []
        for number, (host, store) in reversed(list(enumerate(places))):
            known = [p.address for p in programs] or [i for i in ids if i != ids[number]]
            program = Program.start(
                [*words, *(word for peer in known for word in ("--peer", peer)),
                 "--listen", f"{host.address}:0"],
                store,
                within=host.within,
                environment=environment,
            )  # fmt: skip
            stack.callback(program.stop)
            programs.insert(0, program)
        programs[0].await_peers(len(programs) - 1)
        yield programs


def trust(closure: debian.Kept) -> tuple[str, ...]:
    return ("--no-nix-conf", "--trusted-public-key", closure.public_key)


def substitute(host: Host, url: str, closure: debian.Kept, top: Path) -> float:
    """Seconds until a fresh Nix on `host` has the closure from `url`. Raises RuntimeError."""
    place = Path(tempfile.mkdtemp(prefix="nix-", dir=top))
    settings = (
        f"{debian.NIX_SETTINGS}substituters = {url}\n"
        f"trusted-public-keys = {closure.public_key}\nmax-jobs = {SUBSTITUTIONS_AT_ONCE}\n"
    )
    try:
        began = time.monotonic()
        done = subprocess.run(
            [*host.within, "nix-store", "--store", str(place / "root"), "--realise", closure.root],
            env={**os.environ, "HOME": str(place), "NIX_CONFIG": settings},
            capture_output=True,
            text=True,
            timeout=NIX_SECONDS_MAX,
            check=False,
        )
        took = time.monotonic() - began
        if done.returncode != 0:
            raise RuntimeError(f"nix did not get the closure from {url}: {done.stderr[-2000:]}")
        return took
    finally:
        shutil.rmtree(place)


def _figures(
    closure: debian.Kept, rounds: Sequence[dict[str, Took]], loopback: dict[str, Took]
) -> dict[str, object]:
    figures: dict[str, object] = {
        "closure_paths": closure.paths,
        "closure_nar_mb": round(closure.nar_bytes / 1e6),
        "closure_file_mb": round(closure.file_bytes / 1e6),
        "rounds": len(rounds),
    }
    for way in WAYS[1:]:
        ratios = [one[way].seconds / one["direct"].seconds for one in rounds]
        figures[f"{way}_ratio"] = round(statistics.median(ratios), 3)
        if way != "alone":
            figures[f"{way}_ratio_range"] = f"{min(ratios):.3f} to {max(ratios):.3f}"
    for way in WAYS:
        seconds = statistics.median(one[way].seconds for one in rounds)
        figures[f"{way}_seconds"] = round(seconds, 2)
    for way in WAYS[1:]:
        used = statistics.median(one[way].cpu_seconds for one in rounds)
        figures[f"{way}_cpu_seconds"] = round(used, 2)
    for way, took in loopback.items():
        figures[f"loopback_{way}_seconds"] = round(took.seconds, 2)
    return figures
