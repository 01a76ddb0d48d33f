"""Tier A: many peers with real machines (Exchange, Serving), everything else simulated.

One heap of (time, ticket, action); time is a number, chance comes from the seed, and the same seed
gives the same trace. Peers hold blocks of one NAR, know some neighbours, and share an uplink by
turns. The checkers stand outside of the code under test and look at what it keeps and whom it bans.

| fault   | what that peer does                                              |
|---------|------------------------------------------------------------------|
| liar    | flips a bit in every block it sends                              |
| silent  | takes wants and sends nothing, until the world is healed         |
| drip    | sends 2 KiB a second, until the world is healed                  |
| refuses | announces everything and refuses every want                      |
| leaves  | crashes, and comes back with its store when the world is healed  |
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from chunker.block import Block, Codec, Encoded
from chunker.digest import ManifestId, block_id
from peer.exchange import Ban, Effect, Exchange, Keep, SendCancel, SendWant
from peer.identity import PeerId
from peer.messages import Cancel, Refuse, Want
from peer.serving import Due, Serving

MANIFEST = ManifestId(b"m" * 32)
BLOCK_BYTES = 4096
BLOCKS = 24
TICK_SECONDS = 0.25
HAVE_SECONDS = 0.05
LATENCY_SECONDS = 0.005
UPLINK_BYTES_PER_SECOND = 64 * 1024
DRIP_BYTES_PER_SECOND = 2 * 1024
START_SECONDS_MAX = 3.0
HEAL_SECONDS = 40.0
END_SECONDS_MAX = 400.0
NEIGHBOURS = 6
FAULTS = ("liar", "silent", "drip", "refuses", "leaves")
USEFUL_SHARE_MIN = 0.6


class Violation(AssertionError):
    """A checker saw something that must never be."""


@dataclass(frozen=True)
class Outcome:
    """What one run came to. `trace`: a digest of every event in order."""

    seed: int
    peers: int
    seconds: float
    events: int
    useful_bytes: int
    honest_bytes: int
    bans: int
    trace: str


@dataclass
class Peer:
    name: PeerId
    exchange: Exchange
    fault: str = ""
    blocks: dict[int, bytes] = field(default_factory=dict)
    neighbours: list[PeerId] = field(default_factory=list)
    serving: dict[PeerId, Serving] = field(default_factory=dict)
    news: list[int] = field(default_factory=list)
    up: bool = False
    life: int = 0
    sending: bool = False
    turn: int = 0

    @property
    def complete(self) -> bool:
        return len(self.blocks) == BLOCKS


class World:
    def __init__(self, seed: int, peers: int, faults: tuple[str, ...] = FAULTS) -> None:
        self.seed = seed
        self.now = 0.0
        self.chance = random.Random(seed)
        self.content = [
            Block.of(hashlib.shake_128(f"{seed} {n}".encode()).digest(BLOCK_BYTES))
            for n in range(BLOCKS)
        ]
        self.ids = tuple(block.id for block in self.content)
        names = [PeerId(f"peer-{n:05d}") for n in range(peers)]
        self.peers = {name: Peer(name, Exchange(name)) for name in names}
        self.useful_bytes = self.honest_bytes = self.bans = self.events = 0
        self._healed = False
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = 0
        self._trace = hashlib.sha256()
        self._set_up(faults)

    def _set_up(self, faults: tuple[str, ...]) -> None:
        names = list(self.peers)
        source = self.peers[names[0]]
        source.blocks = {n: block.data for n, block in enumerate(self.content)}
        # Each seed leaves some faults out, so that rare mixtures are seen as well.
        drawn = [fault for fault in faults if self.chance.random() < 0.7]
        for name in names[1:]:
            peer = self.peers[name]
            if drawn and self.chance.random() < 0.4:
                peer.fault = self.chance.choice(drawn)
            if peer.fault in ("liar", "silent", "drip", "refuses"):
                peer.blocks = dict(source.blocks)
            count = min(NEIGHBOURS, len(names) - 1)
            peer.neighbours = self.chance.sample([n for n in names if n != name], count)
            if source.name not in peer.neighbours:
                peer.neighbours[0] = source.name
        for name in names:
            start = 0.0 if name == source.name else self.chance.random() * START_SECONDS_MAX
            self.at(start, lambda peer=self.peers[name]: self._start(peer))  # type: ignore[misc]
        self.at(HEAL_SECONDS, self._heal)

    def run(self) -> Outcome:
        """Until every honest peer has everything. Raises Violation."""
        while not self._done():
            if not self._heap:
                raise Violation(f"seed {self.seed}: nothing more happens, and not all are done")
            self.now, _, action = heapq.heappop(self._heap)
            if self.now > END_SECONDS_MAX:
                left = [peer.name for peer in self.peers.values() if self._waits(peer)]
                raise Violation(f"seed {self.seed}: not done after {self.now:.0f} s: {left}")
            self.events += 1
            action()
        share = self.useful_bytes / max(self.honest_bytes, 1)
        if share < USEFUL_SHARE_MIN:
            raise Violation(f"seed {self.seed}: only {share:.2f} of the bytes were of use")
        return Outcome(
            self.seed, len(self.peers), self.now, self.events, self.useful_bytes,
            self.honest_bytes, self.bans, self._trace.hexdigest(),
        )  # fmt: skip

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._ticket += 1
        heapq.heappush(self._heap, (when, self._ticket, action))

    def _done(self) -> bool:
        return not any(self._waits(peer) for peer in self.peers.values())

    def _waits(self, peer: Peer) -> bool:
        return not peer.complete

    def _note(self, *words: object) -> None:
        self._trace.update(f"{self.now:.6f} {words}\n".encode())

    # -- lives ----------------------------------------------------------------------------------

    def _start(self, peer: Peer) -> None:
        if peer.up:
            return
        peer.up, peer.exchange, peer.serving, peer.sending = True, Exchange(peer.name), {}, False
        peer.life += 1
        lengths = (BLOCK_BYTES,) * BLOCKS
        missing = [n for n in range(BLOCKS) if n not in peer.blocks]
        self._note("start", peer.name)
        if missing:
            self._carry_out(
                peer, peer.exchange.start(self.now, MANIFEST, self.ids, lengths, missing)
            )
            self._tick(peer, peer.life)
        for name in peer.neighbours:
            self._watch(peer, self.peers[name])
        for other in self.peers.values():
            if peer.name in other.neighbours and other.up:
                self._watch(other, peer)
        if peer.fault == "leaves" and not self._healed:
            self.at(self.now + self.chance.random() * 5, lambda: self._leave(peer))

    def _leave(self, peer: Peer) -> None:
        if self._healed:
            return
        self._note("leave", peer.name)
        peer.up = False
        for other in self.peers.values():
            if other.up and (peer.name in other.neighbours or other.name in peer.neighbours):
                other.serving.pop(peer.name, None)
                self._carry_out(other, other.exchange.peer_gone(self.now, peer.name))

    def _heal(self) -> None:
        self._healed = True
        self._note("heal")
        for peer in self.peers.values():
            if peer.fault in ("silent", "drip"):
                peer.fault = ""
                self._send_next(peer)
            if not peer.up:
                self._start(peer)

    def _tick(self, peer: Peer, life: int) -> None:
        if peer.life == life and peer.up and not peer.complete:
            self._carry_out(peer, peer.exchange.tick(self.now))
            # A little jitter, so that equal deadlines do not always fall in one order.
            jitter = self.chance.random() * 0.01
            self.at(self.now + TICK_SECONDS + jitter, lambda: self._tick(peer, life))

    # -- messages -------------------------------------------------------------------------------

    def _deliver(self, sender: Peer, to: Peer, act: Callable[[], None]) -> None:
        """Over a stream: in order, and gone when either end starts anew."""
        lives = sender.life, to.life

        def arrive() -> None:
            if sender.up and to.up and (sender.life, to.life) == lives:
                act()

        self.at(self.now + LATENCY_SECONDS, arrive)

    def _watch(self, watcher: Peer, holder: Peer) -> None:
        if holder.up and not watcher.complete:
            self._tell_have(holder, watcher, sorted(holder.blocks))

    def _tell_have(self, holder: Peer, watcher: Peer, indexes: list[int]) -> None:
        filling = not holder.complete

        def heard() -> None:
            effects = watcher.exchange.has(self.now, holder.name, MANIFEST, indexes, filling)
            self._carry_out(watcher, effects)

        self._deliver(holder, watcher, heard)

    def _tell_news(self, holder: Peer) -> None:
        news, holder.news = sorted(holder.news), []
        for other in self.peers.values():
            if other.up and holder.name in other.neighbours and not other.complete:
                self._tell_have(holder, other, news)

    def _carry_out(self, peer: Peer, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendWant):
                want = Want(effect.request, effect.manifest, effect.indexes, effect.urgency)
                self._to_server(peer, effect.peer, want)
            elif isinstance(effect, SendCancel):
                self._to_server(peer, effect.peer, Cancel(effect.request, effect.indexes))
            elif isinstance(effect, Keep):
                self._keep(peer, effect)
            elif isinstance(effect, Ban):
                self._banned(peer, effect)

    def _to_server(self, peer: Peer, name: PeerId, message: Want | Cancel) -> None:
        server = self.peers[name]
        self._note("ask", peer.name, name, type(message).__name__, message.request)

        def arrive() -> None:
            serving = server.serving.setdefault(peer.name, Serving())
            if isinstance(message, Cancel):
                serving.cancel(message)
            elif server.fault == "refuses":
                self._refuse(server, peer, Refuse(message.request, "busy", message.indexes))
            else:
                for refusal in serving.want(message, True, (BLOCK_BYTES,) * BLOCKS):
                    self._refuse(server, peer, refusal)
                self._send_next(server)

        self._deliver(peer, server, arrive)

    def _refuse(self, server: Peer, peer: Peer, refusal: Refuse) -> None:
        def arrive() -> None:
            effects = peer.exchange.refused(
                self.now, server.name, refusal.request, refusal.reason, refusal.indexes
            )
            self._carry_out(peer, effects)

        self._deliver(server, peer, arrive)

    # -- blocks ---------------------------------------------------------------------------------

    def _send_next(self, server: Peer) -> None:
        """One block at a time leaves; who is served goes round."""
        if server.sending or not server.up or server.fault == "silent":
            return
        names = sorted(name for name, serving in server.serving.items() if len(serving))
        if not names:
            return
        server.turn += 1
        name = names[server.turn % len(names)]
        queue = server.serving[name]
        (due,) = queue.take(queue.first()[0], 1)
        rate = DRIP_BYTES_PER_SECOND if server.fault == "drip" else UPLINK_BYTES_PER_SECOND
        server.sending = True
        life = server.life

        def sent() -> None:
            if server.life == life and server.up:
                server.sending = False
                self._block(server, self.peers[name], due)
                self._send_next(server)

        self.at(self.now + BLOCK_BYTES / rate, sent)

    def _block(self, server: Peer, peer: Peer, due: Due) -> None:
        if due.index not in server.blocks:
            self._refuse(server, peer, Refuse(due.request, "not-here", (due.index,)))
            return
        data = server.blocks[due.index]
        if server.fault == "liar":
            data = bytes([data[0] ^ 1]) + data[1:]
        else:
            self.honest_bytes += len(data)

        def arrive() -> None:
            encoded = Encoded(Codec.RAW, len(data), data)
            self._note("block", server.name, peer.name, due.index)
            effects = peer.exchange.arrived(self.now, server.name, due.request, due.index, encoded)
            self._carry_out(peer, effects)

        self._deliver(server, peer, arrive)

    # -- checkers -------------------------------------------------------------------------------

    def _keep(self, peer: Peer, effect: Keep) -> None:
        for _, index in effect.places:
            if block_id(effect.block.data) != self.ids[index]:
                raise Violation(f"seed {self.seed}: {peer.name} keeps a block that is not {index}")
            if index in peer.blocks:
                raise Violation(f"seed {self.seed}: {peer.name} keeps block {index} twice")
            peer.blocks[index] = effect.block.data
            self.useful_bytes += len(effect.block.data)
            if not peer.news:
                self.at(self.now + HAVE_SECONDS, lambda: self._tell_news(peer))
            peer.news.append(index)

    def _banned(self, peer: Peer, effect: Ban) -> None:
        self._note("ban", peer.name, effect.peer)
        self.bans += 1
        if self.peers[effect.peer].fault != "liar":
            raise Violation(f"seed {self.seed}: {peer.name} banned the honest {effect.peer}")
