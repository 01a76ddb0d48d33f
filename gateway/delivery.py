"""One NAR on its way to Nix: from the store, from peers, from an upstream, or from all in turn.

| what is here                       | how it is delivered                                         |
|------------------------------------|-------------------------------------------------------------|
| a verified manifest, every block   | straight from the store                                     |
| peers that cover what is missing   | block by block behind a Fetch                               |
| nobody has it, another's turn      | behind that member's growing manifest (peer.office)         |
| nobody has it, our turn            | behind our own download, as it is cut and stored            |
| none of these                      | None: 404 before the first byte                             |

A NAR that was never verified here passes through SHA-256 and keeps its last block back until the
whole matched; a body that turns out wrong raises BodyBroken, which cuts the connection. When a
source fails in the middle, the body goes on behind the next one: honest sources derive the same
blocks. A NarHash whose body was cut as wrong serves no ranges for a while, because Nix would join
the right tail to the wrong head; for the same reason a range is served only from the manifest that
the whole began with.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

import trio

from chunker.digest import Bytes, ManifestId, NarHash
from chunker.errors import ChunkerError, StoreError
from chunker.manifest import Manifest
from chunker.rebuild import rebuild
from chunker.record import PathRecord
from chunker.store import BlockStore
from peer.errors import PeerError
from peer.fetch import STUCK_SECONDS_MAX, Fetch, Offer
from peer.growing import Growing, growing_id
from peer.identity import PeerId
from peer.office import FIRST_BYTE_SECONDS_MAX
from peer.swarm import Swarm

from .errors import Unproven
from .filling import Filling
from .offer import is_signed
from .proofs import UNHEARD_OF_SECONDS, Proofs
from .pump import Readable
from .seeding import NO_MANIFEST
from .signing import KeyRing
from .sources import FetchedSource, FilledSource, Source, SourcedBody, Tried
from .stored import HeldSource, StoredBody
from .trust import Admitted
from .upstream import Upstream

log = logging.getLogger(__name__)

WRONG_SECONDS = 600.0
FULL_SECONDS = 10.0
"""How long nothing is begun after the store could not be written."""
SOURCES_SECONDS_MAX = 4.0
RESCUE_SECONDS = 1.0
"""How long a block that no live peer holds is waited for where an upstream stands by."""
SHARED_BYTES_MIN = 512 * 1024
"""Smaller NARs are had from our own upstream sooner than it is settled who asks."""
RATE_BYTES_MIN = 4 * 1024 * 1024
"""Shorter downloads say little about an upstream's rate."""
RATE_CHANGE_MIN = 4
"""Smaller changes are not told: who shares a line with others sees many rates."""
OWNERS_ASKED_MAX = 3
"""Each may take seconds to say no, and Nix has other substituters."""
FILLINGS_MAX = 64
"""At once, for others to begin one more."""
SHARE_START = 1024
SHARE_OF_A_PEER = 4
"""An office cache takes so many times the share of a workstation."""
BEGUN_MAX = 100_000
WRONGS_MAX = 10_000

Body = Callable[[int, int], AsyncIterator[Bytes] | Readable]
"""body(start, end) gives exactly end - start bytes of the NAR."""


class Deliveries:
    """All NARs under way; the same NAR is fetched once however many ask."""

    def __init__(
        self,
        store: BlockStore,
        swarm: Swarm,
        upstreams: tuple[Upstream, ...],
        publish_keys: KeyRing,
        order: Callable[[PathRecord], Sequence[Upstream]] | None = None,
        vouches: Callable[[PathRecord], bool] = lambda record: False,
    ) -> None:
        """`order`: which of `upstreams` to ask for a NAR, best first; by default as they are.
        `vouches`: see Proofs."""
        self.proofs = Proofs(vouches)
        self.upstream_bytes = 0
        self.patience_seconds = RESCUE_SECONDS if upstreams else STUCK_SECONDS_MAX
        self._store = store
        self._swarm = swarm
        self._upstreams = upstreams
        self._publish_keys = publish_keys
        self._order = order or (lambda record: upstreams)
        self._full_until = float("-inf")
        self._wrong: dict[NarHash, float] = {}
        self._begun: dict[NarHash, ManifestId | None] = {}
        self._fillings: dict[ManifestId, Filling] = {}
        """By the growing manifest: two paths may have the same NAR and other references."""
        self._rate = 0
        self._nursery: trio.Nursery | None = None
        if upstreams:
            swarm.office.fetch_for = self.fetch_for
            self._offer_to_fetch(SHARE_START * 1024)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Owns the downloads from upstreams; they go on when their reader goes away."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def running(self) -> tuple[Filling, ...]:
        """The downloads from upstreams that are under way."""
        return tuple(self._fillings.values())

    def is_wrong(self, nar_hash: NarHash) -> bool:
        """A body of this NAR was cut as wrong lately: no ranges."""
        return self._wrong.get(nar_hash, 0.0) > trio.current_time()

    def is_disproved(self, record: PathRecord) -> bool:
        """Its content address was seen to be wrong lately, and nobody vouches for it."""
        return self.proofs.is_disproved(trio.current_time(), record)

    async def open(self, admitted: Admitted, *, ranged: bool = False) -> Body | None:
        """None: this NAR cannot be finished here. A range (`ranged`) goes on with what Nix has
        from before, so only from the manifest that the last delivery of the whole began with."""
        record = admitted.record
        held, whole = await self._held(record)
        if held is not None and whole is not None:
            if not await trio.to_thread.run_sync(self._is_right, record, whole):
                self.proofs.disproved(trio.current_time(), record)
                return None
            body: Body = StoredBody(self._store, held, whole)
            manifest: ManifestId | None = held.manifest
            source = None
        else:
            tried = Tried()
            source = await self.source(record, tried)
            if source is None:
                self.proofs.disproved(trio.current_time(), record, UNHEARD_OF_SECONDS)
                return None
            body, manifest = SourcedBody(self, record, source, tried), source.manifest
        if ranged and self._begun.get(record.nar_hash, manifest) != manifest:
            log.warning("%s: no range from another manifest", record.store_path)
            if source is not None:
                await source.leave()
            return None
        if len(self._begun) >= BEGUN_MAX:
            self._begun.clear()
        if not ranged:
            self._begun[record.nar_hash] = manifest
        return body

    async def source(self, record: PathRecord, tried: Tried) -> Source | None:
        """Where the blocks come from now, but for what was `tried`, which this adds to. The caller
        must `leave` it."""
        source = await self._here(record, tried)
        if source is not None:
            return source
        public = is_signed(record, self._publish_keys)
        source = await self._behind_peers(self._from_peers(record, tried, public))
        if source is not None:
            return source
        if trio.current_time() < self._full_until:
            return None  # 404 at once: Nix goes to its next substituter, and costs no upstream
        for owner in self._turns(record, tried):
            if owner == self._swarm.me:  # others may have asked for it while we asked them
                source = await self._here(record, tried)
                source = source or await self._behind(self.fill(record), tried)
            else:
                tried.owners.add(owner)
                asking = self._swarm.office.ask(owner, record, public)
                source = await self._behind_peers(asking)
            if source is not None:
                return source
        return None

    def _turns(self, record: PathRecord, tried: Tried) -> list[PeerId]:
        """Who should get it from an upstream, best first: ourselves, and a few others."""
        me = self._swarm.me
        turns = self._swarm.office.rank(record)
        if record.nar_size < SHARED_BYTES_MIN:
            turns.sort(key=lambda owner: owner != me)
        others = [owner for owner in turns if owner != me and owner not in tried.owners]
        asked = {*others[:OWNERS_ASKED_MAX], *(() if tried.upstream else (me,))}
        return [owner for owner in turns if owner in asked]

    async def fetch_for(self, record: PathRecord) -> PathRecord | None:
        """For the office (`Office.fetch_for`): the whole, or a growing manifest to follow."""
        held, _ = await self._held(record)
        if held is not None:
            return held
        if trio.current_time() < self._full_until or len(self._fillings) >= FILLINGS_MAX:
            return None
        filling = self.fill(record)
        if filling is None:
            return None
        started = False
        with trio.move_on_after(FIRST_BYTE_SECONDS_MAX):
            started = await filling.has_started()
        return filling.growing.record if started else None

    async def _here(self, record: PathRecord, tried: Tried) -> Source | None:
        """Behind the download that runs for whoever asked, or from what is whole by now."""
        source = await self._behind(self._fillings.get(growing_id(record, self._swarm.me)), tried)
        if source is not None or tried.held:
            return source
        held, whole = await self._held(record)
        if held is None or whole is None:
            return None
        tried.held = True
        return HeldSource(self._store, held, whole)

    async def _behind(self, filling: Filling | None, tried: Tried) -> Source | None:
        """Behind our own download, once bytes come: before that, nobody may have the path."""
        if filling is None or tried.upstream:
            return None
        tried.upstream = True
        return FilledSource(filling) if await filling.has_started() else None

    async def _behind_peers(self, opening: Awaitable[Fetch | None]) -> Source | None:
        try:
            fetch = await opening
        except (PeerError, StoreError) as error:
            log.warning("peers cannot deliver it: %s", error)
            return None
        return None if fetch is None else FetchedSource(fetch, self.patience_seconds)

    async def whole(self, record: PathRecord) -> tuple[PathRecord, Manifest] | None:
        """Our record of it and its manifest, if the NAR was verified and every block is here."""
        held, manifest = await self._held(record)
        return (held, manifest) if held is not None and manifest is not None else None

    async def _held(self, record: PathRecord) -> tuple[PathRecord | None, Manifest | None]:
        """Our record of it and its manifest, if every block is here."""
        held = self._store.record(record.store_hash)
        if held is None or held.nar_hash != record.nar_hash:
            return None, None
        manifest = await trio.to_thread.run_sync(self._complete, held)
        return (held, manifest) if manifest is not None else (None, None)

    def _complete(self, record: PathRecord) -> Manifest | None:
        if not self._store.is_verified(record.manifest):
            return None
        manifest = self._swarm.load_manifest(record.manifest)
        if not isinstance(manifest, Manifest) or not all(self._store.has(manifest.blocks)):
            return None
        return manifest

    def _is_right(self, record: PathRecord, manifest: Manifest) -> bool:
        """What is held has the hash that was said; who said so may have to be checked as well."""
        try:
            self._prove(record, manifest)
        except (ChunkerError, Unproven) as error:
            log.warning("%s is not served: %s", record.store_path, error)
            return False
        return True

    async def _from_peers(self, record: PathRecord, tried: Tried, public: bool) -> Fetch | None:
        """A fetch that peers cover, of the whole or behind the one who gets it now."""
        office, questions = self._swarm.office, self._swarm.questions
        offers = await questions.find(record.store_hash, SOURCES_SECONDS_MAX, public=public)
        offers += await questions.please(
            record.store_hash, SOURCES_SECONDS_MAX, [peer for peer, _ in offers]
        )
        offers = [
            (peer, offer)
            for peer, offer in offers
            if offer.nar_hash == record.nar_hash
            and offer.manifest != NO_MANIFEST
            and (peer, offer.manifest) not in tried.offers
        ]
        lost = {manifest for _, manifest in tried.offers}
        offers = [
            (peer, offer)
            for peer, offer in offers
            if offer.manifest not in lost
            or not self._swarm.exchange.fills(peer, offer.manifest)  # it lacks what we lack
        ]
        tried.offers.update((peer, offer.manifest) for peer, offer in offers)
        for _, offer in offers:
            owner = office.owner_of(offer, public)
            if owner is not None and owner not in tried.owners:
                tried.owners.add(owner)
                fetch = await office.follow(record, owner, public)
                if fetch is not None:
                    return fetch
        offers = self._whole(record, offers, tried)
        return await Fetch.open(self._swarm, record, offers, public=public)

    def _whole(self, record: PathRecord, offers: list[Offer], tried: Tried) -> list[Offer]:
        """Without those of manifests that grow: nobody has these to send, and each who follows a
        lost owner would be asked in turn."""
        owners = {self._swarm.me, *self._swarm.sessions(), *tried.owners}
        growing = {growing_id(record, owner) for owner in owners}
        return [(peer, offer) for peer, offer in offers if offer.manifest not in growing]

    # -- what a body under way needs -----------------------------------------------------------

    def fill(self, record: PathRecord) -> Filling | None:
        """The running download of this NAR, or a new one; None without upstreams."""
        filling = self._fillings.get(growing_id(record, self._swarm.me))
        if filling is None and self._upstreams and self._nursery is not None:
            growing = Growing(record, self._swarm.me)
            office = self._swarm.office
            office.publish(growing)
            filling = Filling(
                self._store, record, self._order(record), growing, office.grew, self._prove
            )
            self._fillings[growing.id] = filling
            self._nursery.start_soon(self._run_filling, filling)
        return filling

    def _prove(self, record: PathRecord, manifest: Manifest) -> None:
        self.proofs.prove(record, rebuild(manifest, record.needles, self._store))

    async def _run_filling(self, filling: Filling) -> None:
        try:
            await filling.run(self._filled)
        finally:
            self.upstream_bytes += filling.bytes_received
            if filling.seconds and filling.bytes_received >= RATE_BYTES_MIN:
                self._offer_to_fetch(filling.bytes_received / filling.seconds)
            if filling.store_failed:
                self._full_until = trio.current_time() + FULL_SECONDS
            del self._fillings[filling.growing.id]

    def _offer_to_fetch(self, bytes_per_second: float) -> None:
        """In powers of two, so that members whose links are alike rank alike for long."""
        rate = 1 << max(0, round(math.log2(max(bytes_per_second / 1024, 1))))
        if self._rate and 1 / RATE_CHANGE_MIN < rate / self._rate < RATE_CHANGE_MIN:
            return
        self._rate = rate
        share = SHARE_OF_A_PEER if self._swarm.hello.role == "peer" else 1
        self._swarm.office.offers_to_fetch(rate * share)

    def _filled(self, filling: Filling) -> None:
        assert filling.manifest is not None
        record, manifest = filling.record, filling.manifest
        vouched = record.manifest_signatures if record.manifest == manifest else ()
        record = replace(record, manifest=manifest, manifest_signatures=vouched)
        self._store.put_record(record)
        self._swarm.catalogue.add(record)
        self._swarm.inbound.restate(manifest)
        if filling.attempts == 1:
            self.found_right(record, filling.growing.id, manifest)

    def found_right(self, record: PathRecord, began: ManifestId, final: ManifestId) -> None:
        """What began under the one manifest goes on under the other: they were seen to agree."""
        if self._begun.get(record.nar_hash) == began:
            self._begun[record.nar_hash] = final

    def found_wrong(self, record: PathRecord) -> None:
        if len(self._wrong) >= WRONGS_MAX:
            self._wrong.clear()
        self._wrong[record.nar_hash] = trio.current_time() + WRONG_SECONDS
        self.proofs.disproved(trio.current_time(), record)
