"""The answering half of a session: one stream that a peer opened to us.

Control answers and blocks leave through one writer. A block is read, decoded and hashed again just
before it is sent: a rotten one is refused and forgotten here, so nobody can blame us for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from chunker.digest import Bytes, ManifestId
from chunker.errors import BlockCorrupt, BlockMissing
from chunker.manifest import Manifest
from chunker.record import PathRecord, encode_record
from chunker.store import BlockStore

from .catalogue import Catalogue
from .errors import RemoteError
from .growing import Growing
from .identity import PeerId
from .messages import (
    PROTOCOL_VERSION,
    Cancel,
    Find,
    Found,
    GetManifest,
    Growth,
    Have,
    HaveMore,
    Hello,
    ManifestPart,
    Message,
    Please,
    Refuse,
    Sent,
    Want,
    Watch,
)
from .serving import Due, Serving
from .transport import Stream
from .wire import (
    FOUND_BYTES_MAX,
    HAVE_INDEXES_MAX,
    MANIFEST_PART_BYTES_MAX,
    Decoder,
    encode,
    pieces,
)

HELLO_SECONDS_MAX = 10.0
RECEIVE_BYTES = 64 * 1024
HAVE_DELAY_SECONDS = 0.05
SEND_SECONDS_MAX = 60.0
"""For one message; a peer slower than that is given up."""
UNSENT_BYTES_MAX = 2 * 1024 * 1024
"""Of blocks that were read and wait to be sent to one peer."""
SIGN_SECONDS = 1.0
"""That bytes come is said so often where no block comes."""
WATCHES_MAX = 4096
PLEASES_MAX = 256


class Library(Protocol):
    """What an answering session needs of the process; the swarm provides it."""

    store: BlockStore
    catalogue: Catalogue
    hello: Hello

    def load_manifest(self, wanted: ManifestId) -> Manifest | Growing | None: ...

    def grows(self, wanted: ManifestId) -> Growing | None:
        """A growing manifest of our own."""
        ...

    def is_filling(self, wanted: ManifestId) -> bool:
        """The blocks that are not here are being fetched."""
        ...

    async def look_for(self, asker: PeerId, message: Please) -> PathRecord | None:
        """Somebody said Please."""
        ...

    def watched(self, watcher: PeerId, record: PathRecord) -> None:
        """`watcher` wants to know of its blocks."""
        ...


@dataclass(slots=True)
class _Told:
    """What the peer knows of one growing manifest."""

    blocks: int = 0
    when: float = float("-inf")
    over: bool = False


class Answering:
    def __init__(self, stream: Stream, library: Library) -> None:
        self.peer = stream.peer
        self.watches: set[ManifestId] = set()
        self.blocks_sent = 0
        self.bytes_sent = 0
        self._stream = stream
        self._library = library
        self._serving = Serving()
        self._work = trio.Event()
        self._news: dict[ManifestId, list[int]] = {}
        self._restated: set[ManifestId] = set()
        self._told: dict[ManifestId, _Told] = {}
        self._grew: set[ManifestId] = set()
        self._news_event = trio.Event()
        self._writing = trio.Lock()
        self._pleases = 0

    async def run(self, greeted: Callable[[Answering], Awaitable[None]]) -> None:
        """Until the stream ends; the caller closes it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_blocks)
            nursery.start_soon(self._send_news)
            await self._receive(nursery, greeted)
            nursery.cancel_scope.cancel()

    def note(self, manifest: ManifestId, index: int) -> None:
        """A block of a watched manifest came in."""
        self._news.setdefault(manifest, []).append(index)
        self._news_event.set()

    def grew(self, manifest: ManifestId) -> None:
        """A watched growing manifest of ours has news."""
        self._grew.add(manifest)
        self._news_event.set()

    def restate(self, manifest: ManifestId) -> None:
        """A download of a watched manifest is over: say again what is here."""
        if manifest in self.watches:
            self._restated.add(manifest)
            self._news_event.set()

    async def _receive(
        self, nursery: trio.Nursery, greeted: Callable[[Answering], Awaitable[None]]
    ) -> None:
        decoder, met = Decoder(), False
        deadline = trio.current_time() + HELLO_SECONDS_MAX
        while True:
            with trio.CancelScope(deadline=float("inf") if met else deadline) as scope:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            if scope.cancelled_caught or not data:
                return
            for message in decoder.feed(data):
                if met:
                    await self._answer(nursery, message)
                    continue
                if not isinstance(message, Hello) or message.version != PROTOCOL_VERSION:
                    raise RemoteError(f"{self.peer} speaks another version of the protocol")
                met = True
                await self._say(self._library.hello)
                nursery.start_soon(greeted, self)

    async def _answer(self, nursery: trio.Nursery, message: Message) -> None:
        match message:
            case Find():
                await self._say(self._found(message))
            case Please():
                if self._pleases >= PLEASES_MAX:
                    await self._say(Refuse(message.request, "over-limit", ()))
                else:
                    self._pleases += 1
                    nursery.start_soon(self._please, message)
            case GetManifest():
                await self._say(self._manifest_part(message))
            case Watch():
                await self._watch(message)
            case Want():
                await self._want(message)
            case Cancel():
                self._serving.cancel(message)
            case _:
                raise RemoteError(f"{self.peer} sent {type(message).__name__} as a question")

    async def _say(self, message: Message) -> None:
        await self._send(encode(message))

    async def _send(self, *parts: Bytes) -> None:
        """One message; others may come between two."""
        async with self._writing:
            with trio.fail_after(SEND_SECONDS_MAX):
                for part in parts:
                    await self._stream.send_all(part)

    def _found(self, message: Find) -> Found:
        records: list[tuple[int, bytes]] = []
        size = 0
        for place, question in enumerate(message.hashes):
            record = self._library.catalogue.look_up(self.peer, question)
            if record is None:
                continue
            encoded = encode_record(record)
            if size + len(encoded) > FOUND_BYTES_MAX:
                return Found(message.request, place, tuple(records))
            size += len(encoded)
            records.append((place, encoded))
        return Found(message.request, len(message.hashes), tuple(records))

    async def _please(self, message: Please) -> None:
        try:
            record = await self._library.look_for(self.peer, message)
        finally:
            self._pleases -= 1
        records = () if record is None else ((0, encode_record(record)),)
        await self._say(Found(message.request, 1, records))

    def _manifest_part(self, message: GetManifest) -> Message:
        if self._library.catalogue.may_read(self.peer, message.manifest) is None:
            return Refuse(message.request, "not-here", ())
        encoded = self._library.store.manifest(message.manifest)
        if encoded is None or message.offset >= len(encoded):
            return Refuse(message.request, "not-here", ())
        part = encoded[message.offset : message.offset + MANIFEST_PART_BYTES_MAX]
        return ManifestPart(message.request, len(encoded), part)

    async def _watch(self, message: Watch) -> None:
        record = self._library.catalogue.may_read(self.peer, message.manifest)
        manifest = self._library.load_manifest(message.manifest) if record is not None else None
        if record is None or manifest is None or len(self.watches) >= WATCHES_MAX:
            await self._say(Refuse(message.request, "not-here", ()))
            return
        self.watches.add(message.manifest)
        self._library.watched(self.peer, record)
        await self._say_growth(message.manifest)
        await self._say_have(message.manifest, manifest)

    async def _say_growth(self, wanted: ManifestId) -> None:
        """What is new of a growing manifest; at least once a second that bytes come."""
        growing = self._library.grows(wanted)
        if growing is None:
            return
        told = self._told.setdefault(wanted, _Told())
        while not told.over:
            now = trio.current_time()
            segment = growing.segment(told.blocks)
            told.over = segment.state is not Growth.GROWING
            if not segment.blocks and not told.over and now - told.when < SIGN_SECONDS:
                return
            told.blocks += len(segment.blocks)
            told.when = now
            await self._say(segment)

    async def _say_have(self, wanted: ManifestId, manifest: Manifest | Growing) -> None:
        present = await trio.to_thread.run_sync(self._library.store.has, manifest.blocks)
        bitmap = bytearray((len(present) + 7) // 8)
        for index, here in enumerate(present):
            if here:
                bitmap[index >> 3] |= 1 << (index & 7)
        await self._say(Have(wanted, self._library.is_filling(wanted), bytes(bitmap)))

    async def _want(self, message: Want) -> None:
        visible = self._library.catalogue.may_read(self.peer, message.manifest) is not None
        manifest = self._library.load_manifest(message.manifest) if visible else None
        lengths = () if manifest is None else manifest.lengths
        for refusal in self._serving.want(message, visible, lengths):
            await self._say(refusal)
        self._work.set()

    async def _send_blocks(self) -> None:
        while True:
            due = self._serving.next_blocks(UNSENT_BYTES_MAX)
            if not due:
                self._work = trio.Event()
                await self._work.wait()
                continue
            # One trip to a thread for several blocks: the trip costs as much as hashing one.
            blocks, payload_bytes, answers = await trio.to_thread.run_sync(self._read_all, due)
            self.blocks_sent += blocks
            self.bytes_sent += payload_bytes
            for answer in answers:
                await self._send(*answer)

    def _read_all(self, due: Sequence[Due]) -> tuple[int, int, list[tuple[bytes, Bytes]]]:
        """(blocks, their payload in bytes, the answers as frames)."""
        answers = [self._read(one) for one in due]
        sizes = [len(answer.encoded.payload) for answer in answers if isinstance(answer, Sent)]
        return len(sizes), sum(sizes), [pieces(answer) for answer in answers]

    def _read(self, due: Due) -> Message:
        manifest = self._library.load_manifest(due.manifest)
        try:
            if manifest is None:
                return Refuse(due.request, "not-here", (due.index,))
            block = self._library.store.get(manifest.blocks[due.index])
        except (BlockMissing, BlockCorrupt):
            return Refuse(due.request, "not-here", (due.index,))
        assert block.encoded is not None
        return Sent(due.request, due.index, block.encoded)

    async def _send_news(self) -> None:
        while True:
            await self._news_event.wait()
            await trio.sleep(HAVE_DELAY_SECONDS)
            news, self._news = self._news, {}
            grew, self._grew = self._grew, set()
            self._news_event = trio.Event()
            for manifest in sorted(grew):
                await self._say_growth(manifest)
            for manifest, indexes in news.items():
                for at in range(0, len(indexes), HAVE_INDEXES_MAX):
                    part = tuple(indexes[at : at + HAVE_INDEXES_MAX])
                    await self._say(HaveMore(manifest, part))
            restated, self._restated = self._restated, set()
            for wanted in sorted(restated):
                if (whole := self._library.load_manifest(wanted)) is not None:
                    await self._say_have(wanted, whole)
