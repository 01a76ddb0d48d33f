"""One served peer: what it asked for, in order, within limits. Pure.

The shell takes `next_block()` whenever the stream can carry more, so unsent answers never exceed
one block per peer; what is over a limit is refused at once instead of being left in silence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from chunker.digest import ManifestId

from .messages import Cancel, Refuse, Want

QUEUED_WANTS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Due:
    request: int
    manifest: ManifestId
    index: int


class Serving:
    def __init__(self) -> None:
        self._queue: deque[Due] = deque()

    def want(self, message: Want, visible: bool, blocks: int) -> list[Refuse]:
        """`visible`: the asker may read that manifest; `blocks`: how many it has."""
        if not visible or any(index >= blocks for index in message.indexes):
            return [Refuse(message.request, "not-here", ())]
        if len(self._queue) + len(message.indexes) > QUEUED_WANTS_MAX:
            return [Refuse(message.request, "over-limit", ())]
        self._queue.extend(Due(message.request, message.manifest, i) for i in message.indexes)
        return []

    def cancel(self, message: Cancel) -> None:
        self._queue = deque(due for due in self._queue if due.request != message.request)

    def next_block(self) -> Due | None:
        return self._queue.popleft() if self._queue else None

    def __len__(self) -> int:
        return len(self._queue)
