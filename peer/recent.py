"""The blocks that came in last, as they came: verified, and still in memory. Pure.

In a crowd each is passed on to all others within a second or two and read by our own client, and
every time it was read from the store and hashed again, in a thread: a trip there and back costs
more processor time than both, and where processors are busy, 10 ms.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from chunker.block import Block
from chunker.digest import BlockId

RECENT_BYTES_MAX = 8 * 1024 * 1024
"""Of plain blocks; with the form in which they came, at most twice that."""


class Recent:
    def __init__(self) -> None:
        self._blocks: OrderedDict[BlockId, Block] = OrderedDict()
        self._bytes = 0

    def put(self, blocks: Iterable[Block]) -> None:
        """Verified and stored ones. The oldest give way."""
        for block in blocks:
            if block.id not in self._blocks:
                self._blocks[block.id] = block
                self._bytes += len(block.data)
        while self._bytes > RECENT_BYTES_MAX:
            self._bytes -= len(self._blocks.popitem(last=False)[1].data)

    def get(self, wanted: BlockId) -> Block | None:
        return self._blocks.get(wanted)
