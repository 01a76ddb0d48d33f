"""One NAR behind a peer that gets it from an upstream for all: a Fetch whose manifest grows.

    the owner's Grown --> more blocks to fetch, from the owner and from all who follow it too
    no sign of the owner for OWNER_SECONDS_MAX, or it failed, or it left --> NotHere: the reader
        goes on behind another source, at the same block, for the same NAR gives the same blocks
    no word of the owner in FIRST_WORD_SECONDS_MAX --> nothing to follow
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
from chunker.errors import BlockCorrupt, BlockMissing, NarError, NarMismatch
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

FIRST_WORD_SECONDS_MAX = 3.0
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
        self._is_alive = False

    @classmethod
    async def follow(
        cls, swarm: Swarm, record: PathRecord, owner: PeerId, public: bool
    ) -> Fetch | None:
        """Joins the one that is under way, if there is one behind this owner. None where the owner
        does not say that bytes come."""
        growing = Growing(record, owner)
        following = swarm.fetches.get(growing.id)
        if following is not None and following.failed:
            await swarm.end(following)  # a reader that has not left it yet will
            following = swarm.fetches.get(growing.id)
        if following is None:
            following = cls(swarm, growing, public)
            swarm.fetches[growing.id] = following
            swarm.office.keep(growing)
            try:
                await swarm.begin(following, ())
            except BaseException:
                with trio.CancelScope(shield=True):
                    await following.close()
                raise
        assert isinstance(following, Following)
        return await following._is_promised()

    async def _is_promised(self) -> Following | None:
        try:
            with trio.move_on_after(FIRST_WORD_SECONDS_MAX):
                while not self._is_alive and not self.failed:
                    await self._change.park()
            if self._is_alive and not self.failed:
                return self
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._close_unread()
            raise
        await self._close_unread()
        return None

    async def _close_unread(self) -> None:
        if self.readers == 0:
            await self.close()

    @property
    def ends(self) -> bool:
        return self.growing.state is Growth.WHOLE and super().ends

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

    def withdraw(self) -> None:
        """If the whole is here, fellows may go on having blocks of it."""
        if self.record.manifest == self.id:
            self._swarm.office.drop(self.growing)

    def lost(self) -> None:
        """A reader gave it up."""
        if self.growing.state is Growth.GROWING:
            self._swarm.office.lost(self.owner)

    async def grown(self, message: Grown) -> tuple[range, list[int]]:
        """(the indexes that are new, those of them that are not here). Raises RemoteError."""
        held = await trio.to_thread.run_sync(self._swarm.store.has, message.blocks)
        new = self.growing.apply(message)
        if message.first <= new.start <= message.first + len(message.blocks):
            self._heard, self._is_alive = trio.current_time(), True
        missing = [index for index in new if not held[index - message.first]]
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
        found = await self._from_owner()
        if found is None:
            await self.check()
        else:
            await self._keep(*found)

    async def check(self) -> None:
        """SHA-256 over the NAR, which gives the manifest too. Raises NotHere, and blames."""
        try:
            found = await trio.to_thread.run_sync(self._derive)
        except (NarMismatch, NarError) as error:
            self.blame()
            raise NotHere(f"{self.owner} tells lies of {self.record.store_path}") from error
        await self._keep(*found)

    def blame(self) -> None:
        """Only the owner, who is asked last for a while also for other NARs; the others told of
        what they have."""
        self.fail("it is not what was signed")
        self._swarm.questions.blame(self.owner, self.id)
        self._swarm.office.lost(self.owner)

    async def _keep(self, final: ManifestId, encoded: bytes) -> None:
        self.record = replace(self.record, manifest=final)
        await trio.to_thread.run_sync(self._mark, final, encoded)
        self._swarm.catalogue.add(self.record)
        self._swarm.inbound.restate(final)  # others look for it under that name

    async def _from_owner(self) -> tuple[ManifestId, bytes] | None:
        final = self.growing.final
        if final is None:
            return None
        record = replace(self.record, manifest=final)
        got = await self._swarm.questions.get_manifest(record, [self.owner])
        if got is None:
            return None
        manifest, growing = got[0], self.growing
        # The bytes that were seen to be right came from what the owner told as it grew.
        if list(manifest.blocks) != growing.blocks or manifest.rewrites != growing.rewrites:
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
