"""An office that wants the same thing at once: the shipped program in network namespaces.

    crowd       all at once; then the same without peers, each client straight to the origin
    staggered   each at a moment of its own
    liar        one member in four flips a bit in each block it sends, beside an honest crowd
    churn       a third of the members is killed in mid-transfer and comes back
    small       many small NARs from a neighbour, beside direct HTTP over the same link
    idle        connected, and nothing to do

`--growth` runs the crowd for 2, 4, 8 ... members, `--find-rate` for faster and faster links until a
floor breaks. The theory and the bound are in `benchmarks.crowd`.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks import crowd, small
from benchmarks.crowd import Figures, Place, Shape
from benchmarks.members import Members

UNITS = {"kb": 1000, "mb": 1000**2, "gb": 1000**3, "kbit": 1000, "mbit": 1000**2, "gbit": 1000**3}
DIRECT_BYTES = 8_000_000
STAGGER_SEED = 4
LIARS_SHARE = 4
GROWTH = (2, 4, 8, 16, 24)
RATES_MBIT = (25, 30, 35, 40, 50, 75, 100, 150, 200, 300, 400)
SMALL_PATHS, SMALL_BYTES = 1000, 50_000
SETTLE_SECONDS = 10
IDLE_SECONDS = 30
FLOORS = {
    "time_ratio_median": 1.15,
    "time_ratio_max": 1.5,
    "origin_copies": 1.05,
    "duplicate_ratio": 0.02,
    "failed_requests": 0,
}

MEANING = {
    "peers": "members, each with a client",
    "rate_mbit": "rate of every link and of the internet line",
    "rate_mbit_max": "the fastest links at which these processors hold all floors",
    "time_ratio_median": "time to the last byte over the fluid bound, median; the floor is 1.15",
    "time_ratio_max": "the same, slowest machine; the floor is 1.5",
    "fluid_seconds": "the bound: max(F / wan, F / down, N F / (wan + N up))",
    "seconds_median": "time to the last byte, median",
    "seconds_max": "the same, slowest machine",
    "origin_copies": "bytes of NARs that the origin sent over their size; the floor is 1.05",
    "duplicate_ratio": "bytes received beyond those needed, over those needed; the floor is 0.02",
    "failed_requests": "paths that a client did not get; the floor is 0",
    "cpu_share": "of all processors of the machine, whoever used it",
    "gateway_cpu_share": "of all processors, by the gateways",
    "gateway_rss_mb_max": "peak RSS of the largest gateway",
    "direct_seconds_median": "without peers, each client straight to the origin",
    "direct_seconds_max": "the same, slowest machine",
    "direct_measured_mb": "size at which that was measured; the seconds are scaled from it",
    "honest_seconds_median": "the same clients without liars, in the same run",
    "liar_ratio_median": "with liars over honest, median machine; the floor is 1.3",
    "liar_ratio_max": "with liars over honest, slowest machine; the floor is 1.3",
    "continued_requests": "how often clients of killed members tried to go on where they were cut",
    "small_ratio": "through the gateway over direct HTTP; the floor is 1.3",
    "small_seconds": "all paths from the neighbour through the gateway, slowest machine",
    "small_direct_seconds": "all paths from nginx over the same link, slowest machine",
    "idle_cpu_percent_each": "of one processor, a gateway that does nothing",
    "idle_rss_mb_each": "RSS of such a gateway, the largest",
    "idle_kbit_each": "what each sends to say nothing",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--peers", type=int, default=16, help="members of the office")
    add("--rate", type=bits, default=bits("25mbit"), help="of each link (25mbit)")
    add("--wan", type=bits, help="of the origin's link; as --rate if not given")
    add("--size", type=size, default=size("64MB"), help="of the NAR (64MB)")
    add("--direct-size", type=size, default=DIRECT_BYTES, metavar="SIZE",
        help="measure without peers with so much and scale (8MB)")  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--scenario", choices=SCENARIOS, default="crowd")
    kind.add_argument("--growth", action="store_true", help=f"the crowd for N in {GROWTH}")
    kind.add_argument("--find-rate", action="store_true",
                      help=f"the crowd at mbit in {RATES_MBIT}, until a floor breaks")  # fmt: skip


def bits(text: str) -> int:
    """Bits per second of `25mbit`."""
    return _quantity(text, "bit")


def size(text: str) -> int:
    """Bytes of `64MB`."""
    return _quantity(text, "b")


def _quantity(text: str, last: str) -> int:
    match = re.fullmatch(r"(\d+)([a-z]+)", text.lower())
    if match is None or match[2] not in UNITS or not match[2].endswith(last):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number with a unit")
    return int(match[1]) * UNITS[match[2]]


def run(options: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """The name of the result and its figures; a series has them in `rows`. Raises NoHosts."""
    shape = Shape(options.peers, options.rate, options.wan or options.rate, options.size)
    with tempfile.TemporaryDirectory(prefix="narswarm-bench-") as directory:
        top = Path(directory)
        if options.growth:
            return "swarm-growth", {"rows": growth(shape, options.direct_size, top)}
        if options.find_rate:
            return "swarm-find-rate", find_rate(shape, top)
        name = "swarm" if options.scenario == "crowd" else f"swarm-{options.scenario}"
        return name, dict(SCENARIOS[options.scenario](shape, options.direct_size, top))


def one_crowd(shape: Shape, direct_bytes: int, top: Path) -> Figures:
    with crowd.place(shape, top / "crowd") as place:
        alone = _direct(place, min(direct_bytes, shape.size_bytes))
        return {**crowd.flash(place).figures(), **alone}


def _direct(place: Place, size_bytes: int) -> Figures:
    outcomes = place.direct(size_bytes)
    assert not any(outcome.failed for outcome in outcomes), "the origin itself fails"
    scale = place.shape.size_bytes / size_bytes
    return {
        "direct_seconds_median": round(scale * statistics.median(o.seconds for o in outcomes), 1),
        "direct_seconds_max": round(scale * max(outcome.seconds for outcome in outcomes), 1),
        "direct_measured_mb": size_bytes / 1e6,
    }


def staggered(shape: Shape, direct_bytes: int, top: Path) -> Figures:
    with crowd.place(shape, top / "staggered") as place:
        return crowd.staggered(place, STAGGER_SEED).figures()


def liar(shape: Shape, direct_bytes: int, top: Path) -> Figures:
    """In the honest crowd those who lie in the other want nothing either."""
    liars = max(1, shape.peers // LIARS_SHARE)
    with crowd.place(shape, top / "honest") as place:
        honest = crowd.flash(place, idle=liars)
    with crowd.place(shape, top / "liar") as place:
        lied = crowd.lied_to(place, liars)
    median, most = (
        [over(outcome.seconds for outcome in one.outcomes) for one in (lied, honest)]
        for over in (statistics.median, max)
    )
    return {
        "liar_ratio_median": round(median[0] / median[1], 3),
        "liar_ratio_max": round(most[0] / most[1], 3),
        "honest_seconds_median": round(median[1], 2),
        **lied.figures(),
    }


def churn(shape: Shape, direct_bytes: int, top: Path) -> Figures:
    with crowd.place(shape, top / "churn") as place:
        found = crowd.churned(place)
    continued = sum(outcome.continued for outcome in found.outcomes)
    return {**found.figures(), "continued_requests": continued}


def many_small(shape: Shape, direct_bytes: int, top: Path) -> Figures:
    """--size is not asked: 1,000 paths of 50 KB."""
    return small.run(replace(shape, paths=SMALL_PATHS, size_bytes=SMALL_BYTES), top / "small")


def idle(shape: Shape, direct_bytes: int, top: Path) -> Figures:
    with (
        crowd.place(shape, top / "idle") as place,
        Members(place.members, place.top, place.options) as members,
    ):
        time.sleep(SETTLE_SECONDS)
        cpu, sent = members.cpu_seconds(), place.sent_bytes()
        time.sleep(IDLE_SECONDS)
        used, said = members.cpu_seconds() - cpu, place.sent_bytes() - sent
        return {
            "peers": shape.peers,
            "idle_cpu_percent_each": round(100 * used / IDLE_SECONDS / shape.peers, 2),
            "idle_rss_mb_each": round(members.peak_megabytes()),
            "idle_kbit_each": round(said * 8 / 1000 / IDLE_SECONDS / shape.peers, 1),
        }


SCENARIOS: dict[str, Callable[[Shape, int, Path], Figures]] = {
    "crowd": one_crowd,
    "staggered": staggered,
    "liar": liar,
    "churn": churn,
    "small": many_small,
    "idle": idle,
}


def growth(shape: Shape, direct_bytes: int, top: Path) -> list[Figures]:
    return [
        {"peers": peers, **one_crowd(replace(shape, peers=peers), direct_bytes, top / str(peers))}
        for peers in GROWTH
        if peers <= shape.peers
    ]


def find_rate(shape: Shape, top: Path) -> dict[str, object]:
    """Links and internet line of the same rate, faster each time, until a floor breaks."""
    rows: list[Figures] = []
    best: float | None = None
    for mbit in RATES_MBIT:
        rate = mbit * UNITS["mbit"]
        faster = replace(shape, rate_bits=rate, wan_bits=rate)
        with crowd.place(faster, top / str(mbit)) as place:
            figures = crowd.flash(place).figures()
        rows.append({"rate_mbit": mbit, **figures})
        if not holds(figures):
            break
        best = mbit
    return {"rate_mbit_max": best, "rows": rows}


def holds(figures: Figures) -> bool:
    found = ((figures[name], floor) for name, floor in FLOORS.items())
    return all(value is not None and value <= floor for value, floor in found)
