"""How the work of one peer grows with the swarm: one NAR, one holder, no faults, 32 sessions each.

Everybody sees only those it has a session with, so the NAR spreads from neighbour to neighbour.
What must not grow with N is what a peer sends and hears.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from peer.identity import PeerId
from tests.sim.content import Content
from tests.sim.member import Member
from tests.sim.world import SESSIONS_MAX, World

PEERS = (10, 100, 1_000, 10_000)
BLOCKS = 16
RATE_BYTES_PER_SECOND = 3_000_000
START_SECONDS_MAX = 2.0


class Spread(World):
    end_seconds = 600.0

    def make_content(self) -> Content:
        return Content(self.chance, BLOCKS, with_small=False)

    def set_up(self, peers: int, faults: Sequence[str]) -> None:
        nar = self.content.growing
        names = [PeerId(f"peer-{n:05d}") for n in range(peers)]
        self.first = names[0]
        for name in names:
            self.members[name] = Member(self, name, RATE_BYTES_PER_SECOND)
            if name == self.first:
                self.hold(self.members[name], nar)
            else:
                self.members[name].wants = [nar]
        degree: Counter[PeerId] = Counter()
        for one in names:
            for other in self.chance.sample(names, min(SESSIONS_MAX, peers)):
                if one < other and max(degree[one], degree[other]) < SESSIONS_MAX:
                    degree.update((one, other))
                    self.link(one, other)
            self.clock.at(self.chance.random() * START_SECONDS_MAX, self.start, one)


def grow(peers: int, seed: int = 1) -> dict[str, float]:
    """The figures of one swarm, each for one peer where it says so."""
    began = time.perf_counter()
    world = Spread(seed, peers, ())
    outcome = world.run()
    size = world.content.growing.record.nar_size
    sent = world.checks.honest_bytes
    return {
        "peers": peers,
        "sessions_per_peer": round(2 * len(world.links) / peers, 1),
        "virtual_seconds": round(outcome.seconds, 1),
        "messages_per_peer": round(outcome.messages / peers),
        "message_bytes_per_peer": round((outcome.message_bytes - sent) / peers),
        "block_copies_per_peer": round(sent / size / (peers - 1), 3),
        "source_copies": round(world.checks.sent_bytes[world.first] / size, 2),
        "events": outcome.events,
        "seconds": round(time.perf_counter() - began, 1),
    }
