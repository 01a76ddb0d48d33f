"""The answering half of a session: one stream that a peer opened to us.

Control answers and blocks leave through one writer. A block is read, decoded and hashed again just
before it is sent: a rotten one is refused and forgotten here, so nobody can blame us for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from chunker.digest import Bytes, ManifestId
from chunker.errors import BlockCorrupt, BlockMissing
from chunker.manifest import Manifest
from chunker.record import PathRecord, encode_record
from chunker.store import BlockStore

from .catalogue import Catalogue
from .errors import RemoteError, SessionClosed
from .identity import PeerId
from .introductions import Introductions
from .messages import (
    PROTOCOL_VERSION,
    Cancel,
    Find,
    Found,
    GetManifest,
    Have,
    HaveMore,
    Hello,
    ManifestPart,
    Message,
    Please,
    Refuse,
    Revoked,
    Sent,
    Show,
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
WATCHES_MAX = 4096
UNTOLD_MESSAGES_MAX = 256
PLEASES_MAX = 256


class Library(Protocol):
    """What an answering session needs of the process; the swarm provides it."""

    store: BlockStore
    catalogue: Catalogue
    hello: Hello
    introductions: Introductions

    def welcomes(self, peer: PeerId) -> bool:
        """Whether this peer, as far as it is known now, may have a session."""
        ...

    def load_manifest(self, wanted: ManifestId) -> Manifest | None: ...

    def is_filling(self, wanted: ManifestId) -> bool:
        """The blocks that are not here are being fetched."""
        ...

    async def look_for(self, asker: PeerId, store_hash: str) -> PathRecord | None:
        """Somebody said Please."""
        ...

    def watched(self, record: PathRecord) -> None:
        """Somebody wants to know of its blocks."""
        ...


class Answering:
    def __init__(self, stream: Stream, library: Library) -> None:
        self.peer = stream.peer
        self.met = False
        """Both sides have said Hello and Show."""
        self.watches: set[ManifestId] = set()
        self.blocks_sent = 0
        self.bytes_sent = 0
        self._stream = stream
        self._library = library
        self._serving = Serving()
        self._work = trio.Event()
        self._news: dict[ManifestId, list[int]] = {}
        self._restated: set[ManifestId] = set()
        self._news_event = trio.Event()
        self._writing = trio.Lock()
        self._pleases = 0
        self._told: list[Message] = []
        self._scope = trio.CancelScope()

    async def run(self, greeted: Callable[[Answering], Awaitable[None]]) -> None:
        """Until the stream ends; the caller closes it."""
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            nursery.start_soon(self._send_blocks)
            nursery.start_soon(self._send_news)
            await self._receive(nursery, greeted)
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """End the session from our side."""
        self._scope.cancel()

    def tell(self, message: Message) -> None:
        """Something that was not asked for. Raises SessionClosed where nobody takes it."""
        if len(self._told) >= UNTOLD_MESSAGES_MAX:
            raise SessionClosed(f"{self.peer} does not listen")
        self._told.append(message)
        self._news_event.set()

    def note(self, manifest: ManifestId, index: int) -> None:
        """A block of a watched manifest came in."""
        self._news.setdefault(manifest, []).append(index)
        self._news_event.set()

    def restate(self, manifest: ManifestId) -> None:
        """A download of a watched manifest is over: say again what is here."""
        if manifest in self.watches:
            self._restated.add(manifest)
            self._news_event.set()

    async def _receive(
        self, nursery: trio.Nursery, greeted: Callable[[Answering], Awaitable[None]]
    ) -> None:
        decoder, said_hello = Decoder(), False
        deadline = trio.current_time() + HELLO_SECONDS_MAX
        while True:
            with trio.CancelScope(deadline=float("inf") if self.met else deadline) as scope:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            if scope.cancelled_caught or not data:
                return
            for message in decoder.feed(data):
                if self.met:
                    await self._answer(nursery, message)
                elif not said_hello:
                    said_hello = True
                    if not await self._greet(message):
                        return
                elif await self._show(message):
                    self.met = True
                    nursery.start_soon(greeted, self)
                else:
                    return

    async def _greet(self, message: Message) -> bool:
        """Whether the session may go on: strangers that are not served get no word."""
        if not isinstance(message, Hello) or message.version != PROTOCOL_VERSION:
            raise RemoteError(f"{self.peer} speaks another version of the protocol")
        introductions = self._library.introductions
        pools = introductions.recognised(self.peer, message)
        if not pools and not self._library.welcomes(self.peer):
            return False
        await self._say(introductions.hello_to(self.peer, self._library.hello, pools))
        return True

    async def _show(self, message: Message) -> bool:
        """Whether the session may go on, now that it is known who it is with."""
        if not isinstance(message, Show):
            raise RemoteError(f"{self.peer} sent {type(message).__name__} before Show")
        proven = self._library.introductions.shown(self.peer, message)
        if not self._library.welcomes(self.peer):
            return False
        await self._say(self._library.introductions.show(proven))
        return self._library.welcomes(self.peer)  # it may have been revoked just now

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
            case Show():
                proven = self._library.introductions.shown(self.peer, message)
                await self._say(self._library.introductions.show(proven))
            case Revoked():
                self._library.introductions.heard(self.peer, message)
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
            record = await self._library.look_for(self.peer, message.store_hash)
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
        self._library.watched(record)
        await self._say_have(message.manifest, manifest)

    async def _say_have(self, wanted: ManifestId, manifest: Manifest) -> None:
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
            told, self._told = self._told, []
            for message in told:
                await self._say(message)
            news, self._news = self._news, {}
            self._news_event = trio.Event()
            for manifest, indexes in news.items():
                for at in range(0, len(indexes), HAVE_INDEXES_MAX):
                    part = tuple(indexes[at : at + HAVE_INDEXES_MAX])
                    await self._say(HaveMore(manifest, part))
            restated, self._restated = self._restated, set()
            for wanted in sorted(restated):
                if (whole := self._library.load_manifest(wanted)) is not None:
                    await self._say_have(wanted, whole)
