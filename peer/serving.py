"""One served peer: what it asked for, in order, within limits. Pure.

The shell takes the `next_blocks()` whenever the stream can carry more, so unsent answers never
exceed that many bytes per peer; what is over a limit is refused at once instead of being left in
silence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from chunker.digest import ManifestId

from .messages import Cancel, Refuse, Want

QUEUED_WANTS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Due:
    request: int
    manifest: ManifestId
    index: int
    length: int
    """Of the plain block, bytes."""


class Serving:
    def __init__(self) -> None:
        self._queue: deque[Due] = deque()

    def want(self, message: Want, visible: bool, lengths: Sequence[int]) -> list[Refuse]:
        """`visible`: the asker may read that manifest; `lengths`: of its blocks, bytes."""
        if not visible or any(index >= len(lengths) for index in message.indexes):
            return [Refuse(message.request, "not-here", ())]
        if len(self._queue) + len(message.indexes) > QUEUED_WANTS_MAX:
            return [Refuse(message.request, "over-limit", ())]
        self._queue.extend(
            Due(message.request, message.manifest, index, lengths[index])
            for index in message.indexes
        )
        return []

    def cancel(self, message: Cancel) -> None:
        self._queue = deque(
            due
            for due in self._queue
            if due.request != message.request
            or (message.indexes and due.index not in message.indexes)
        )

    def next_blocks(self, bytes_max: int) -> list[Due]:
        """Those due next: at least one where there is one, and no more than `bytes_max` beyond."""
        blocks: list[Due] = []
        while self._queue and (not blocks or self._queue[0].length <= bytes_max):
            bytes_max -= self._queue[0].length
            blocks.append(self._queue.popleft())
        return blocks

    def __len__(self) -> int:
        return len(self._queue)
