"""A running process, and what it tells of itself through its control socket.

`gateway.app` makes it and puts in what its role has; here is only what is read of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from chunker.packs import PackStore
from chunker.record import PathRecord
from peer.identity import Identity
from peer.surroundings import networks
from peer.swarm import Swarm

from .alarm_bell import AlarmBell
from .config import Config
from .countersigning import Countersigner
from .explain import Explainer
from .policy import Policy
from .pool_keeper import PoolKeeper
from .report import (
    UpstreamRates,
    closures_report,
    peer_transfers,
    served_report,
    store_report,
    swarm_report,
    uploads_report,
)

if TYPE_CHECKING:
    from .delivery import Deliveries
    from .substituter import Substituter
    from .uploads import Uploads
    from .upstream import Upstream


@dataclass
class Node:
    """A running process: its store, swarm and, for a gateway, its substituter."""

    config: Config
    identity: Identity
    store: PackStore
    swarm: Swarm
    policy: Policy
    alarms: AlarmBell
    pools: PoolKeeper
    substituter: Substituter | None = None
    deliveries: Deliveries | None = None
    uploads: Uploads | None = None
    upstreams: tuple[Upstream, ...] = ()
    policies_of: Mapping[str, Policy] = field(default_factory=dict)
    """By the URL of an upstream with keys of its own."""
    http_port: int = 0
    upstream_rates: UpstreamRates = field(default_factory=UpstreamRates)

    def status(self) -> dict[str, object]:
        """What `narswarm status --json` prints."""
        now = trio.current_time()
        answer: dict[str, object] = {
            "role": self.config.role,
            "peer_id": self.identity.peer_id,
            "process": os.getpid(),
            "addresses": [address.text for address in self.swarm.addresses()],
            "store": str(self.config.store),
            **store_report(self.store),
            **swarm_report(now, self.swarm, networks()),
            "pools": self.pools.status(),
            "conflicts": self.alarms.report(),
        }
        transfers = peer_transfers(now, self.swarm)
        if self.substituter is not None:
            answer["http"] = f"http://{self.config.http_host}:{self.http_port}"
            answer["asked"] = list(self.substituter.asked)
            answer["closures"] = closures_report(self.substituter.closures)
            answer |= served_report(
                self.substituter.served, self.substituter.deliveries.upstream_bytes,
                self.swarm.traffic, self.upstream_rates,
            )  # fmt: skip
            transfers += self.upstream_rates.report(now)
            if self.uploads is not None:
                answer["uploads"] = uploads_report(self.uploads)
        elif self.deliveries is not None:
            answer["upstream_bytes"] = self.deliveries.upstream_bytes
            transfers += self.upstream_rates.report(now)
        answer["transfers"] = transfers
        return answer

    async def explain(self, store_path: str) -> dict[str, object]:
        """What `narswarm explain --json` prints."""
        explainer = Explainer(
            self.store, self.swarm, self.upstreams, self.policy, self.alarms.saw, self.policies_of
        )  # fmt: skip
        return await explainer.explain(store_path)

    async def countersign(self, text: str) -> dict[str, object]:
        """What `narswarm sign --role` gets for one path."""
        return await Countersigner(self.store, self._came_anew).add(text)

    def _came_anew(self, record: PathRecord) -> None:
        self.swarm.catalogue.add(record)
        if self.substituter is not None:
            self.substituter.forget(record.store_hash)
