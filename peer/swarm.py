"""The shell of the swarm: one nursery that owns sessions, and carries out what the exchange says.

    configured address --dial--> Asking  --Have, Sent, Refuse--> Exchange --effects--> here
    inbound stream ------------> Answering (Library) --reads--> store, catalogue

No decision is made here: whom to ask for a block is `exchange`, for a path `questions`; who may
have what is `catalogue`, what a NAR needs is `fetch`. A session that breaks is dropped, its peer's
debts go to others, and a configured peer is dialled again with growing pauses.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import trio

from chunker.digest import ManifestId
from chunker.errors import StoreError
from chunker.manifest import Manifest
from chunker.manifests import Manifests
from chunker.record import PathRecord
from chunker.store import BlockStore

from .answering import Answering, Library
from .asking import Asking
from .catalogue import Catalogue
from .effects import Ban, Effect, Keep, SendCancel, SendWant, Stuck
from .errors import PeerError, RemoteError, SessionClosed
from .exchange import Exchange
from .fetch import Fetch
from .growing import Growing, blocks_max
from .identity import Address, PeerId
from .keeping import Keeping
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
    Sent,
    Want,
    Watch,
)
from .office import Office
from .picker import DEALT_BYTES_MIN
from .pull_through import PullThrough
from .questions import Questions
from .sending import Sending
from .transport import Stream, Transport

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
REDIAL_SECONDS_MIN = 0.5
REDIAL_SECONDS_MAX = 30.0
SESSIONS_PER_PEER_MAX = 4
"""One is enough; an old one may still be dying when the next comes."""
AGENT = "narswarm/0.1"


@dataclass(slots=True)
class Tally:
    """What one peer gave us since the start."""

    role: str = ""
    blocks: int = 0
    wire_bytes: int = 0
    connected: bool = False


@dataclass(frozen=True)
class Policies:
    """The decisions that belong to the layer above. `serves`: may this peer open a session at all;
    `asks`: do we open one to it; `knows`: is it configured here, so that it may say Please."""

    serves: Callable[[PeerId], bool]
    asks: Callable[[PeerId], bool]
    knows: Callable[[PeerId], bool]
    trusted_manifest: Callable[[PathRecord], bool]
    admits: Callable[[PathRecord], bool]
    pulls_through: bool = False


@dataclass
class Counters:
    bans: int = 0
    wire_bytes: int = 0
    peers: dict[PeerId, Tally] = field(default_factory=dict)


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
    ) -> None:
        self.store = store
        self.catalogue = catalogue
        self.summaries = trio.CapacityLimiter(1)
        self.hello = Hello(PROTOCOL_VERSION, role, catalogue.salt, AGENT)
        self.counters = Counters()
        self.fetches: dict[ManifestId, Fetch] = {}
        self.policies = policies
        self._transport = transport
        self._configured = configured
        self._chance = chance
        self.me = transport.peer
        self.exchange = Exchange(transport.peer)
        self._asking: dict[PeerId, Asking] = {}
        self.questions = Questions(self._asking, store, catalogue, policies, self.settled, self.ban)
        self.office = Office(self)
        self._answering: set[Answering] = set()
        self._manifests = Manifests(store)
        self._opening: set[PeerId] = set()
        self._pull_through = PullThrough(self)
        self._undecided = {address.peer for address in configured if address.host is not None}
        self.sending = Sending(store, self.load_manifest)
        self._keeping = Keeping(store, self._stored, self._not_stored)
        self._nursery: trio.Nursery | None = None
        self._changed = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._listen)
            for address in self._configured:
                if address.host is not None:
                    nursery.start_soon(self._keep_session, address)
            nursery.start_soon(self._tick)
            nursery.start_soon(self._keeping.run)
            nursery.start_soon(self.sending.run)
            nursery.start_soon(self.questions.run)
            task_status.started()

    def discovered(self, address: Address) -> None:
        """An address heard on the LAN; dialled once a session to it is wanted and not there."""
        if self._nursery is not None and self._wants_session(address.peer):
            self._nursery.start_soon(self._session, address)

    def addresses(self) -> tuple[Address, ...]:
        return self._transport.addresses()

    def sessions(self) -> tuple[PeerId, ...]:
        return tuple(sorted(self._asking))

    def sessions_open(self) -> tuple[Asking, ...]:
        return tuple(self._asking.values())

    def answering(self) -> tuple[Answering, ...]:
        return tuple(self._answering)

    async def settled(self) -> None:
        """Return when each configured peer was reached, or failed to be, once: a question asked
        before that would take "not connected yet" for "not there"."""
        while self._undecided:
            await self._changed.wait()

    def _decided(self, peer: PeerId) -> None:
        self._undecided.discard(peer)
        self._changed.set()
        self._changed = trio.Event()

    # -- downloads ---------------------------------------------------------------------------

    async def begin(self, fetch: Fetch, missing: Iterable[int]) -> None:
        """Put a fetch to work; ask its sources what they hold, and the other members too, because
        they may fetch the same NAR just now."""
        manifest, now = fetch.manifest, trio.current_time()
        if isinstance(manifest, Growing):
            effects = self.exchange.start(
                now, fetch.id, (), (), (), blocks_max=blocks_max(manifest.nar_size),
                nar_bytes=manifest.nar_size, source=manifest.owner,
            )  # fmt: skip
        else:
            lengths = tuple(manifest.lengths)
            effects = self.exchange.start(now, fetch.id, manifest.blocks, lengths, missing)
        await self._carry_out(effects)
        fellows = [peer for peer in self._asking if self.policies.knows(peer)]
        large = manifest.nar_size >= DEALT_BYTES_MIN
        for peer in dict.fromkeys([*fetch.sources, *(fellows if large else ())]):
            self._watch(peer, fetch.id)

    async def end(self, fetch: Fetch) -> None:
        if self.fetches.get(fetch.id) is fetch:
            del self.fetches[fetch.id]
            fetch.withdraw()
            self.restate(fetch.id)
            await self._carry_out(self.exchange.stop(trio.current_time(), fetch.id))

    async def reading(self, fetch: Fetch, index: int) -> None:
        await self._carry_out(self.exchange.moved(trio.current_time(), fetch.id, index))

    def covered(self, fetch: Fetch) -> bool:
        return self.exchange.covered(fetch.id)

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
            fetch.sources.append(watcher)
            self._watch(watcher, fetch.id)
        if self._nursery is not None and self._pull_through.begins(record):
            self._nursery.start_soon(self._pull_through.pull, record)

    def restate(self, manifest: ManifestId) -> None:
        """Tell who watches it what is here now that a download is over."""
        for answering in self._answering:
            answering.restate(manifest)

    # -- sessions ----------------------------------------------------------------------------

    async def _listen(self, task_status: trio.TaskStatus[None]) -> None:
        await self._transport.run(self._accept, task_status=task_status)

    def _wants_session(self, peer: PeerId) -> bool:
        return (
            peer not in self._asking
            and peer not in self._opening
            and not self.exchange.is_banned(peer)
            and self.policies.asks(peer)
        )

    async def _accept(self, stream: Stream) -> None:
        if self.exchange.is_banned(stream.peer) or not self.policies.serves(stream.peer):
            await stream.aclose()
            return
        if sum(a.peer == stream.peer for a in self._answering) >= SESSIONS_PER_PEER_MAX:
            log.warning("%s opens more than %d sessions", stream.peer, SESSIONS_PER_PEER_MAX)
            await stream.aclose()
            return
        answering = Answering(stream, self)
        self._answering.add(answering)
        try:
            await answering.run(self._greeted)
        except* (PeerError, trio.TooSlowError, StoreError) as group:
            for error in group.exceptions:
                log.info("session of %s ended: %s", stream.peer, error)
        finally:
            self._answering.discard(answering)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.aclose()

    async def _greeted(self, answering: Answering) -> None:
        self.discovered(Address(answering.peer, None, None))

    async def _keep_session(self, address: Address) -> None:
        pause = REDIAL_SECONDS_MIN
        while not self.exchange.is_banned(address.peer):
            if self._wants_session(address.peer):
                began = trio.current_time()
                await self._session(address)
                self._decided(address.peer)
                if trio.current_time() - began > REDIAL_SECONDS_MAX:
                    pause = REDIAL_SECONDS_MIN
            await trio.sleep(pause * (0.5 + self._chance.random()))
            pause = min(pause * 2, REDIAL_SECONDS_MAX)

    async def _session(self, address: Address) -> None:
        """Open, run and clean up one asking session; errors end only it."""
        peer = address.peer
        if not self._wants_session(peer):
            return
        self._opening.add(peer)
        asking: Asking | None = None
        try:
            stream = await self._transport.open(address)
            asking = Asking(stream, self.hello, self._heard)
            await asking.run(self._ready)
        except* RemoteError as group:
            log.warning("%s broke the protocol: %s", peer, group.exceptions[0])
        except* PeerError as group:
            first = logging.WARNING if peer in self._undecided else logging.INFO
            log.log(first, "%s is not to be had yet: %s", peer, group.exceptions[0])
        finally:
            self._opening.discard(peer)
            if asking is not None:
                await self._session_over(asking)

    async def _session_over(self, asking: Asking) -> None:
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
        self._asking[asking.peer] = asking
        self._opening.discard(asking.peer)
        tally = self._tally(asking.peer)
        tally.role, tally.connected = asking.their.role, True
        log.info("connected to %s %s", asking.their.role, asking.peer)
        self._decided(asking.peer)
        if self.knows(asking.peer):
            asking.get_summary()
        for fetch in list(self.fetches.values()):
            if await self.questions.joins(asking, fetch):
                fetch.sources.append(asking.peer)
                self._watch(asking.peer, fetch.id)

    def wire_bytes(self) -> int:
        """Everything received on asking streams since the start."""
        live = sum(asking.bytes_received for asking in self._asking.values())
        return self.counters.wire_bytes + live

    def _tally(self, peer: PeerId) -> Tally:
        return self.counters.peers.setdefault(peer, Tally())

    def _watch(self, peer: PeerId, manifest: ManifestId) -> None:
        self._tell(peer, Watch(0, manifest))

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
            case Have(manifest, filling, bitmap):
                fetch = self.fetches.get(manifest)
                count = 0 if fetch is None else blocks_max(fetch.manifest.nar_size)
                known = range(min(count, len(bitmap) * 8))
                held = [n for n in known if bitmap[n >> 3] >> (n & 7) & 1]
                effects = self.exchange.has(now, peer, manifest, held, filling)
                self._covering(manifest)
            case HaveMore(manifest, indexes):
                effects = self.exchange.has(now, peer, manifest, indexes)
            case Grown():
                effects = await self.office.heard(peer, message)
            case Refuse(request, reason, indexes):
                effects = self.exchange.refused(now, peer, request, reason, indexes)
            case _:
                raise RemoteError(f"{peer} sent {type(message).__name__} unasked")
        await self._carry_out(effects)

    def _covering(self, manifest: ManifestId) -> None:
        if (fetch := self.fetches.get(manifest)) is not None:
            fetch.heard_of_holder()

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
        for keep in batch:
            for manifest, index in keep.places:
                self._present(manifest, index)

    def _not_stored(self, reason: str) -> None:
        for fetch in list(self.fetches.values()):
            fetch.fail(reason)

    def _present(self, manifest: ManifestId, index: int) -> None:
        fetch = self.fetches.get(manifest)
        if fetch is not None:
            fetch.present(index)
        for answering in self._answering:
            if manifest in answering.watches:
                answering.note(manifest, index)

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_SECONDS)
            await self._carry_out(self.exchange.tick(trio.current_time()))
