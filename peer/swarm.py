"""The shell of the swarm: one nursery that owns sessions, and carries out what the exchange says.

    configured address --dial--> Asking  --Have, Sent, Refuse--> Exchange --effects--> here
    inbound stream ------------> Answering (Library) --reads--> store, catalogue

No decision is made here: whom to ask is `exchange`, who may have what is `catalogue`, what a NAR
needs is `fetch`. A session that breaks is dropped, its peer's debts go to others, and a configured
peer is dialled again with growing pauses.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import trio

from chunker.digest import ManifestId
from chunker.errors import ManifestError, StoreError
from chunker.manifest import Manifest, decode_manifest
from chunker.manifests import Manifests
from chunker.record import PathRecord
from chunker.references import needles_digest
from chunker.store import BlockStore

from .answering import Answering, Library
from .asking import Asking
from .catalogue import Catalogue
from .errors import PeerError, RemoteError, SessionClosed
from .exchange import Ban, Effect, Exchange, Keep, SendCancel, SendWant, Stuck
from .fetch import Fetch, Offer, candidates
from .identity import Address, PeerId
from .introductions import Introductions, Session
from .keeping import Keeping
from .messages import (
    PROTOCOL_VERSION,
    Cancel,
    Have,
    HaveMore,
    Hello,
    Message,
    Refuse,
    Revoked,
    Sent,
    Show,
    Want,
    Watch,
)
from .policies import Counters, Policies, Tally
from .pools import Membership
from .pull_through import PullThrough
from .transport import PROTOCOL, Handler, Stream, Transport

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
REDIAL_SECONDS_MIN = 0.5
REDIAL_SECONDS_MAX = 30.0
BLAMES_MAX = 10_000
SESSIONS_PER_PEER_MAX = 4
"""One is enough; an old one may still be dying when the next comes."""
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
        self.hello = Hello(PROTOCOL_VERSION, role, catalogue.salt, AGENT)
        self.counters = Counters()
        self.fetches: dict[ManifestId, Fetch] = {}
        self.policies = policies
        self.introductions = introductions or Introductions(Membership(transport.peer), lambda: 0.0)
        self.introductions.listens = transport.addresses
        self.introductions.sessions = self._met
        self._handlers = {**(others or {}), PROTOCOL: self._accept}
        self._transport = transport
        self._configured = configured
        self._chance = chance
        self._exchange = Exchange()
        self._asking: dict[PeerId, Asking] = {}
        self._answering: set[Answering] = set()
        self._manifests = Manifests(store)
        self._blamed: set[tuple[PeerId, ManifestId]] = set()
        self._opening: set[PeerId] = set()
        self._pull_through = PullThrough(self)
        self._undecided = {address.peer for address in configured if address.host is not None}
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
            task_status.started()

    def discovered(self, address: Address) -> None:
        """An address heard on the LAN; dialled once a session to it is wanted and not there."""
        if self._nursery is not None and self._wants_session(address.peer):
            self._nursery.start_soon(self._session, address)

    def addresses(self) -> tuple[Address, ...]:
        return self._transport.addresses()

    def sessions(self) -> tuple[PeerId, ...]:
        return tuple(sorted(self._asking))

    async def settled(self) -> None:
        """Return when each configured peer was reached, or failed to be, once: a question asked
        before that would take "not connected yet" for "not there"."""
        while self._undecided:
            await self._changed.wait()

    def _decided(self, peer: PeerId) -> None:
        self._undecided.discard(peer)
        self._changed.set()
        self._changed = trio.Event()

    # -- questions ---------------------------------------------------------------------------

    async def find(
        self, store_hash: str, seconds: float, *, public: bool = False
    ) -> list[tuple[PeerId, PathRecord]]:
        """Who has this path, of the configured peers at once, and of strangers too if it is
        `public`: whoever holds a path learns from the question that we want it. An error or
        silence is no answer."""
        # Peers that cannot be reached must leave time to ask those that can.
        with trio.move_on_after(seconds / 2):
            await self.settled()
        found: list[tuple[PeerId, PathRecord]] = []

        async def ask(asking: Asking) -> None:
            record = (await asking.find([store_hash])).get(store_hash)
            if record is not None:
                found.append((asking.peer, record))

        asked = [a for a in self._asking.values() if public or self.policies.knows(a.peer)]
        await self._ask_all(asked, ask, seconds / 2)
        return sorted(found, key=lambda item: item[0])

    async def please(
        self, store_hash: str, seconds: float, but: Iterable[PeerId]
    ) -> list[tuple[PeerId, PathRecord]]:
        """Ask LAN caches that we know to look at their own sources."""
        found: list[tuple[PeerId, PathRecord]] = []
        skipped = set(but)

        async def ask(asking: Asking) -> None:
            record = await asking.please(store_hash)
            if record is not None:
                found.append((asking.peer, record))

        caches = [
            asking
            for asking in self._asking.values()
            if asking.their.role == "peer"
            and asking.peer not in skipped
            and self.policies.knows(asking.peer)
        ]
        await self._ask_all(caches, ask, seconds)
        return sorted(found, key=lambda item: item[0])

    async def get_manifest(
        self, record: PathRecord, peers: Sequence[PeerId]
    ) -> tuple[Manifest, bytes] | None:
        """The record's manifest from the first of `peers` that sends a fitting one."""
        held = self.store.manifest(record.manifest)
        if held is not None and (manifest := self._fitting(record, held)) is not None:
            return manifest, held
        for peer in peers:
            asking = self._asking.get(peer)
            if asking is None:
                continue
            try:
                encoded = await asking.manifest(record.manifest)
            except RemoteError as error:
                await self._ban(peer, str(error))
                continue
            except PeerError:
                continue
            manifest = self._fitting(record, encoded)
            if manifest is not None:
                return manifest, encoded
            self.blame(peer, record.manifest)
        return None

    def _fitting(self, record: PathRecord, encoded: bytes) -> Manifest | None:
        try:
            manifest = decode_manifest(encoded)
        except ManifestError as error:
            log.warning("a manifest for %s is malformed: %s", record.store_path, error)
            return None
        fits = (
            manifest.nar_hash == record.nar_hash
            and manifest.nar_size == record.nar_size
            and manifest.needles_digest == needles_digest(record.needles)
        )
        return manifest if fits else None

    def blame(self, peer: PeerId, manifest: ManifestId) -> None:
        """`peer` vouched for a manifest that does not rebuild its NAR."""
        log.warning("%s offered a manifest that is wrong: %s", peer, manifest.hex()[:16])
        if len(self._blamed) >= BLAMES_MAX:
            self._blamed.clear()
        self._blamed.add((peer, manifest))

    def ranked(
        self, record: PathRecord, offers: Sequence[Offer]
    ) -> list[tuple[ManifestId, list[PeerId]]]:
        """Which manifests to try for this NAR, best first, and who offered each."""
        fair = [offer for offer in offers if (offer[0], offer[1].manifest) not in self._blamed]
        trusted = {o.manifest for _, o in fair if self.policies.trusted_manifest(o)}
        return candidates(record, fair, trusted)

    # -- downloads ---------------------------------------------------------------------------

    async def begin(self, fetch: Fetch, missing: Iterable[int]) -> None:
        """Put a fetch to work and ask its sources what they hold."""
        manifest = fetch.manifest
        effects = self._exchange.start(
            trio.current_time(), fetch.id, manifest.blocks, tuple(manifest.lengths), missing
        )
        await self._carry_out(effects)
        for peer in fetch.sources:
            self._watch(peer, fetch.id)

    async def end(self, fetch: Fetch) -> None:
        if self.fetches.pop(fetch.id, None) is not None:
            await self._carry_out(self._exchange.stop(trio.current_time(), fetch.id))

    async def reading(self, fetch: Fetch, index: int) -> None:
        await self._carry_out(self._exchange.moved(trio.current_time(), fetch.id, index))

    def covered(self, fetch: Fetch) -> bool:
        return self._exchange.covered(fetch.id)

    # -- Library -----------------------------------------------------------------------------

    def load_manifest(self, wanted: ManifestId) -> Manifest | None:
        return self._manifests.load(wanted)

    def is_filling(self, wanted: ManifestId) -> bool:
        fetch = self.fetches.get(wanted)
        pulled = wanted in self._pull_through.pulling
        return pulled or (fetch is not None and not fetch.failed)

    async def look_for(self, asker: PeerId, store_hash: str) -> PathRecord | None:
        return await self._pull_through.look_for(asker, store_hash)

    def watched(self, record: PathRecord) -> None:
        if self._nursery is not None and self._pull_through.begins(record):
            self._nursery.start_soon(self._pull_through.pull, record)

    def restate(self, manifest: ManifestId) -> None:
        """Tell who watches it what is here now that a download is over."""
        for answering in self._answering:
            answering.restate(manifest)

    # -- sessions ----------------------------------------------------------------------------

    async def _listen(self, task_status: trio.TaskStatus[None]) -> None:
        await self._transport.run(self._handlers, task_status=task_status)

    def _wants_session(self, peer: PeerId) -> bool:
        return (
            peer not in self._asking
            and peer not in self._opening
            and not self._exchange.is_banned(peer)
            and (self.policies.asks(peer) or self._may_meet(peer))
        )

    def _met(self) -> tuple[Session, ...]:
        return (*self._asking.values(), *(a for a in self._answering if a.met))

    def _may_meet(self, peer: PeerId) -> bool:
        return self.hello.role != "seed" and self.introductions.meets(peer)

    def welcomes(self, peer: PeerId) -> bool:
        return self.policies.serves(peer) or self.policies.knows(peer)

    async def _accept(self, stream: Stream) -> None:
        if self._exchange.is_banned(stream.peer):
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
        self.introductions.begun(answering)
        self.discovered(Address(answering.peer, None, None))

    async def _keep_session(self, address: Address) -> None:
        pause = REDIAL_SECONDS_MIN
        while not self._exchange.is_banned(address.peer):
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
        effects = self._exchange.peer_gone(trio.current_time(), asking.peer)
        with trio.CancelScope(shield=True):
            await self._carry_out(effects)

    async def _ready(self, asking: Asking) -> None:
        if not self.policies.asks(asking.peer):
            asking.stop()  # no member, after all
            return
        self.introductions.begun(asking)
        self._asking[asking.peer] = asking
        self._opening.discard(asking.peer)
        tally = self._tally(asking.peer)
        tally.role, tally.connected = asking.their.role, True
        log.info("connected to %s %s", asking.their.role, asking.peer)
        self._decided(asking.peer)
        for fetch in list(self.fetches.values()):
            await self._join(asking, fetch)

    async def _join(self, asking: Asking, fetch: Fetch) -> None:
        """A peer came while a download runs: it may have the same NAR."""
        if not (fetch.public or self.policies.knows(asking.peer)):
            return
        try:
            found = (await asking.find([fetch.record.store_hash])).get(fetch.record.store_hash)
        except PeerError:
            return
        if found is not None and found.manifest == fetch.id:
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

    async def _ask_all(
        self,
        sessions: Sequence[Asking],
        ask: Callable[[Asking], Awaitable[None]],
        seconds: float,
    ) -> None:
        async def one(asking: Asking) -> None:
            try:
                await ask(asking)
            except RemoteError as error:
                await self._ban(asking.peer, str(error))
            except PeerError as error:
                log.info("%s", error)

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for asking in sessions:
                    nursery.start_soon(one, asking)

    # -- effects -----------------------------------------------------------------------------

    async def _heard(self, peer: PeerId, message: Message) -> None:
        now = trio.current_time()
        match message:
            case Sent(request, index, encoded):
                effects = self._exchange.arrived(now, peer, request, index, encoded)
            case Have(manifest, filling, bitmap):
                fetch = self.fetches.get(manifest)
                count = 0 if fetch is None else len(fetch.manifest.blocks)
                known = range(min(count, len(bitmap) * 8))
                held = [n for n in known if bitmap[n >> 3] >> (n & 7) & 1]
                effects = self._exchange.has(now, peer, manifest, held, filling)
                self._covering(manifest)
            case HaveMore(manifest, indexes):
                effects = self._exchange.has(now, peer, manifest, indexes)
            case Refuse(request, _, indexes):
                effects = self._exchange.refused(now, peer, request, indexes)
            case Show() | Revoked():
                effects = []
                self.introductions.hears(peer, message)
            case _:
                raise RemoteError(f"{peer} sent {type(message).__name__} unasked")
        await self._carry_out(effects)

    def _covering(self, manifest: ManifestId) -> None:
        if (fetch := self.fetches.get(manifest)) is not None:
            fetch.heard_of_holder()

    async def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendWant(peer, request, manifest, indexes):
                    self._tell(peer, Want(request, manifest, indexes))
                case SendCancel(peer, request):
                    self._tell(peer, Cancel(request))
                case Keep():
                    tally = self._tally(effect.peer)
                    tally.blocks += 1
                    encoded = effect.block.encoded
                    tally.wire_bytes += len(encoded.payload) if encoded else 0
                    await self._keeping.keep(effect)
                case Ban(peer, reason):
                    await self._ban(peer, reason)
                case Stuck(manifest):
                    if (fetch := self.fetches.get(manifest)) is not None:
                        fetch.stuck()

    async def _ban(self, peer: PeerId, reason: str) -> None:
        log.warning("banned %s: %s", peer, reason)
        self.counters.bans += 1
        effects = self._exchange.ban(trio.current_time(), peer)
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
            await self._carry_out(self._exchange.tick(trio.current_time()))
