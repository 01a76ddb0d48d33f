"""One crowd: an office of gateways behind an internet line, and a client at each that wants a path.

    origin --wan--+                             every link has its rate in both directions,
                  bridge ==rate== member 1      so the origin's is the bottleneck that all share
                         ==rate== member 2
                         ==rate== member N

The fluid bound is the least time in which bytes that split without end can reach all of them
(R. Kumar, K. Ross, "Peer-Assisted File Distribution: The Minimum Distribution Time", HotWeb 2006):

    max(F / wan, F / down, N F / (wan + N up))

It knows no headers (4 % of a full frame of TCP over Ethernet), no round trips and no processor.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.clients import Clients, Outcome
from benchmarks.hosts import Host, Link, hosts, sent_bytes
from benchmarks.members import Members, fill_store, store_of
from benchmarks.origin import Nginx, write_cache
from gateway.signing import SecretKey, generate

Figures = dict[str, float | None]

LATE_FACTOR = 2.0
LATE_SECONDS = 60.0
"""A crowd that needs so much longer than without peers has failed."""
KILLED_AFTER_SHARE = 0.4
"""Of the fluid bound: when the members that leave are killed."""
AWAY_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Rates in bits per second; `size_bytes` of content in each of `paths` NARs."""

    peers: int
    rate_bits: int
    wan_bits: int
    size_bytes: int
    paths: int = 1

    @property
    def fluid_seconds(self) -> float:
        bits = 8 * self.size_bytes * self.paths
        shared = self.wan_bits + self.peers * self.rate_bits
        return max(bits / self.wan_bits, bits / self.rate_bits, self.peers * bits / shared)

    @property
    def direct_seconds(self) -> float:
        """The same bound where everyone asks the origin alone."""
        bits = 8 * self.size_bytes * self.paths
        return max(self.peers * bits / self.wan_bits, bits / self.rate_bits)


class Place:
    """The hosts, the origin and its paths, while they are up: everything but the gateways."""

    def __init__(
        self, shape: Shape, top: Path, key: SecretKey, origin: Host, members: Sequence[Host]
    ) -> None:
        self.shape, self.top, self.members = shape, top, members
        self.cache = top / "cache"
        self.paths = write_cache(self.cache, key, shape.paths, shape.size_bytes, seed=1)
        self.trust = ("--no-nix-conf", "--trusted-public-key", key.public.text)
        self.origin = Nginx(origin, self.cache, top / "nginx")
        self._key = key

    @property
    def options(self) -> tuple[str, ...]:
        """What every gateway is started with."""
        return (*self.trust, "--upstream", self.origin.url)

    def direct(self, size_bytes: int) -> list[Outcome]:
        """Every client straight to the origin, for other noise of `size_bytes`."""
        paths = write_cache(self.cache, self._key, self.shape.paths, size_bytes, seed=2)
        places = [(host, self.origin.url) for host in self.members]
        with Clients(places, paths, self.top) as clients:
            clients.go_all()
            return clients.outcomes(self.seconds_max)

    def sent_bytes(self) -> int:
        """By all members until now."""
        return sum(map(sent_bytes, self.members))

    @property
    def seconds_max(self) -> float:
        return LATE_FACTOR * self.shape.direct_seconds + LATE_SECONDS


@contextmanager
def place(shape: Shape, top: Path) -> Iterator[Place]:
    """Raises NoHosts."""
    links = [Link(shape.wan_bits, shared=True), *[Link(shape.rate_bits)] * shape.peers]
    with hosts(links) as (origin, *members):
        top.mkdir(parents=True)
        made = Place(shape, top, generate("bench-1"), origin, members)
        try:
            yield made
        finally:
            made.origin.stop()


@dataclass
class Run:
    """What one crowd did. `honest` are the members whose clients count; `away` were killed."""

    shape: Shape
    outcomes: list[Outcome]
    bounds: list[float]
    """For each client the least seconds that it could have needed."""
    origin_bytes: int
    statuses: list[dict[str, object]]
    cpu_share: float
    gateway_cpu_share: float | None
    rss_mb: float
    away: frozenset[int] = frozenset()

    @property
    def nar_bytes(self) -> int:
        return self.shape.size_bytes * self.shape.paths

    def figures(self) -> Figures:
        ratios = [
            outcome.seconds / bound
            for outcome, bound in zip(self.outcomes, self.bounds, strict=True)
        ]
        stayed = [ratio for number, ratio in enumerate(ratios) if number not in self.away]
        return {
            "time_ratio_median": round(statistics.median(stayed), 3),
            "time_ratio_max": round(max(stayed), 3),
            "fluid_seconds": round(self.shape.fluid_seconds, 2),
            "seconds_median": round(statistics.median(o.seconds for o in self.outcomes), 2),
            "seconds_max": round(max(outcome.seconds for outcome in self.outcomes), 2),
            "origin_copies": round(self.origin_bytes / self.nar_bytes, 3),
            "duplicate_ratio": self.duplicate_ratio(),
            "failed_requests": sum(outcome.failed for outcome in self.outcomes),
            "cpu_share": round(self.cpu_share, 2),
            "gateway_cpu_share": self.gateway_cpu_share,
            "gateway_rss_mb_max": round(self.rss_mb),
        }

    def duplicate_ratio(self) -> float | None:
        """Exact where gateways count duplicates; else all that came beyond one NAR for each, which
        also holds headers and questions. Members that were killed forgot what they had received,
        and those that asked for nothing had nothing to double."""
        received = 0
        counted = [s for s in self.statuses if _number(s, "wire_bytes")]
        if not counted:
            return None
        if all("duplicate_bytes" in status for status in counted):
            received = sum(_number(status, "duplicate_bytes") for status in counted)
            return round(received / (len(counted) * self.nar_bytes), 4)
        for status in counted:
            came = _number(status, "wire_bytes") + _number(status, "upstream_bytes")
            received += max(0, came - self.nar_bytes)
        return round(received / (len(counted) * self.nar_bytes), 4)


def _number(status: dict[str, object], name: str) -> int:
    value = status.get(name, 0)
    assert isinstance(value, int)
    return value


def flash(place: Place, idle: int = 0) -> Run:
    """All clients at one moment, but for those of the last `idle` members."""
    with Members(place.members, place.top, place.options) as members:
        return _run(place, members, [0.0] * (place.shape.peers - idle))


def staggered(place: Place, seed: int) -> Run:
    """Each client at a moment of its own, within the time that the crowd would need.

    Who starts `late` seconds after the first could be done when its own link has carried the NAR,
    but not before the internet line has: max(F / down, F / wan - late)."""
    chance = random.Random(seed)
    fluid = place.shape.fluid_seconds
    starts = [0.0, *sorted(chance.uniform(0, fluid) for _ in range(place.shape.peers - 1))]
    with Members(place.members, place.top, place.options) as members:
        return _run(place, members, starts)


def lied_to(place: Place, liars: int) -> Run:
    """The last `liars` hold everything, say so, and flip a bit in each block that they send. They
    want nothing themselves: banned, they could only take the internet line from the others."""
    honest = place.shape.peers - liars
    false = frozenset(range(honest, place.shape.peers))
    for number in false:
        fill_store(store_of(place.top, number), place.cache, place.trust)
    with Members(place.members, place.top, place.options, false) as members:
        return _run(place, members, [0.0] * honest)


def churned(place: Place) -> Run:
    """Every third member is killed in mid-transfer and comes back on the same store."""
    away = range(1, place.shape.peers, 3)
    with Members(place.members, place.top, place.options) as members:
        return _run(place, members, [0.0] * place.shape.peers, away)


def _run(place: Place, members: Members, starts: Sequence[float], away: Sequence[int] = ()) -> Run:
    """Clients at the first len(starts) members. Those of members in `away` try again."""
    shape = place.shape
    places = list(zip(place.members, members.urls(), strict=True))[: len(starts)]
    retry = [place.seconds_max if number in away else 0.0 for number in range(len(starts))]
    with Clients(places, place.paths, place.top, retry) as clients:
        began, gateways, machine = time.monotonic(), members.cpu_seconds(), _machine_seconds()
        for number, start in enumerate(starts):
            time.sleep(max(0.0, began + start - time.monotonic()))
            clients.go(number)
        if away:
            time.sleep(KILLED_AFTER_SHARE * shape.fluid_seconds)
            members.kill(away)
            time.sleep(AWAY_SECONDS)
            members.start(away)
        outcomes = clients.outcomes(place.seconds_max)
    took = time.monotonic() - began
    busy, total = (after - before for after, before in
                   zip(_machine_seconds(), machine, strict=True))  # fmt: skip
    used = (members.cpu_seconds() - gateways) / took / (os.cpu_count() or 1)
    # Those that were killed took what they had used with them.
    used_share = None if away else round(used, 2)
    statuses, rss = members.statuses(), members.peak_megabytes()
    _show_failures(members, outcomes)
    members.stop()  # what nginx sent to a gateway is in its log when the answer has ended
    return Run(
        shape, outcomes, _bounds(shape, starts), place.origin.nar_bytes_sent(place.paths),
        statuses, busy / total, used_share, rss, frozenset(away),
    )  # fmt: skip


def _bounds(shape: Shape, starts: Sequence[float]) -> list[float]:
    if not any(starts):
        return [shape.fluid_seconds] * len(starts)
    bits = 8 * shape.size_bytes * shape.paths
    return [max(bits / shape.rate_bits, bits / shape.wan_bits - late) for late in starts]


def _machine_seconds() -> tuple[float, float]:
    """Of all processors since the start of the machine: busy, and all."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def _show_failures(members: Members, outcomes: Sequence[Outcome]) -> None:
    for number, outcome in enumerate(outcomes):
        if outcome.failed:
            print(f"client {number}: {'; '.join(outcome.errors)}", file=sys.stderr)
            members.show_log(number)
