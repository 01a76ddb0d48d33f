"""One NAR on its way from an upstream into the store, with readers that follow behind it.

    upstream --plain pieces--> Ingest --blocks--> store --block(index)--> readers

However many ask, it is downloaded once. Readers see blocks as soon as they are cut, which is before
the NAR is known to be right: each reader runs its own SHA-256 and keeps its last block back. When
an upstream fails, the next one starts from the beginning; a reader goes on at its index, because
the same NAR gives the same blocks. Other members of the office follow its growing manifest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from chunker.digest import BlockId, Bytes, ManifestId
from chunker.errors import ChunkerError, StoreError
from chunker.ingest import Ingest
from chunker.manifest import Manifest
from chunker.record import PathRecord
from chunker.references import restore
from chunker.store import BlockStore
from peer.growing import Growing
from peer.messages import Growth

from .errors import UpstreamError, UpstreamResting
from .narinfo import SIGNATURES_ONLY_URL
from .upstream import Upstream

log = logging.getLogger(__name__)

AHEAD_BYTES, AHEAD_BLOCKS_MAX = 1024 * 1024, 32
"""Read from the store at once for one reader."""


class Filling:
    """`run` once, in a task of its own; `block` from any number of readers."""

    def __init__(
        self,
        store: BlockStore,
        record: PathRecord,
        upstreams: Sequence[Upstream],
        growing: Growing,
        grew: Callable[[Growing], None],
        prove: Callable[[PathRecord, Manifest], None] = lambda record, manifest: None,
    ) -> None:
        """`grew` is called whenever bytes came, and when it is over; `prove`, in a thread, with
        the NAR that matched NarHash. It raises a ChunkerError where that is not enough."""
        self.record = record
        self.growing = growing
        self.seconds = 0.0
        """From the first byte to the last."""
        self.manifest: ManifestId | None = None
        self.bytes_received = 0
        self.attempts = 0
        """How many upstreams gave bytes."""
        self.store_failed = False
        """It was not for want of an upstream."""
        self._store = store
        self._upstreams = upstreams
        self._wanted = (record.nar_hash, record.nar_size)
        self._grew = grew
        self._prove = prove
        self._ingest = self._fresh()
        self._over = False
        self._started = False
        self._change = trio.Event()

    async def run(self, completed: Callable[[Filling], None]) -> None:
        """Ask one upstream after the other; `completed` is called if the NAR came in whole."""
        try:
            for upstream in self._upstreams:
                try:
                    if await self._fill_from(upstream):
                        completed(self)
                        return
                except UpstreamResting as error:
                    log.debug("%s", error)
                except StoreError as error:
                    log.error("%s is not stored: %s", self.record.store_path, error)
                    self.store_failed = True
                    return
                except (UpstreamError, ChunkerError) as error:
                    log.warning("%s failed on %s: %s", upstream.url, self.record.store_path, error)
        finally:
            self._over = True
            if self.growing.state is Growth.GROWING or self.store_failed:
                self.growing.state = Growth.FAILED
            self._grew(self.growing)
            self._changed()

    async def has_started(self) -> bool:
        """True once bytes come; False when no upstream gives any."""
        while not self._started and not self._over:
            await self._change.wait()
        return self._started

    async def block(self, index: int) -> BlockId:
        """The block at `index` of the growing manifest. Raises UpstreamError when it will not
        come."""
        while index >= len(self._ingest.blocks):
            if self._over:
                raise UpstreamError(f"no upstream could finish {self.record.store_path}")
            await self._change.wait()
        return self._ingest.blocks[index]

    async def pieces(self, index: int, offset: int) -> list[Bytes]:
        """The bytes of the NAR that block `index`, which begins at `offset`, and those after it
        that are here stand for: in one go, since a hop to a thread costs as much as a block."""
        await self.block(index)
        ingest = self._ingest
        wanted = ingest.blocks[index : index + AHEAD_BLOCKS_MAX]
        lengths = ingest.lengths[index : index + len(wanted)]

        def read() -> list[Bytes]:
            found: list[Bytes] = []
            size = 0
            for block, length in zip(wanted, lengths, strict=True):
                data = self._store.get(block).data
                found.append(restore(data, offset + size, ingest.rewrites, self.record.needles))
                size += length
                if size >= AHEAD_BYTES:
                    break
            return found

        return await trio.to_thread.run_sync(read)

    async def _fill_from(self, upstream: Upstream) -> bool:
        info = await upstream.narinfo(self.record.store_hash)
        if info is None or (info.nar_hash, info.nar_size) != self._wanted:
            return False
        if info.url == SIGNATURES_ONLY_URL:
            return False
        ingest = self._fresh()
        self.attempts += 1
        began = trio.current_time()
        async with upstream.nar(info) as pieces:
            async for data in pieces:
                self.bytes_received += len(data)
                await trio.to_thread.run_sync(ingest.feed, data)
                self._ingest, self._started = ingest, True
                self._show(ingest)
            self.manifest = await trio.to_thread.run_sync(self._finish, ingest)
        self._ingest, self._started = ingest, True
        self.seconds = trio.current_time() - began
        self._show(ingest)  # whoever waits for the last block need not wait for the disk
        await trio.to_thread.run_sync(self._store.flush)
        return True

    def _finish(self, ingest: Ingest) -> ManifestId:
        name, manifest = ingest.finish(self.record.nar_hash, self.record.nar_size)
        self._prove(self.record, manifest)
        return name

    def _show(self, ingest: Ingest) -> None:
        """To those who read here and those who follow. A second upstream's blocks count from where
        the first one's end; were they others, everybody's SHA-256 would tell."""
        growing = self.growing
        growing.started = True
        known = len(growing.blocks)
        if len(ingest.blocks) >= known:
            growing.rewrites = ingest.rewrites
        growing.extend(ingest.blocks[known:], ingest.lengths[known : len(ingest.blocks)])
        if self.manifest is not None:
            growing.state, growing.final = Growth.WHOLE, self.manifest
        self._grew(growing)
        self._changed()

    def _fresh(self) -> Ingest:
        record = self.record
        return Ingest(self._store, record.needles, nar_size_max=record.nar_size)

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()
