"""From verified to stored: blocks that arrived are written in batches, off the loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from chunker.errors import StoreError
from chunker.store import BlockStore

from .effects import Keep

log = logging.getLogger(__name__)

UNSTORED_BLOCKS_MAX = 64
"""Then whoever brings more waits, and so do the sockets."""
GATHER_SECONDS = 0.005
"""For more blocks to come before they are stored, once they come in numbers: each trip to a thread
costs as much as storing several."""


class Keeping:
    """`stored` is told of each batch that can be read; `failed` why one could not be kept."""

    def __init__(
        self,
        store: BlockStore,
        stored: Callable[[Sequence[Keep]], None],
        failed: Callable[[str], None],
    ) -> None:
        self._store = store
        self._stored = stored
        self._failed = failed
        self._kept, self._kept_end = trio.open_memory_channel[Keep](UNSTORED_BLOCKS_MAX)

    async def keep(self, block: Keep) -> None:
        try:
            self._kept.send_nowait(block)  # without a turn of the loop for each block
        except trio.WouldBlock:
            await self._kept.send(block)

    async def run(self) -> None:
        batch: list[Keep] = []
        while True:
            gathers = len(batch) > 1
            batch = [await self._kept_end.receive()]
            if gathers:
                await trio.sleep(GATHER_SECONDS)
            while len(batch) < UNSTORED_BLOCKS_MAX:
                try:
                    batch.append(self._kept_end.receive_nowait())
                except trio.WouldBlock:
                    break
            try:
                await trio.to_thread.run_sync(self._store.put, [keep.block for keep in batch])
            except StoreError as error:
                log.error("cannot store blocks: %s", error)
                self._failed(str(error))
                continue
            self._stored(batch)
