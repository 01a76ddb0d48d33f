"""Many small NARs from an office neighbour, beside direct HTTP over the same office link.

    nginx (office) ==rate==+
    origin ==wan===========+ bridge ==rate== neighbour, which holds all of them
                                    ==rate== client's gateway

Both ways are walked by the same client in the same run, as many paths at once as Nix asks for and
all clients together no more than CONNECTIONS_MAX; each path is a narinfo and then its NAR. Gateways
have the origin behind the slow line as upstream, as everywhere; every figure is the median of some
rounds, each with paths of its own and both ways in turn.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.clients import NIX_CONNECTIONS, Clients, Outcome
from benchmarks.crowd import Figures, Shape
from benchmarks.hosts import Host, Link, hosts
from benchmarks.members import Members, fill_store, store_of
from benchmarks.origin import Nginx, Noise, write_cache
from gateway.signing import generate

ROUNDS, ROUNDS_OF_MANY = 3, 1
MANY = 5
"""So many peers take minutes, and are as many measurements."""
CONNECTIONS_MAX = 60
"""At one server at once, both ways: of two hundred, which all lose frames of their first answers,
some never recover in these namespaces, and the direct way has no end."""
FAILED_SECONDS = 300.0


def run(shape: Shape, top: Path) -> Figures:
    """`shape.peers` machines: all but the last have a client, the last has everything. Raises
    NoHosts."""
    served = Link(shape.rate_bits, shared=True)
    clients = [Link(shape.rate_bits)] * (shape.peers - 1)
    links = [Link(shape.wan_bits, shared=True), served, *clients, served]
    top.mkdir(parents=True)
    cache, key = top / "cache", generate("bench-1")
    count = ROUNDS if shape.peers < MANY else ROUNDS_OF_MANY
    rounds = [write_cache(cache, key, shape.paths, shape.size_bytes, seed) for seed in range(count)]
    trust = ("--no-nix-conf", "--trusted-public-key", key.public.text)
    neighbour = shape.peers - 1
    fill_store(store_of(top, neighbour), cache, trust)
    with hosts(links) as (far, near, *members):
        origin, office = Nginx(far, cache, top / "far"), Nginx(near, cache, top / "near")
        try:
            options = (*trust, "--upstream", origin.url)
            with Members(members, top, options) as gateways:
                asking = members[:neighbour]
                taken = [
                    (_fetch(asking, [office.url] * neighbour, paths, top),
                     _fetch(asking, gateways.urls()[:neighbour], paths, top))
                    for paths in rounds
                ]  # fmt: skip
            everything = [path for paths in rounds for path in paths]
            copies = origin.nar_bytes_sent(everything) / sum(p.nar_size for p in everything)
        finally:
            origin.stop()
            office.stop()
    return _figures(taken, copies)


def _fetch(asking: list[Host], urls: list[str], paths: list[Noise], top: Path) -> list[Outcome]:
    connections = max(1, min(NIX_CONNECTIONS, CONNECTIONS_MAX // len(asking)))
    places = list(zip(asking, urls, strict=True))
    with Clients(places, paths, top, connections=connections) as clients:
        clients.go_all()
        return clients.outcomes(FAILED_SECONDS)


def _figures(taken: list[tuple[list[Outcome], list[Outcome]]], copies: float) -> Figures:
    direct, swarm = ([max(o.seconds for o in both[way]) for both in taken] for way in (0, 1))
    ratios = [ours / theirs for ours, theirs in zip(swarm, direct, strict=True)]
    return {
        "small_ratio": round(statistics.median(ratios), 2),
        "small_seconds": round(statistics.median(swarm), 2),
        "small_direct_seconds": round(statistics.median(direct), 2),
        "origin_copies": round(copies, 3),
        "failed_requests": sum(o.failed for both in taken for way in both for o in way),
    }
