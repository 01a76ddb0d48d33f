"""The answering half of a session: one stream that a peer opened to us.

Control answers leave at once, between two messages of others; blocks when it is this session's turn
(`sending`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from chunker.digest import Bytes, ManifestId
from chunker.manifest import Manifest
from chunker.record import PathRecord, encode_record

from .errors import RemoteError, SessionClosed
from .growing import Growing
from .library import Library
from .messages import (
    PROTOCOL_VERSION,
    Cancel,
    Find,
    Found,
    GetManifest,
    GetSummary,
    Growth,
    Have,
    HaveMore,
    Hello,
    ManifestPart,
    Message,
    Please,
    Refuse,
    Revoked,
    Show,
    Want,
    Watch,
)
from .news import News
from .serving import Serving
from .summary import Change, Telling, Whole
from .transport import Stream
from .wire import (
    FOUND_BYTES_MAX,
    HAVE_INDEXES_MAX,
    MANIFEST_PART_BYTES_MAX,
    Decoder,
    encode,
)

HELLO_SECONDS_MAX = 10.0
RECEIVE_BYTES = 64 * 1024
SEND_SECONDS_MAX = 60.0
"""For one message, or the blocks of one turn; a peer slower than that is given up."""
SIGN_SECONDS = 1.0
"""That bytes come is said so often where no block comes."""
WATCHES_MAX = 4096
UNTOLD_MESSAGES_MAX = 256
PLEASES_MAX = 256
FOUND_ON_LOOP_MAX = 8
"""Each record that is looked up costs a read and signature checks."""


@dataclass(slots=True)
class _Told:
    """What the peer knows of one growing manifest."""

    blocks: int = 0
    when: float = float("-inf")
    over: bool = False


class Answering:
    def __init__(self, stream: Stream, library: Library) -> None:
        self.peer = stream.peer
        self.met = False
        """Both sides have said Hello and Show."""
        self.watches: dict[ManifestId, None] = {}
        """The newest last."""
        self.blocks_sent = 0
        self.bytes_sent = 0
        self._stream = stream
        self._library = library
        self.serving = Serving()
        self._scope = trio.CancelScope()
        self._news = News()
        self._told: dict[ManifestId, _Told] = {}
        self._grew: set[ManifestId] = set()
        self._hello_due = False
        self._news_event = trio.Event()
        self._telling = Telling()
        self._telling_event = trio.Event()
        self._writing = trio.Lock()
        self._pleases = 0
        self._untold: list[Message] = []

    async def run(self, greeted: Callable[[Answering], Awaitable[None]]) -> None:
        """Until the stream ends; the caller closes it."""
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            session = self._library.sending.join(self)
            try:
                nursery.start_soon(self._send_news)
                nursery.start_soon(self._send_summary)
                await self._receive(nursery, greeted)
                nursery.cancel_scope.cancel()
            finally:
                self._library.sending.leave(session)
                self._library.catalogue.unlisten(self._changed)

    def sent(self, blocks: int, payload_bytes: int) -> None:
        self.blocks_sent += blocks
        self.bytes_sent += payload_bytes

    async def send(self, messages: Sequence[Sequence[Bytes]]) -> None:
        """Each message in its parts; others may come between two. Without a pass through the loop
        where nobody else is sending: that costs as much as sealing a block."""
        with trio.fail_after(SEND_SECONDS_MAX):
            for parts in messages:
                try:
                    self._writing.acquire_nowait()
                except trio.WouldBlock:
                    await self._writing.acquire()
                try:
                    await self._stream.send_all(*parts)
                finally:
                    self._writing.release()

    async def flush(self) -> None:
        await self._stream.flush()

    def stop(self) -> None:
        """End the session from our side."""
        self._scope.cancel()

    def tell(self, message: Message) -> None:
        """Something that was not asked for. Raises SessionClosed where nobody takes it."""
        if len(self._untold) >= UNTOLD_MESSAGES_MAX:
            raise SessionClosed(f"{self.peer} does not listen")
        self._untold.append(message)
        self._news_event.set()

    def note(self, manifest: ManifestId, index: int, *, fresh: bool) -> None:
        """A block of a watched manifest came in; see `news`."""
        due = self._news.due
        self._news.note(manifest, index, fresh=fresh)
        if self._news.due < due:
            self._news_event.set()

    def grew(self, manifest: ManifestId) -> None:
        """A watched growing manifest of ours has news."""
        self._grew.add(manifest)
        self._news_event.set()

    def will_serve(self, manifest: ManifestId) -> None:
        """It waits long for a block: news of none, which only says that we live."""
        if len(self._untold) < UNTOLD_MESSAGES_MAX:
            self.tell(HaveMore(manifest, ()))

    def say_hello(self) -> None:
        """What our Hello says has changed."""
        self._hello_due = True
        self._news_event.set()

    def restate(self, manifest: ManifestId) -> None:
        """A download of a watched manifest is over: say again what is here."""
        if manifest in self.watches:
            self._news.restate(manifest)
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
            case Find() if len(message.hashes) > FOUND_ON_LOOP_MAX:
                await self._say(await trio.to_thread.run_sync(self._found, message))
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
                self.serving.cancel(message)
            case GetSummary(request):
                self._library.catalogue.listen(self._changed)
                self._telling.asked(request)
                self._telling_event.set()
            case Show():
                proven = self._library.introductions.shown(self.peer, message)
                await self._say(self._library.introductions.show(proven))
            case Revoked():
                self._library.introductions.heard(self.peer, message)
            case _:
                raise RemoteError(f"{self.peer} sent {type(message).__name__} as a question")

    async def _say(self, message: Message) -> None:
        await self.send([[encode(message)]])

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
        if record is None or manifest is None:
            await self._say(Refuse(message.request, "not-here", ()))
            return
        self._told.pop(message.manifest, None)  # who watches anew begins anew
        self.watches[message.manifest] = None
        if len(self.watches) > WATCHES_MAX:
            oldest = next(iter(self.watches))
            del self.watches[oldest]
            self._told.pop(oldest, None)
        self._library.watched(self.peer, record)
        await self._say_growth(message.manifest)
        await self._say_have(message.manifest, manifest)

    async def _say_growth(self, wanted: ManifestId) -> None:
        """What is new of a growing manifest; at least once a second that bytes come."""
        growing = self._library.grows(wanted)
        if growing is None or wanted not in self.watches:
            return
        if growing.state is Growth.GROWING and not growing.started:
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
        for refusal in self.serving.want(message, visible, lengths):
            await self._say(refusal)
        self._library.sending.wake()

    async def _send_news(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._news.due):
                await self._news_event.wait()
            self._news_event = trio.Event()
            untold, self._untold = self._untold, []
            for message in untold:
                await self._say(message)
            hello_due, self._hello_due = self._hello_due, False
            if hello_due:
                await self._say(self._library.hello)
            grew, self._grew = self._grew, set()
            for manifest in sorted(grew):
                await self._say_growth(manifest)
            if self._news.due <= trio.current_time():
                await self._say_news()

    async def _say_news(self) -> None:
        news, restated = self._news.take(trio.current_time())
        for manifest, indexes in news.items():
            for at in range(0, len(indexes), HAVE_INDEXES_MAX):
                part = tuple(indexes[at : at + HAVE_INDEXES_MAX])
                await self._say(HaveMore(manifest, part))
        for wanted in sorted(restated):
            if (whole := self._library.load_manifest(wanted)) is not None:
                await self._say_have(wanted, whole)

    def _changed(self, record: PathRecord, held: bool) -> None:
        self._telling.changed(record, held)
        self._telling_event.set()

    async def _send_summary(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._telling.wake_at):
                await self._telling_event.wait()
            self._telling_event = trio.Event()
            step = self._telling.next(trio.current_time())
            if step is None:
                continue
            if not self._library.knows(self.peer):  # from the start, or it is a member no more
                await self._say(self._telling.refuse("not-here"))
            elif isinstance(step, Whole):
                await self._say_whole()
            else:
                await self._say_changes(step)

    async def _say_whole(self) -> None:
        prefixes = await trio.to_thread.run_sync(
            self._library.catalogue.prefixes, self.peer, limiter=self._library.summaries
        )
        for message in self._telling.whole(prefixes):
            await self._say(message)

    async def _say_changes(self, changes: Sequence[Change]) -> None:
        # In a thread, because the policy checks signatures.
        added, removed = await trio.to_thread.run_sync(self._may_know, changes)
        delta = self._telling.delta(added, removed)
        if delta is not None:
            await self._say(delta)

    def _may_know(self, changes: Sequence[Change]) -> tuple[list[bytes], list[bytes]]:
        added, removed = (
            self._library.catalogue.for_asker(
                self.peer, [change.record for change in changes if change.held is held]
            )
            for held in (True, False)
        )
        return added, removed
