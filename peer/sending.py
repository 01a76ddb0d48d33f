"""Blocks on their way out: the shell of `serving.Uplink`, one for all sessions of the process.

    Uplink says whose turn it is -> read, decode and hash again in a thread -> the stream -> over

What came in just now (`recent`) is not read again. A rotten block is refused and forgotten here,
so nobody can blame us for it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from chunker.digest import Bytes, ManifestId
from chunker.errors import BlockCorrupt, BlockMissing
from chunker.manifest import Manifest
from chunker.store import BlockStore

from .errors import PeerError
from .growing import Growing
from .messages import Message, Refuse, Sent
from .recent import Recent
from .serving import Due, Serving, Uplink
from .wire import pieces

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.1
FLUSHED_BYTES_MAX = 1024 * 1024
"""A larger turn is one on a fast line (`Uplink`), where waiting for the socket costs more than the
order of what waits there is worth."""

Load = Callable[[ManifestId], Manifest | Growing | None]


class Receiver(Protocol):
    """A session that blocks are sent to."""

    serving: Serving

    async def send(self, messages: Sequence[Sequence[Bytes]]) -> None:
        """Each in its parts. Raises PeerError or trio.TooSlowError."""
        ...

    async def flush(self) -> None:
        """Until what was sent has left this process."""
        ...

    def sent(self, blocks: int, payload_bytes: int) -> None: ...

    def will_serve(self, manifest: ManifestId) -> None:
        """Tell it that its turn will come."""
        ...

    def stop(self) -> None:
        """It is broken or too slow."""
        ...


class Sending:
    def __init__(self, store: BlockStore, load: Load) -> None:
        self._store = store
        self._load = load
        self.recent = Recent()
        self._uplink = Uplink()
        self._receivers: dict[int, Receiver] = {}
        self._number = 0
        self._work = trio.Event()

    def join(self, receiver: Receiver) -> int:
        self._number += 1
        self._receivers[self._number] = receiver
        self._uplink.join(self._number, receiver.serving)
        return self._number

    def leave(self, session: int) -> None:
        self._receivers.pop(session, None)
        self._uplink.leave(session)
        self.wake()

    def wake(self) -> None:
        """Somebody wants something."""
        self._work.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                turn = self._uplink.next(trio.current_time())
                if turn is not None:
                    nursery.start_soon(self._turn, *turn)
                    continue
                for session, manifest in self._uplink.signs(trio.current_time()):
                    self._receivers[session].will_serve(manifest)
                self._work = trio.Event()
                # Also when a turn has lasted too long to be waited for, or there is room for more.
                with trio.move_on_after(PAUSE_SECONDS if self._uplink.is_wanted() else math.inf):
                    await self._work.wait()

    async def _turn(self, session: int, dues: Sequence[Due]) -> None:
        receiver = self._receivers.get(session)
        try:
            if receiver is not None:
                answers = self._at_hand(dues)
                if answers is None:
                    # One trip to a thread for several blocks: it costs as much as hashing one.
                    answers = await trio.to_thread.run_sync(self._read_all, dues)
                sizes = [len(sent.encoded.payload) for sent in answers if isinstance(sent, Sent)]
                size = sum(sizes)
                receiver.sent(len(sizes), size)
                await receiver.send([pieces(answer) for answer in answers])
                if size < FLUSHED_BYTES_MAX:
                    await receiver.flush()
        except (PeerError, trio.TooSlowError) as error:
            log.info("blocks do not leave: %s", error)
            if receiver is not None:
                receiver.stop()
        finally:
            self._uplink.over(trio.current_time(), session)
            self.wake()

    def _at_hand(self, dues: Sequence[Due]) -> list[Message] | None:
        """The answers, if all of them are in memory."""
        answers: list[Message] = []
        for due in dues:
            manifest = self._load(due.manifest)
            if manifest is None or due.index >= len(manifest.blocks):
                return None
            block = self.recent.get(manifest.blocks[due.index])
            if block is None or block.encoded is None:
                return None
            answers.append(Sent(due.request, due.index, block.encoded))
        return answers

    def _read_all(self, dues: Sequence[Due]) -> list[Message]:
        return [self._read(due) for due in dues]

    def _read(self, due: Due) -> Message:
        manifest = self._load(due.manifest)
        try:
            # One that grows anew may know less than the one that was asked for.
            if manifest is None or due.index >= len(manifest.blocks):
                return Refuse(due.request, "not-here", (due.index,))
            block = self._store.get(manifest.blocks[due.index])
        except (BlockMissing, BlockCorrupt):
            return Refuse(due.request, "not-here", (due.index,))
        assert block.encoded is not None
        return Sent(due.request, due.index, block.encoded)
