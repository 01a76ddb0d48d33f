"""What a running process tells of itself: the JSON of `narswarm status` and `narswarm peers`.

Rates are bytes per second over the last seconds. Counts are since the start, in bytes:
`swarm_bytes` as they came from peers (compressed), `upstream_bytes` and what Nix was given in
plain.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from chunker.digest import NarHash
from peer.identity import PeerId
from peer.rates import Rate, seconds_left
from peer.surroundings import Network, is_near
from peer.traffic import Traffic

if TYPE_CHECKING:
    from chunker.packs import PackStore
    from peer.swarm import Swarm

    from .closures import Closures
    from .filling import Filling
    from .substituter import Served
    from .uploads import Uploads

Report = dict[str, object]


def store_report(store: PackStore) -> Report:
    stats = store.stats()
    return {
        "blocks": stats.blocks,
        "stored_bytes": stats.block_bytes_stored,
        "paths": stats.records,
    }


def swarm_report(now: float, swarm: Swarm, here: Iterable[Network]) -> Report:
    """`here`: the networks that this machine is on, for those without a session, which knows
    better."""
    traffic, hosts = swarm.traffic, swarm.dialling.hosts()
    here = tuple(here)
    near = {peer for peer, host in hosts.items() if is_near(host, here)}
    for asking in swarm.sessions_open():
        (near.add if asking.is_near else near.discard)(asking.peer)
    peers = sorted({*swarm.counters.peers, *hosts})
    accounts = traffic.accounts.values()
    return {
        "wire_bytes": swarm.wire_bytes(),
        "swarm_bytes": traffic.swarm_bytes,
        "duplicate_bytes": traffic.duplicate_bytes,
        "received_per_second": round(sum(one.received.per_second(now) for one in accounts)),
        "sent_per_second": round(sum(one.sent.per_second(now) for one in accounts)),
        "fetching": [fetch.record.store_path for fetch in swarm.fetches.values()],
        "peers": [_peer(now, swarm, peer, hosts, near) for peer in peers],
        "bans": swarm.counters.bans,
    }


def _peer(
    now: float,
    swarm: Swarm,
    peer: PeerId,
    hosts: dict[PeerId, str | None],
    near: Container[PeerId],
) -> Report:
    tally, account = swarm.counters.peers.get(peer), swarm.traffic.accounts.get(peer)
    received, sent = (account.received, account.sent) if account else (Rate(), Rate())
    pause = swarm.dialling.acquaintances.pause_seconds(now, peer)
    connected, host = tally is not None and tally.connected, hosts.get(peer)
    return {
        "peer_id": peer,
        "role": tally.role if tally else "",
        "pool": tally.pool if tally else "",
        "connected": connected,
        "only_asks_us": not connected and peer in hosts,
        "host": host,
        "link": "" if host is None else "lan" if peer in near else "wan",
        "blocks_received": tally.blocks if tally else 0,
        "bytes_received": tally.wire_bytes if tally else 0,
        "bytes_sent": sent.total,
        "received_per_second": round(received.per_second(now)),
        "sent_per_second": round(sent.per_second(now)),
        "blocks_owed": swarm.owed_by(peer),
        "banned": swarm.is_banned(peer),
        "dialled_in_seconds": None if pause is None or connected else round(pause, 1),
    }


def served_report(
    served: Served, upstream_bytes: int, traffic: Traffic, under_way: UpstreamRates
) -> Report:
    """What Nix was given, and where it came from. `upstream_bytes`: of downloads that are over.
    What was here before is told by subtraction: a NAR that was served twice came once, and of one
    that is under way the rest is still to come, though Nix was promised it."""
    upstream = upstream_bytes + under_way.received()
    to_come = under_way.to_come() + traffic.to_come()
    store = served.nar_bytes - traffic.kept_bytes - upstream - to_come
    return {
        "served": vars(served),
        "upstream_bytes": upstream_bytes,
        "sources": {
            "store": max(0, store),
            "peers": traffic.kept_bytes,
            "upstreams": upstream,
        },
    }


def closures_report(closures: Closures) -> Report:
    """Of paths that only peers have: how often it was looked whether their closures can be had, and
    how many narinfos were withheld because a part is nowhere."""
    return {"walks": closures.walks, "incomplete": closures.incomplete}


def uploads_report(uploads: Uploads) -> Report:
    return {**vars(uploads.counts), "spooled_bytes": uploads.spooled_bytes()}


def peer_transfers(now: float, swarm: Swarm) -> list[Report]:
    """What is on its way from peers."""
    return [
        _transfer(
            now,
            one.store_path,
            one.size,
            one.done,
            one.rate,
            {str(peer): count for peer, count in one.sources.items()},
        )
        for one in swarm.traffic.transfers.values()
    ]


class UpstreamRates:
    """How fast comes what upstreams send; shown their counters every now and then."""

    def __init__(self) -> None:
        self._rates: dict[NarHash, tuple[Filling, Rate]] = {}

    def look(self, now: float, fillings: Iterable[Filling]) -> None:
        current = {filling.record.nar_hash: filling for filling in fillings}
        for wanted in self._rates.keys() - current.keys():
            del self._rates[wanted]
        for wanted, filling in current.items():
            _, rate = self._rates.setdefault(wanted, (filling, Rate()))
            rate.reach(now, filling.bytes_received)

    def received(self) -> int:
        return sum(rate.total for _, rate in self._rates.values())

    def to_come(self) -> int:
        sizes = ((filling.record.nar_size, rate.total) for filling, rate in self._rates.values())
        return sum(max(0, size - done) for size, done in sizes)

    def report(self, now: float) -> list[Report]:
        return [
            _transfer(
                now,
                filling.record.store_path,
                filling.record.nar_size,
                filling.bytes_received,
                rate,
                {"upstreams": filling.bytes_received},
            )
            for filling, rate in self._rates.values()
        ]


def _transfer(
    now: float, store_path: str, size: int, done: int, rate: Rate, sources: dict[str, int]
) -> Report:
    per_second = rate.per_second(now)
    left = seconds_left(max(0, size - done), per_second)
    return {
        "store_path": store_path,
        "nar_bytes": size,
        "done_bytes": min(done, size),
        "bytes_per_second": round(per_second),
        "seconds_left": None if left is None else round(left, 1),
        "sources": sources,
    }
