"""One NAR on its way into the store: which manifest, which sources, and when it counts as whole.

Candidates are grouped by ManifestId; one that a trusted key signed goes first, then the one that
most peers name. A NAR is marked verified only after the SHA-256 of the rebuilt bytes matched; when
it does not, those who named the manifest are blamed, not those who sent blocks that fit it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from chunker.block import Block
from chunker.digest import Bytes, ManifestId
from chunker.errors import BlockCorrupt, BlockMissing, NarMismatch
from chunker.manifest import Manifest
from chunker.rebuild import check_nar, piece
from chunker.record import PathRecord

from .errors import NotHere
from .growing import Growing
from .identity import PeerId

if TYPE_CHECKING:
    from .swarm import Swarm

log = logging.getLogger(__name__)

FIND_SECONDS_MAX = 3.0
COVER_SECONDS_MAX = 3.0
STUCK_SECONDS_MAX = 8.0
ENDS_BLOCKS = 32

Offer = tuple[PeerId, PathRecord]


def candidates(
    record: PathRecord, offers: list[Offer], trusted: set[ManifestId]
) -> list[tuple[ManifestId, list[PeerId]]]:
    """Manifests offered for exactly this NAR, best first, with who offered each. Pure."""
    fitting = [
        (peer, offer)
        for peer, offer in offers
        if offer.nar_hash == record.nar_hash
        and offer.nar_size == record.nar_size
        and offer.references == record.references
    ]
    votes = Counter(offer.manifest for _, offer in fitting)
    order = sorted(votes, key=lambda item: (item not in trusted, -votes[item], item))
    return [(wanted, [p for p, offer in fitting if offer.manifest == wanted]) for wanted in order]


class Fetch:
    """Open one with `Fetch.open`; read blocks in any order; `complete` or `close` it."""

    def __init__(
        self,
        swarm: Swarm,
        record: PathRecord,
        manifest: Manifest | Growing,
        sources: list[PeerId],
        public: bool,
    ) -> None:
        self.id = record.manifest
        self.record = record
        self.manifest = manifest
        self.sources = sources
        self.public = public
        self.failed = ""
        self.readers = 0
        self._is_stuck = False
        self._swarm = swarm
        self._missing: set[int] = set()
        self._change = trio.lowlevel.ParkingLot()

    @classmethod
    async def open(
        cls,
        swarm: Swarm,
        record: PathRecord,
        offers: list[Offer] | None = None,
        *,
        public: bool = False,
    ) -> Fetch | None:
        """A running fetch whose every missing block has a source, or None. `public`: strangers
        may be asked for it.

        Joins the one that is under way, if there is one for this manifest.
        """
        if offers is None:
            offers = await swarm.questions.find(record.store_hash, FIND_SECONDS_MAX, public=public)
        offered = {offer.manifest: offer for _, offer in offers}
        for wanted, peers in swarm.questions.ranked(record, offers):
            # Of an offer only the manifest counts: the signatures that we know stay.
            signatures = offered[wanted].manifest_signatures
            ours = replace(record, manifest=wanted, manifest_signatures=signatures)
            got = await swarm.questions.get_manifest(ours, peers)
            if got is None:
                continue
            fetch = swarm.fetches.get(wanted)
            if fetch is None:
                fetch = cls(swarm, ours, got[0], peers, public)
                await fetch._begin(got[1])
            else:
                swarm.widen(fetch, peers)
            if await fetch._is_covered():
                return fetch
        return None

    async def _begin(self, encoded: bytes) -> None:
        store = self._swarm.store
        self._swarm.fetches[self.id] = self  # before anything waits: others join it
        self._swarm.catalogue.begin(self.record)
        try:
            store.put_manifest(self.id, encoded, verified=False)
            held = await trio.to_thread.run_sync(store.has, self.manifest.blocks)
            self._missing = {index for index, here in enumerate(held) if not here}
            await self._swarm.begin(self, self._missing)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.close()
            raise
        self._changed()

    async def _is_covered(self) -> bool:
        """Whether every missing block has a source; one that has none in time and nobody reads is
        closed."""
        with trio.move_on_after(COVER_SECONDS_MAX):
            while not self._swarm.exchange.covered(self.id) and not self.failed:
                await self._change.park()
        if self._swarm.exchange.covered(self.id) and not self.failed:
            return True
        if self.readers == 0:
            await self.close()
        return False

    async def block(self, index: int, patience_seconds: float = STUCK_SECONDS_MAX) -> Block:
        """Wait for block `index`, and read it verified. Raises NotHere when nobody has had it for
        `patience_seconds`."""
        await self._swarm.reading(self, index)
        store = self._swarm.store
        while True:
            await self.arrived(index, patience_seconds)
            wanted = self.manifest.blocks[index]
            if (block := self._swarm.sending.recent.get(wanted)) is not None:
                return block
            try:
                return await trio.to_thread.run_sync(store.get, wanted)
            except (BlockMissing, BlockCorrupt) as error:
                raise NotHere(f"block {index} was lost here: {error}") from error

    async def arrived(self, index: int, patience_seconds: float = STUCK_SECONDS_MAX) -> None:
        """Wait until block `index` is stored here. Raises NotHere."""
        if index >= len(self.manifest.blocks):  # a reader that began behind other blocks
            raise NotHere(f"{self.record.store_path} has no block {index} here")
        deadline = float("inf")
        while index in self._missing:
            if self.failed:
                raise NotHere(self.failed)
            if self._is_stuck:
                deadline = min(deadline, trio.current_time() + patience_seconds)
            else:
                deadline = float("inf")
            with trio.CancelScope(deadline=deadline) as scope:
                await self._change.park()
            if scope.cancelled_caught:
                raise NotHere(f"no source has block {index} of {self.record.store_path}")

    async def complete(self) -> None:
        """Fetch everything, check the NAR, mark it verified and close. Raises NotHere."""
        try:
            while self._missing:
                await self.arrived(min(self._missing))
            await self.check()
        finally:
            with trio.CancelScope(shield=True):
                await self.close()

    async def check(self) -> None:
        """SHA-256 over the rebuilt NAR. Marks it verified, or blames and raises NotHere."""
        store, manifest = self._swarm.store, self.manifest
        assert isinstance(manifest, Manifest)
        try:
            await trio.to_thread.run_sync(check_nar, manifest, self.record.needles, store)
        except NarMismatch as error:
            self.blame()
            raise NotHere(f"the manifest of {self.record.store_path} is a lie") from error
        except (BlockMissing, BlockCorrupt) as error:
            raise NotHere(str(error)) from error
        await self.mark_verified()

    async def mark_verified(self) -> None:
        """The caller saw the SHA-256 match."""
        encoded = self._swarm.store.manifest(self.id)
        assert encoded is not None
        await trio.to_thread.run_sync(self._mark, self.id, encoded)
        self._swarm.catalogue.add(self.record)

    def _mark(self, manifest: ManifestId, encoded: bytes) -> None:
        store = self._swarm.store
        store.flush()
        store.put_manifest(manifest, encoded, verified=True)
        store.put_record(self.record)
        store.flush()

    def blame(self) -> None:
        self.fail("its manifest is wrong")
        for peer in self.sources:
            self._swarm.questions.blame(peer, self.id)

    async def close(self) -> None:
        self.fail("its download was ended")
        await self._swarm.end(self)

    def plain(self, index: int, block: Block) -> Bytes:
        """The bytes of the NAR that block `index` stands for, store hashes restored."""
        return piece(self.manifest, self.record.needles, index, block)

    @property
    def ends(self) -> bool:
        """Little is missing, and more will not come."""
        return len(self._missing) <= ENDS_BLOCKS

    # -- called by the swarm -------------------------------------------------------------------

    def withdraw(self) -> None:
        """It is over: what is under way is offered no more."""
        self._swarm.catalogue.end(self.id)

    def present(self, indexes: Iterable[int]) -> None:
        self._missing.difference_update(indexes)
        self._changed()

    def heard_of_holder(self) -> None:
        self._is_stuck = False
        self._changed()

    def stuck(self) -> None:
        self._is_stuck = True
        self._changed()

    def fail(self, reason: str) -> None:
        self.failed = reason
        self._changed()

    def _changed(self) -> None:
        self._change.unpark_all()
