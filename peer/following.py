"""One NAR behind a peer that gets it from an upstream for all: a Fetch whose manifest grows.

    the owner's Grown --> more blocks to fetch, from the owner and from all who follow it too
    no sign of the owner for OWNER_SECONDS_MAX, or it failed, or it left --> NotHere: the reader
        goes on behind another source, at the same block, for the same NAR gives the same blocks
    the reader waits for one block for STARVED_SECONDS_MAX --> NotHere: nobody starves behind others

When the NAR is whole here, its manifest comes from the owner; if that is gone, or sends another
one, it is made from the NAR itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from chunker.digest import Bytes, ManifestId
from chunker.errors import BlockCorrupt, BlockMissing, ChunkerError
from chunker.ingest import Ingest
from chunker.record import PathRecord

from .errors import NotHere
from .fetch import STUCK_SECONDS_MAX, Fetch
from .growing import Growing
from .identity import PeerId
from .messages import Grown, Growth

if TYPE_CHECKING:
    from .swarm import Swarm

log = logging.getLogger(__name__)

OWNER_SECONDS_MAX = 5.0
STARVED_SECONDS_MAX = 20.0
FINAL_SECONDS_MAX = 2.0
"""How long a whole NAR waits for its owner to say that it is right."""


class Following(Fetch):
    """Open one with `Following.open`; otherwise as a Fetch."""

    def __init__(self, swarm: Swarm, growing: Growing, public: bool) -> None:
        super().__init__(swarm, growing.record, growing, [growing.owner], public)
        self.growing = growing
        self._heard = trio.current_time()

    @classmethod
    async def follow(cls, swarm: Swarm, record: PathRecord, owner: PeerId, public: bool) -> Fetch:
        """Joins the one that is under way, if there is one behind this owner."""
        growing = Growing(record, owner)
        running = swarm.fetches.get(growing.id)
        if running is not None and running.failed:
            await running.close()  # its readers go elsewhere; it must not be in the way
            running = swarm.fetches.get(growing.id)
        if running is not None and not running.failed:
            return running
        following = cls(swarm, growing, public)
        swarm.fetches[growing.id] = following
        swarm.office.keep(growing)
        try:
            await swarm.begin(following, ())
        except BaseException:
            with trio.CancelScope(shield=True):
                await following.close()
            raise
        return following

    @property
    def owner(self) -> PeerId:
        return self.growing.owner

    async def arrived(self, index: int, patience_seconds: float = STUCK_SECONDS_MAX) -> None:
        """Wait until block `index` is known and stored here. Raises NotHere."""
        starved = trio.current_time() + STARVED_SECONDS_MAX
        while index >= len(self.growing.blocks):
            if self.failed:
                raise NotHere(self.failed)
            if self.growing.state is not Growth.GROWING:
                raise NotHere(f"{self.owner} has no more blocks of {self.record.store_path}")
            with trio.CancelScope(deadline=min(self._heard + OWNER_SECONDS_MAX, starved)):
                await self._change.park()
            now = trio.current_time()
            if now >= min(self._heard + OWNER_SECONDS_MAX, starved):
                raise NotHere(f"{self.owner} brings nothing of {self.record.store_path}")
        with trio.CancelScope(deadline=starved) as scope:
            await super().arrived(index, patience_seconds)
        if scope.cancelled_caught:
            raise NotHere(f"block {index} of {self.record.store_path} does not come")

    def lost(self) -> None:
        """A reader gave it up."""
        if self.growing.state is Growth.GROWING:
            self._swarm.office.lost(self.owner)

    def blame(self) -> None:
        """Its owner made it up, and is asked last for a while also for other NARs."""
        super().blame()
        self._swarm.office.lost(self.owner)

    async def grown(self, message: Grown) -> tuple[range, list[int]]:
        """(the indexes that are new, those of them that are not here). Raises RemoteError."""
        self._heard = trio.current_time()
        held = await trio.to_thread.run_sync(self._swarm.store.has, message.blocks)
        new = self.growing.apply(message)
        held = held[len(held) - len(new) :]  # the first ones may have been said before
        missing = [index for index, here in zip(new, held, strict=True) if not here]
        self._missing.update(missing)
        if self.growing.state is Growth.FAILED:
            self.fail(f"{self.owner} could not get {self.record.store_path}")
        self._changed()
        return new, missing

    async def mark_verified(self) -> None:
        """The caller saw the SHA-256 match: find the manifest and store it with the record."""
        with trio.move_on_after(FINAL_SECONDS_MAX):
            while self.growing.state is Growth.GROWING and not self.failed:
                await self._change.park()
        try:
            found = await self._from_owner()
            if found is None:
                found = await trio.to_thread.run_sync(self._derive)
        except (ChunkerError, NotHere) as error:
            log.warning("%s is not kept: %s", self.record.store_path, error)
            return
        final, encoded = found
        self.record = replace(self.record, manifest=final)
        await trio.to_thread.run_sync(self._mark, final, encoded)
        self._swarm.catalogue.add(self.record)

    async def _from_owner(self) -> tuple[ManifestId, bytes] | None:
        final = self.growing.final
        if final is None:
            return None
        record = replace(self.record, manifest=final)
        got = await self._swarm.questions.get_manifest(record, [self.owner])
        if got is None or list(got[0].blocks) != self.growing.blocks:
            return None
        return final, got[1]

    def _derive(self) -> tuple[ManifestId, bytes]:
        """In a worker thread: from the NAR, as whoever downloads it does."""
        record, store = self.record, self._swarm.store
        ingest = Ingest(store, record.needles, nar_size_max=record.nar_size)
        for data in self._plain_pieces():
            ingest.feed(bytes(data))
        final, _ = ingest.finish(record.nar_hash, record.nar_size)
        encoded = store.manifest(final)
        assert encoded is not None
        return final, encoded

    def _plain_pieces(self) -> Iterator[Bytes]:
        for index, wanted in enumerate(self.growing.blocks):
            try:
                yield self.plain(index, self._swarm.store.get(wanted))
            except (BlockMissing, BlockCorrupt) as error:
                raise NotHere(str(error)) from error
