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
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import trio

from chunker.digest import Bytes, ManifestId, NarHash
from chunker.errors import BlockCorrupt, BlockMissing
from chunker.manifest import Manifest
from chunker.rebuild import piece
from chunker.record import PathRecord
from chunker.store import BlockStore
from peer.errors import PeerError
from peer.fetch import STUCK_SECONDS_MAX, Fetch
from peer.growing import Growing
from peer.office import FIRST_BYTE_SECONDS_MAX
from peer.swarm import Swarm

from .filling import Filling
from .offer import is_signed
from .pump import BodyBroken, Readable
from .signing import KeyRing
from .sources import UPSTREAM, FetchedSource, FilledSource, Source, SourcedBody
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
"""Smaller NARs are had from an upstream sooner than it is settled who asks it."""
RATE_BYTES_MIN = 4 * 1024 * 1024
"""Shorter downloads say little about an upstream's rate."""
SHARE_START = 1024
SHARE_OF_A_PEER = 4
"""An office cache takes so many times the share of a workstation."""
BATCH_BYTES = 1536 * 1024
"""Read at once: with what lies between the blocks it fits into a pump's buffer."""
BEGUN_MAX = 100_000
ASKED = "asked to fetch: "
"""Before a PeerId among what was tried: who only held blocks in vain may still fetch for all."""
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
    ) -> None:
        self.upstream_bytes = 0
        self.patience_seconds = RESCUE_SECONDS if upstreams else STUCK_SECONDS_MAX
        self._store = store
        self._swarm = swarm
        self._upstreams = upstreams
        self._publish_keys = publish_keys
        self._full_until = float("-inf")
        self._wrong: dict[NarHash, float] = {}
        self._begun: dict[NarHash, ManifestId | None] = {}
        self._fillings: dict[NarHash, Filling] = {}
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

    async def open(self, admitted: Admitted, *, ranged: bool = False) -> Body | None:
        """None: this NAR cannot be finished here. A range (`ranged`) goes on with what Nix has
        from before, so only from the manifest that the last delivery of the whole began with."""
        record = admitted.record
        found = await self._choose(record)
        if found is None:
            return None
        manifest, body = found
        if ranged and self._begun.get(record.nar_hash, manifest) != manifest:
            log.warning("%s: no range from another manifest", record.store_path)
            return None
        if len(self._begun) >= BEGUN_MAX:
            self._begun.clear()
        if not ranged:
            self._begun[record.nar_hash] = manifest
        return body

    async def _choose(self, record: PathRecord) -> tuple[ManifestId | None, Body] | None:
        """The manifest (None: it grows while it is read) and the body of a delivery."""
        held, manifest = await self._held(record)
        if held is not None and manifest is not None:
            return held.manifest, _StoredBody(self._store, held, manifest)
        source = await self.source(record, set())
        if source is None:
            return None
        return source.manifest, SourcedBody(self, record, source)

    async def source(self, record: PathRecord, tried: set[str]) -> Source | None:
        """Where the blocks come from now, without those `tried` in vain, which this adds to."""
        filling = self._fillings.get(record.nar_hash)
        if filling is not None and UPSTREAM not in tried:
            return FilledSource(filling)
        public = is_signed(record, self._publish_keys)
        fetch = await self._from_peers(record, tried, public)
        if fetch is not None:
            return FetchedSource(fetch, self.patience_seconds)
        if trio.current_time() < self._full_until:
            return None  # 404 at once: Nix goes to its next substituter, and costs no upstream
        office = self._swarm.office
        turns = office.rank(record) if record.nar_size >= SHARED_BYTES_MIN else [self._swarm.me]
        for owner in turns or [self._swarm.me]:
            if owner == self._swarm.me:
                source = await self._from_upstream(record, tried)
                if source is not None:
                    return source
            elif ASKED + owner not in tried:
                tried.add(ASKED + owner)
                fetch = await office.ask(owner, record, public)
                if fetch is not None:
                    return FetchedSource(fetch, self.patience_seconds)
        return None

    async def fetch_for(self, record: PathRecord) -> PathRecord | None:
        """For the office (`Office.fetch_for`): the whole, or a growing manifest to follow."""
        held, _ = await self._held(record)
        if held is not None:
            return held
        if trio.current_time() < self._full_until:
            return None
        filling = self.fill(record)
        if filling is None:
            return None
        started = False
        with trio.move_on_after(FIRST_BYTE_SECONDS_MAX):
            started = await filling.has_started()
        return filling.growing.record if started else None

    async def _from_upstream(self, record: PathRecord, tried: set[str]) -> Source | None:
        if UPSTREAM in tried:
            return None
        tried.add(UPSTREAM)
        filling = self.fill(record)
        if filling is not None and await filling.has_started():
            return FilledSource(filling)
        return None

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

    async def _from_peers(self, record: PathRecord, tried: set[str], public: bool) -> Fetch | None:
        """A fetch that peers cover, of the whole or behind the one who gets it now."""
        questions = self._swarm.questions
        try:
            offers = await questions.find(record.store_hash, SOURCES_SECONDS_MAX, public=public)
            offers += await questions.please(
                record.store_hash, SOURCES_SECONDS_MAX, [peer for peer, _ in offers]
            )
            offers = [
                (peer, offer)
                for peer, offer in offers
                if offer.nar_hash == record.nar_hash and peer not in tried
            ]
            for peer, offer in offers:
                owner = self._swarm.office.owner_of(offer)
                if owner is not None and ASKED + owner not in tried:
                    tried.update((peer, ASKED + owner))
                    return await self._swarm.office.follow(record, owner, public)
            tried.update(peer for peer, _ in offers)
            return await Fetch.open(self._swarm, record, offers, public=public)
        except PeerError as error:
            log.warning("peers cannot deliver %s: %s", record.store_path, error)
            return None

    # -- what a body under way needs -----------------------------------------------------------

    def fill(self, record: PathRecord) -> Filling | None:
        """The running download of this NAR, or a new one; None without upstreams."""
        filling = self._fillings.get(record.nar_hash)
        if filling is None and self._upstreams and self._nursery is not None:
            growing = Growing(record, self._swarm.me)
            office = self._swarm.office
            office.publish(growing)
            filling = Filling(self._store, record, self._upstreams, growing, office.grew)
            self._fillings[record.nar_hash] = filling
            self._nursery.start_soon(self._run_filling, filling)
        return filling

    async def _run_filling(self, filling: Filling) -> None:
        try:
            await filling.run(self._filled)
        finally:
            self.upstream_bytes += filling.bytes_received
            if filling.seconds and filling.bytes_received >= RATE_BYTES_MIN:
                self._offer_to_fetch(filling.bytes_received / filling.seconds)
            if filling.store_failed:
                self._full_until = trio.current_time() + FULL_SECONDS
            del self._fillings[filling.record.nar_hash]

    def _offer_to_fetch(self, bytes_per_second: float) -> None:
        """In powers of two, so that members whose links are alike rank alike for long."""
        rate = 1 << max(0, round(math.log2(max(bytes_per_second / 1024, 1))))
        share = SHARE_OF_A_PEER if self._swarm.hello.role == "peer" else 1
        self._swarm.office.offers_to_fetch(rate * share)

    def _filled(self, filling: Filling) -> None:
        assert filling.manifest is not None
        record, manifest = filling.record, filling.manifest
        vouched = record.manifest_signatures if record.manifest == manifest else ()
        record = replace(record, manifest=manifest, manifest_signatures=vouched)
        self._store.put_record(record)
        self._swarm.catalogue.add(record)
        if self._begun.get(record.nar_hash, manifest) is None and filling.attempts == 1:
            self._begun[record.nar_hash] = manifest

    def found_wrong(self, record: PathRecord) -> None:
        if len(self._wrong) >= WRONGS_MAX:
            self._wrong.clear()
        self._wrong[record.nar_hash] = trio.current_time() + WRONG_SECONDS


class _StoredBody:
    def __init__(self, store: BlockStore, record: PathRecord, manifest: Manifest) -> None:
        self._store = store
        self._record = record
        self._manifest = manifest

    def __call__(self, start: int, end: int) -> _StoredReader:
        return _StoredReader(self._store, self._record, self._manifest, start, end)


class _StoredReader:
    """Bytes start..end of a NAR that is here in whole, each block verified as it is read."""

    def __init__(
        self, store: BlockStore, record: PathRecord, manifest: Manifest, start: int, end: int
    ) -> None:
        self._store = store
        self._record = record
        self._manifest = manifest
        self._at = start
        self._end = end
        self._next = bisect_right(manifest.offsets, start) - 1

    def read(self, buffer: bytearray) -> list[Bytes]:
        """The next blocks of about BATCH_BYTES. Raises BodyBroken."""
        manifest, needles = self._manifest, self._record.needles
        batch = self._batch()
        try:
            blocks = self._store.get_many(manifest.blocks[batch.start : batch.stop], buffer)
        except (BlockMissing, BlockCorrupt) as error:
            raise BodyBroken(str(error)) from error
        pieces: list[Bytes] = []
        for index, block in zip(batch, blocks, strict=True):
            data = piece(manifest, needles, index, block)
            offset = manifest.offsets[index]
            if offset < self._at or offset + len(data) > self._end:
                data = memoryview(data)[max(0, self._at - offset) : self._end - offset]
            pieces.append(data)
        return pieces

    def _batch(self) -> range:
        offsets, lengths = self._manifest.offsets, self._manifest.lengths
        first = last = self._next
        size = 0
        while last < len(offsets) and offsets[last] < self._end and size < BATCH_BYTES:
            size += lengths[last]
            last += 1
        self._next = last
        return range(first, last)
