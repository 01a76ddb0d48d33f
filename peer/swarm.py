"""The shell of the swarm: one nursery that owns sessions, and carries out what the exchange says.

    configured address --dial--> Asking  --Have, Sent, Refuse--> Exchange --effects--> here
    inbound stream ------------> Answering (Library) --reads--> store, catalogue

No decision is made here: whom to ask for a block is `exchange`, for a path `questions`; who may
have what `catalogue`, what a NAR needs `fetch`, whom to dial `acquaintances`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping, Sequence

import trio

from chunker.digest import ManifestId
from chunker.manifest import Manifest
from chunker.manifests import Manifests
from chunker.record import PathRecord
from chunker.store import BlockStore

from .asking import Asking
from .catalogue import Catalogue
from .dialling import Dialling
from .effects import Ban, Effect, Keep, SendCancel, SendWant, Stuck
from .errors import PeerError, RemoteError, SessionClosed
from .exchange import Exchange
from .fetch import Fetch
from .growing import Growing, blocks_max
from .identity import Address, PeerId
from .inbound import Inbound
from .introductions import Introductions
from .keeping import Keeping
from .library import Library
from .messages import (
    PROTOCOL_VERSION,
    Cancel,
    Grown,
    Growth,
    Have,
    HaveMore,
    Hello,
    Message,
    Please,
    Refuse,
    Revoked,
    Sent,
    Show,
    Want,
)
from .office import Office
from .picker import DEALT_BYTES_MIN
from .policies import Counters, Policies, Tally
from .pools import Membership
from .pull_through import PullThrough
from .questions import Questions
from .sending import Sending
from .traffic import Traffic
from .transport import PROTOCOL, Handler, Transport

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
AGENT = "narswarm/0.1"


class Swarm(Library):
    """`run` until cancelled; everything else is called from tasks of the same trio loop."""

    def __init__(
        self,
        transport: Transport,
        store: BlockStore,
        catalogue: Catalogue,
        role: str,
        policies: Policies,
        configured: Sequence[Address],
        chance: random.Random,
        introductions: Introductions | None = None,
        others: Mapping[str, Handler] | None = None,
    ) -> None:
        """`others`: what this process speaks besides, by protocol."""
        self.store = store
        self.catalogue = catalogue
        self.summaries = trio.CapacityLimiter(1)
        self.hello = Hello(PROTOCOL_VERSION, role, catalogue.salt, AGENT)
        self.counters = Counters()
        self.fetches: dict[ManifestId, Fetch] = {}
        self.policies = policies
        self.introductions = introductions or Introductions(Membership(transport.peer), lambda: 0.0)
        self.introductions.listens = transport.addresses
        self.introductions.sessions = lambda: (*self._asking.values(), *self.inbound.met())
        self._transport = transport
        self.me = transport.peer
        self.exchange = Exchange(transport.peer)
        self._asking: dict[PeerId, Asking] = {}
        self.traffic = Traffic()
        self.dialling = Dialling(
            transport.peer, configured, chance, self._session, transport.hang_up
        )
        self.questions = Questions(
            self._asking, store, catalogue, policies, self.dialling.settled, self.ban
        )
        self.office = Office(self)
        self.inbound = Inbound(self)
        self._handlers = {**(others or {}), PROTOCOL: self.inbound.accept}
        self._manifests = Manifests(store)
        self._opening: set[PeerId] = set()
        self._pull_through = PullThrough(self)
        self.sending = Sending(store, self.load_manifest)
        self._keeping = Keeping(store, self._stored, self._not_stored)
        self._nursery: trio.Nursery | None = None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._listen)
            nursery.start_soon(self.dialling.run)
            nursery.start_soon(self._tick)
            nursery.start_soon(self._keeping.run)
            nursery.start_soon(self.sending.run)
            nursery.start_soon(self.questions.run)
            task_status.started()

    def discovered(self, address: Address) -> None:
        """A hint: an address heard on the LAN, or a peer that has a connection to us."""
        wanted = self.policies.asks(address.peer) or self._may_meet(address.peer)
        if wanted and not self.exchange.is_banned(address.peer):
            self.dialling.heard(address)

    def addresses(self) -> tuple[Address, ...]:
        return self._transport.addresses()

    def sessions(self) -> tuple[PeerId, ...]:
        return tuple(sorted(self._asking))

    def sessions_open(self) -> tuple[Asking, ...]:
        return tuple(self._asking.values())

    def owed_by(self, peer: PeerId) -> int:
        return self.exchange.owed_by(peer)

    def is_banned(self, peer: PeerId) -> bool:
        return self.exchange.is_banned(peer)

    # -- downloads ---------------------------------------------------------------------------

    async def begin(self, fetch: Fetch, missing: Iterable[int]) -> None:
        """Put a fetch to work; ask its sources what they hold, and the other members too, because
        they may fetch the same NAR just now."""
        manifest, now = fetch.manifest, trio.current_time()
        fellows = [peer for peer in self._asking if self.policies.knows(peer)]
        if isinstance(manifest, Growing):
            self.traffic.begin(now, fetch.id, fetch.record, manifest.nar_size)
            effects = self.exchange.start(
                now, fetch.id, (), (), (), blocks_max=blocks_max(manifest.nar_size),
                nar_bytes=manifest.nar_size, source=manifest.owner, members=fellows,
            )  # fmt: skip
        else:
            lengths, missing = tuple(manifest.lengths), tuple(missing)
            size = sum(lengths[index] for index in missing)
            self.traffic.begin(now, fetch.id, fetch.record, size)
            effects = self.exchange.start(now, fetch.id, manifest.blocks, lengths, missing)
        await self._carry_out(effects)
        large = manifest.nar_size >= DEALT_BYTES_MIN
        for peer in dict.fromkeys([*fetch.sources, *(fellows if large else ())]):
            self._watch(peer, fetch.id)

    def widen(self, fetch: Fetch, peers: Iterable[PeerId]) -> None:
        """These offer what is being fetched: ask anew what they hold, for they may have become
        whole under another name."""
        for peer in peers:
            if peer not in fetch.sources:
                fetch.sources.append(peer)
            self._watch(peer, fetch.id)

    async def end(self, fetch: Fetch) -> None:
        if self.fetches.get(fetch.id) is fetch:
            del self.fetches[fetch.id]
            self.traffic.end(fetch.id)
            fetch.withdraw()
            self.inbound.restate(fetch.id)
            await self._carry_out(self.exchange.stop(trio.current_time(), fetch.id))

    async def reading(self, fetch: Fetch, index: int) -> None:
        await self._carry_out(self.exchange.moved(trio.current_time(), fetch.id, index))

    # -- Library -----------------------------------------------------------------------------

    def knows(self, peer: PeerId) -> bool:
        return self.policies.knows(peer)

    def load_manifest(self, wanted: ManifestId) -> Manifest | Growing | None:
        return self.office.load(wanted) or self._manifests.load(wanted)

    def is_filling(self, wanted: ManifestId) -> bool:
        fetch = self.fetches.get(wanted)
        pulled = wanted in self._pull_through.pulling
        ours = self.office.ours(wanted)
        grows = ours is not None and ours.state is Growth.GROWING
        return pulled or grows or (fetch is not None and not fetch.failed)

    def grows(self, wanted: ManifestId) -> Growing | None:
        return self.office.ours(wanted)

    async def look_for(self, asker: PeerId, message: Please) -> PathRecord | None:
        found = await self._pull_through.look_for(asker, message.store_hash)
        return found or await self.office.look_for(asker, message)

    def watched(self, watcher: PeerId, record: PathRecord) -> None:
        """Whoever watches what we fetch as well has, or will have, blocks for us."""
        fetch = self.fetches.get(record.manifest)
        if fetch is not None and watcher not in fetch.sources:
            self.widen(fetch, [watcher])
        if self._nursery is not None and self._pull_through.begins(record):
            self._nursery.start_soon(self._pull_through.pull, record)

    # -- sessions ----------------------------------------------------------------------------

    async def _listen(self, task_status: trio.TaskStatus[None]) -> None:
        await self._transport.run(self._handlers, task_status=task_status)

    def _wants_session(self, peer: PeerId) -> bool:
        return (
            peer not in self._asking
            and peer not in self._opening
            and not self.exchange.is_banned(peer)
            and (self.policies.asks(peer) or self._may_meet(peer))
        )

    def _may_meet(self, peer: PeerId) -> bool:
        return self.hello.role != "seed" and self.introductions.meets(peer)

    def welcomes(self, peer: PeerId) -> bool:
        return self.policies.serves(peer) or self.policies.knows(peer)

    async def _session(self, address: Address) -> None:
        """Open, run and clean up one asking session; errors end only it."""
        peer = address.peer
        if not self._wants_session(peer):
            return
        self._opening.add(peer)
        if not self.policies.asks(peer):
            self.introductions.met_stranger(peer)
        asking: Asking | None = None
        try:
            stream = await self._transport.open(address)
            asking = Asking(stream, self.hello, self.introductions, self._heard)
            await asking.run(self._ready)
        except* RemoteError as group:
            log.warning("%s broke the protocol: %s", peer, group.exceptions[0])
        except* PeerError as group:
            first = logging.WARNING if peer in self.dialling.undecided else logging.INFO
            log.log(first, "%s is not to be had yet: %s", peer, group.exceptions[0])
        finally:
            self._opening.discard(peer)
            if asking is not None:
                await self._session_over(asking)

    async def _session_over(self, asking: Asking) -> None:
        self.dialling.left(asking)
        if self._asking.get(asking.peer) is asking:
            del self._asking[asking.peer]
            tally = self._tally(asking.peer)
            tally.connected = False
            self.counters.wire_bytes += asking.bytes_received
        self.office.gone(asking.peer)
        effects = self.exchange.peer_gone(trio.current_time(), asking.peer)
        with trio.CancelScope(shield=True):
            await self._carry_out(effects)

    async def _ready(self, asking: Asking) -> None:
        if not self.policies.asks(asking.peer):
            asking.stop()  # no member, after all
            return
        if not self.dialling.joined(asking.peer, asking.remote_host, asking):
            asking.stop()
            return
        self.introductions.begun(asking)
        self._asking[asking.peer] = asking
        self._opening.discard(asking.peer)
        tally = self._tally(asking.peer)
        tally.role, tally.connected = asking.their.role, True
        tally.pool = self.introductions.pool_names(asking.peer)
        log.info("connected to %s %s", asking.their.role, asking.peer)
        self.dialling.reached(asking.peer)
        if self.knows(asking.peer):
            asking.get_summary()
        for fetch in list(self.fetches.values()):
            if await self.questions.joins(asking, fetch):
                self.widen(fetch, [asking.peer])

    def wire_bytes(self) -> int:
        """Everything received on asking streams since the start."""
        live = sum(asking.bytes_received for asking in self._asking.values())
        return self.counters.wire_bytes + live

    def _tally(self, peer: PeerId) -> Tally:
        if (tally := self.counters.peers.get(peer)) is None:
            tally = self.counters.peers[peer] = Tally()
        return tally

    def _watch(self, peer: PeerId, manifest: ManifestId) -> None:
        if (asking := self._asking.get(peer)) is not None:
            self._tell(peer, asking.watching(manifest))

    def _tell(self, peer: PeerId, message: Message) -> None:
        asking = self._asking.get(peer)
        if asking is not None:
            try:
                asking.tell(message)
            except SessionClosed as error:
                log.info("%s", error)

    # -- effects -----------------------------------------------------------------------------

    async def _heard(self, peer: PeerId, message: Message) -> None:
        now = trio.current_time()
        match message:
            case Sent(request, index, encoded):
                effects = self.exchange.arrived(now, peer, request, index, encoded)
                useful = bool(effects) and isinstance(effects[0], Keep)
                self.traffic.received(now, peer, len(encoded.payload), useful=useful)
                self.dialling.used(peer)
            case Have(manifest, filling, bitmap):
                fetch = self.fetches.get(manifest)
                count = 0 if fetch is None else blocks_max(fetch.manifest.nar_size)
                known = range(min(count, len(bitmap) * 8))
                held = [n for n in known if bitmap[n >> 3] >> (n & 7) & 1]
                effects = self.exchange.has(now, peer, manifest, held, filling)
                if fetch is not None:
                    fetch.heard_of_holder()
            case HaveMore(manifest, indexes):
                effects = self.exchange.has(now, peer, manifest, indexes)
            case Grown():
                effects = await self.office.heard(peer, message)
            case Refuse(request, reason, indexes):
                self.office.refused(peer, request)
                effects = self.exchange.refused(now, peer, request, reason, indexes)
            case Show() | Revoked():
                effects = []
                self.introductions.hears(peer, message)
            case _:
                raise RemoteError(f"{peer} sent {type(message).__name__} unasked")
        await self._carry_out(effects)

    async def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendWant(peer, request, manifest, indexes, urgency):
                    self._tell(peer, Want(request, manifest, indexes, urgency))
                case SendCancel(peer, request, indexes):
                    self._tell(peer, Cancel(request, indexes))
                case Keep():
                    tally = self._tally(effect.peer)
                    tally.blocks += 1
                    encoded = effect.block.encoded
                    tally.wire_bytes += len(encoded.payload) if encoded else 0
                    self.traffic.kept(trio.current_time(), effect)
                    await self._keeping.keep(effect)
                case Ban(peer, reason):
                    await self.ban(peer, reason)
                case Stuck(manifest):
                    if (fetch := self.fetches.get(manifest)) is not None:
                        fetch.stuck()

    async def ban(self, peer: PeerId, reason: str) -> None:
        log.warning("banned %s: %s", peer, reason)
        self.counters.bans += 1
        effects = self.exchange.ban(trio.current_time(), peer)
        asking = self._asking.pop(peer, None)
        if asking is not None:
            self._tally(peer).connected = False
            self.counters.wire_bytes += asking.bytes_received
            asking.stop()
        await self._carry_out(effects)

    def _stored(self, batch: Sequence[Keep]) -> None:
        self.sending.recent.put(keep.block for keep in batch)
        places: dict[ManifestId, dict[int, PeerId]] = {}
        for keep in batch:
            for manifest, index in keep.places:
                places.setdefault(manifest, {})[index] = keep.peer
        for manifest, givers in places.items():
            if (fetch := self.fetches.get(manifest)) is not None:
                fetch.present(givers)
            self.inbound.note(manifest, givers)

    def _not_stored(self, reason: str) -> None:
        for fetch in list(self.fetches.values()):
            fetch.fail(reason)

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_SECONDS)
            self.inbound.count_sent()
            await self._carry_out(self.exchange.tick(trio.current_time()))
