"""A flash crowd in numbers: how near the exchange comes to what the links allow.

Tier A as in `world`, but with links: each peer sends at `up` and receives at `down` bytes a second,
its uplink takes turns among those it serves, and one owner gets the NAR from an upstream at `wan`.
The bound is the fluid one: no scheme can end before the NAR has passed the slowest of the WAN, a
downlink, and all uplinks together (Mundinger, Weber and Weiss, "Optimal scheduling of peer-to-peer
file dissemination", J. Scheduling 11, 2008, gives it for one source).
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from chunker.block import Block, Codec, Encoded
from chunker.cut import Cutter
from chunker.digest import ManifestId
from peer.exchange import Effect, Exchange, Keep, SendCancel, SendWant
from peer.identity import PeerId
from peer.messages import Cancel, Want
from peer.news import News
from peer.serving import Due, Serving, Uplink

MANIFEST = ManifestId(b"m" * 32)
LATENCY_SECONDS = 0.002
GROWN_SECONDS = 0.05
START_SECONDS_MAX = 0.1
GREET_SECONDS_MAX = 0.2
"""Until another knows that one follows too: sixteen processes begin at once on two cores."""
TICK_SECONDS = 0.25


@dataclass
class _Peer:
    name: PeerId
    exchange: Exchange
    held: set[int] = field(default_factory=set)
    serving: dict[PeerId, Serving] = field(default_factory=dict)
    uplink: Uplink = field(default_factory=Uplink)
    waiting: deque[tuple[int, PeerId, Due, bool]] = field(default_factory=deque)
    names: list[PeerId] = field(default_factory=list)
    news: dict[PeerId, News] = field(default_factory=dict)
    """By who watches."""
    busy: bool = False
    down_free: float = 0.0
    cursor: int = 0
    began: float = 0.0
    done: float = 0.0
    received: int = 0
    sent: int = 0


@dataclass(frozen=True)
class Result:
    bound_seconds: float
    seconds: list[float]
    duplicates: float
    """Blocks received in vain over blocks needed."""
    messages: int
    owner_sent: float
    """Copies of the NAR that the owner's uplink carried."""
    ratios: list[float]
    """For each follower its own time over the least that it could have needed: what its downlink
    takes for the NAR, or what the internet line still takes for the rest."""


class Crowd:
    """Rates in bytes a second; `owner_up` and `fellow_up` are instead of `up` where given. With
    `staggered` followers begin one by one while the internet line brings the NAR."""

    def __init__(
        self,
        seed: int,
        peers: int,
        size_bytes: int,
        wan: float,
        up: float,
        down: float,
        *,
        owner_up: float | None = None,
        fellow_up: float | None = None,
        staggered: bool = False,
    ) -> None:
        self.now = 0.0
        self._chance = random.Random(seed)
        cutter, noise = Cutter(), self._chance.randbytes(size_bytes)
        self._content = [Block.of(block) for block in (*cutter.feed(noise), *cutter.finish())]
        self._lengths = [len(block.data) for block in self._content]
        self._ids = [block.id for block in self._content]
        self._wan, self._up, self._down = wan, up, down
        self._owner_up, self._fellow_up = owner_up or up, fellow_up or up
        names = [PeerId(f"peer-{n:04d}") for n in range(peers)]
        self.peers = {name: _Peer(name, Exchange(name)) for name in names}
        self._owner = self.peers[self._chance.choice(names)]
        self._begins_within = size_bytes / wan if staggered else START_SECONDS_MAX
        self._met = [self._owner] if staggered else list(self.peers.values())
        """Whom the next one that begins hears of, and is heard of by."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = self.messages = 0

    def run(self) -> Result:
        followers = [peer for peer in self.peers.values() if peer is not self._owner]
        count = len(self._content)
        for peer in followers:
            peer.began = self._chance.random() * self._begins_within
            self._at(peer.began, lambda peer=peer: self._join(peer))
        for index, come in enumerate(accumulate(self._lengths)):
            self._at(come / self._wan, lambda index=index: self._grown(index))
        while any(not peer.done for peer in self.peers.values()):
            self.now, _, act = heapq.heappop(self._heap)
            assert self.now < 10_000
            act()
        size = sum(self._lengths)
        n = len(self.peers)
        bound = max(size / self._wan, size / self._down, n * size / (self._wan + n * self._up))
        needed = sum(len(peer.held) for peer in followers)
        return Result(
            bound,
            sorted(peer.done for peer in self.peers.values()),
            sum(peer.received for peer in followers) / needed - 1,
            self.messages,
            self._owner.sent / count,
            sorted(
                (peer.done - peer.began) / max(size / self._down, size / self._wan - peer.began)
                for peer in followers
            ),
        )

    def _at(self, when: float, act: Callable[[], None]) -> None:
        self._ticket += 1
        heapq.heappush(self._heap, (when, self._ticket, act))

    def _join(self, peer: _Peer) -> None:
        known = len(self._owner.held)
        self._carry_out(
            peer,
            peer.exchange.start(
                self.now,
                MANIFEST,
                self._ids[:known],
                self._lengths[:known],
                range(known),
                blocks_max=len(self._ids),
                nar_bytes=sum(self._lengths),
                source=self._owner.name,
                members=[other.name for other in self._met if other is not peer],
            ),
        )
        if known == len(self._ids):
            self._carry_out(peer, peer.exchange.grow(self.now, MANIFEST, (), (), (), whole=True))
        for other in self._met:
            if other is not peer:
                if other is self._owner or other.began < self.now:
                    self._tell(other, peer, sorted(other.held), not other.done)
                if other is not self._owner:
                    greets = self._chance.random() * GREET_SECONDS_MAX
                    self._later(greets, lambda other=other: self._tell(peer, other, [], True))
        if peer not in self._met:
            self._met.append(peer)
        self._tick(peer)

    def _grown(self, index: int) -> None:
        owner = self._owner
        self._hold(owner, index, fresh=True)
        for peer in self.peers.values():
            if peer is not owner and MANIFEST in peer.exchange._downloads:
                whole = index + 1 == len(self._ids)
                self._later(
                    GROWN_SECONDS,
                    lambda peer=peer, whole=whole: self._carry_out(
                        peer,
                        peer.exchange.grow(
                            self.now,
                            MANIFEST,
                            self._ids[index : index + 1],
                            self._lengths[index : index + 1],
                            [index],
                            whole=whole,
                        ),
                    ),
                )

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._at(self.now + seconds + LATENCY_SECONDS, act)

    def _hold(self, peer: _Peer, index: int, *, fresh: bool) -> None:
        peer.held.add(index)
        for other in self.peers.values():
            if other is not peer and not other.done:
                news = peer.news.setdefault(other.name, News())
                due = news.due
                news.note(MANIFEST, index, fresh=fresh)
                if news.due < due:
                    self._at(max(self.now, news.due), lambda other=other: self._news(peer, other))
        while peer.cursor in peer.held:
            peer.cursor += 1
        if peer is not self._owner:
            self._carry_out(peer, peer.exchange.moved(self.now, MANIFEST, peer.cursor))
        if len(peer.held) == len(self._ids):
            peer.done = self.now

    def _news(self, peer: _Peer, other: _Peer) -> None:
        news = peer.news[other.name]
        if self.now >= news.due and not other.done:
            taken, _ = news.take(self.now)
            self._tell(peer, other, taken[MANIFEST], None)

    def _tell(self, holder: _Peer, to: _Peer, news: list[int], filling: bool | None) -> None:
        self.messages += 1
        self._later(
            0,
            lambda: self._carry_out(
                to, to.exchange.has(self.now, holder.name, MANIFEST, news, filling)
            ),
        )

    def _tick(self, peer: _Peer) -> None:
        if not peer.done:
            self._carry_out(peer, peer.exchange.tick(self.now))
            self._later(TICK_SECONDS, lambda: self._tick(peer))

    def _carry_out(self, peer: _Peer, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendWant):
                self.messages += 1
                self._later(0, lambda e=effect: self._wanted(peer, e))
            elif isinstance(effect, SendCancel):
                self._later(
                    0,
                    lambda e=effect: (
                        self.peers[e.peer].serving[peer.name].cancel(Cancel(e.request, e.indexes))
                    ),
                )
            elif isinstance(effect, Keep):
                self._hold(peer, effect.places[0][1], fresh=effect.peer == self._owner.name)

    def _wanted(self, asker: _Peer, effect: SendWant) -> None:
        server = self.peers[effect.peer]
        if asker.name not in server.serving:
            server.serving[asker.name] = Serving()
            server.uplink.join(len(server.names), server.serving[asker.name])
            server.names.append(asker.name)
        want = Want(effect.request, effect.manifest, effect.indexes, effect.urgency)
        assert not server.serving[asker.name].want(want, True, self._lengths)
        self._serve(server)

    def _serve(self, server: _Peer) -> None:
        """Turns go to the socket, and leave it one block after the other."""
        while (turn := server.uplink.next(self.now)) is not None:
            session, dues = turn
            for due in dues:
                place = session, server.names[session], due, due is dues[-1]
                server.waiting.append(place)
        if any(len(serving) for serving in server.serving.values()) and not server.busy:
            self._later(0.1, lambda: self._serve(server))
        if server.waiting and not server.busy:
            server.busy = True
            server.sent += 1
            rate = self._owner_up if server is self._owner else self._fellow_up
            self._at(self.now + server.waiting[0][2].length / rate, lambda: self._sent(server))

    def _sent(self, server: _Peer) -> None:
        session, name, due, last = server.waiting.popleft()
        server.busy = False
        if last:
            server.uplink.over(self.now, session)
        self._serve(server)
        to = self.peers[name]
        to.down_free = max(to.down_free, self.now + LATENCY_SECONDS) + due.length / self._down
        self._at(to.down_free, lambda: self._arrived(server, to, due))

    def _arrived(self, server: _Peer, to: _Peer, due: Due) -> None:
        to.received += 1
        data = self._content[due.index].data
        encoded = Encoded(Codec.RAW, len(data), data)
        effects = to.exchange.arrived(self.now, server.name, due.request, due.index, encoded)
        self._carry_out(to, effects)
