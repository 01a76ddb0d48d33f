"""The asking half of a session: one stream that we opened to one peer.

Questions with one answer go through `ask`; a summary is kept here; what comes unasked (Have, Sent,
Refuse of blocks) goes to the swarm's handler. Every answer is checked here for shape, never for
trust.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import trio

from chunker.digest import ManifestId, manifest_id
from chunker.errors import RecordError
from chunker.record import PathRecord, decode_record

from .catalogue import salted
from .errors import NotHere, PeerError, RemoteError, SessionClosed
from .finding import Finding
from .identity import PeerId
from .introductions import Introductions
from .messages import (
    PROTOCOL_VERSION,
    Find,
    Found,
    GetManifest,
    GetSummary,
    Hello,
    ManifestPart,
    Message,
    Please,
    Refuse,
    Sent,
    Show,
    SummaryDelta,
    SummaryPart,
    Watch,
)
from .summary import Heard
from .transport import Stream
from .wire import MANIFEST_BYTES_MAX, Decoder, encode

log = logging.getLogger(__name__)

ASK_SECONDS_MAX = 5.0
HELLO_SECONDS_MAX = 10.0
RECEIVE_BYTES = 1024 * 1024
UNSENT_MESSAGES_MAX = 4096
WATCHES_KEPT_MAX = 1024
"""Of which a refusal is still understood."""

Handler = Callable[[PeerId, Message], Awaitable[None]]


class Asking:
    """Raises SessionClosed from every method once the stream is gone."""

    def __init__(
        self, stream: Stream, hello: Hello, introductions: Introductions, handler: Handler
    ) -> None:
        self.peer = stream.peer
        self.remote_host = stream.remote_host
        self.their = Hello(0, "", b"", "")
        self.bytes_received = 0
        self._is_near = False
        self._stream = stream
        self._ours = introductions.hello_to(stream.peer, hello)
        self._introductions = introductions
        self._handler = handler
        self._scope = trio.CancelScope()
        self._request = 0
        self._answers: dict[int, trio.MemorySendChannel[Message]] = {}
        self._watches: OrderedDict[int, ManifestId] = OrderedDict()
        self._heard = Heard(b"")
        self._finding = Finding(self._find)
        self._out, self._out_end = trio.open_memory_channel[Message](UNSENT_MESSAGES_MAX)

    async def run(self, ready: Callable[[Asking], Awaitable[None]]) -> None:
        """Until the stream ends. `ready` is called once, after their Hello and Show."""
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._send)
                nursery.start_soon(self._finding.run)
                await self._stream.send_all(encode(self._ours))
                await self._receive(nursery, ready)
                nursery.cancel_scope.cancel()
        finally:
            self._out.close()
            for answer in list(self._answers.values()):
                answer.close()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self._stream.aclose()

    @property
    def is_near(self) -> bool:
        """Whether they are on our LAN; who once was stays it, however long a busy line takes."""
        self._is_near = self._is_near or self._stream.is_near()
        return self._is_near

    def stop(self) -> None:
        """End the session from our side."""
        self._scope.cancel()

    def tell(self, message: Message) -> None:
        """Queue a message without waiting; a peer that lets 4096 pile up is gone."""
        try:
            self._out.send_nowait(message)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError) as error:
            raise SessionClosed(f"{self.peer} takes no more questions") from error

    def watching(self, manifest: ManifestId) -> Watch:
        """To be told: which of its blocks do they hold, now and as they come?"""
        for request in [number for number, what in self._watches.items() if what == manifest]:
            del self._watches[request]  # what is said to an older one counts no more
        request = self._next_request()
        self._watches[request] = manifest
        if len(self._watches) > WATCHES_KEPT_MAX:
            self._watches.popitem(last=False)
        return Watch(request, manifest)

    def watch_refused(self, request: int) -> ManifestId | None:
        """What the Watch of this number, which was refused, was about."""
        return self._watches.pop(request, None)

    async def find(self, store_hashes: Sequence[str]) -> dict[str, PathRecord]:
        """The records this peer has for us. Questions of many callers go in one Find."""
        return await self._finding.find(store_hashes)

    def get_summary(self) -> None:
        """Ask for what they hold, now and from now on."""
        request = self._next_request()
        self._heard.asks(request)
        self.tell(GetSummary(request))

    def may_hold(self, store_hash: str) -> bool:
        """False if their summary says that they do not: a question would be wasted."""
        return self._heard.may_hold(store_hash)

    async def _find(self, store_hashes: Sequence[str]) -> dict[str, PathRecord]:
        left, found = list(store_hashes), {}
        while left:
            questions = tuple(salted(self.their.salt, store_hash) for store_hash in left)
            answer = await self._ask(_finding(questions))
            if not isinstance(answer, Found) or answer.answered == 0:
                raise RemoteError(f"{self.peer} answered a Find with {type(answer).__name__}")
            found.update(self._records(left, answer))
            left = left[answer.answered :]
        return found

    async def please(self, store_hash: str, record: bytes = b"") -> PathRecord | None:
        """`record`: encoded, where the answerer may also fetch it from an upstream."""
        answer = await self._ask(lambda n: Please(n, store_hash, record))
        if not isinstance(answer, Found):
            return None
        return self._records([store_hash], answer).get(store_hash)

    async def manifest(self, wanted: ManifestId) -> bytes:
        """Raises NotHere, or RemoteError where the bytes are not that manifest."""
        data = bytearray()
        while True:
            answer = await self._ask(_getting(wanted, len(data)))
            if isinstance(answer, Refuse):
                raise NotHere(f"{self.peer} does not have manifest {wanted.hex()[:16]}")
            if not isinstance(answer, ManifestPart) or not answer.data:
                raise RemoteError(f"{self.peer} sent an empty piece of a manifest")
            data += answer.data
            if len(data) > min(answer.total, MANIFEST_BYTES_MAX):
                raise RemoteError(f"{self.peer} sent a manifest longer than it said")
            if len(data) == answer.total:
                break
        if manifest_id(bytes(data)) != wanted:
            raise RemoteError(f"{self.peer} sent another manifest than {wanted.hex()[:16]}")
        return bytes(data)

    def _records(self, asked: Sequence[str], answer: Found) -> dict[str, PathRecord]:
        found = {}
        for place, encoded in answer.records:
            try:
                record = decode_record(encoded)
            except RecordError as error:
                raise RemoteError(f"{self.peer} sent a bad path record: {error}") from error
            if place >= len(asked) or record.store_hash != asked[place]:
                raise RemoteError(f"{self.peer} sent a record that was not asked for")
            found[record.store_hash] = record
        return found

    async def _ask(self, make: Callable[[int], Message]) -> Message:
        request = self._next_request()
        send, receive = trio.open_memory_channel[Message](1)
        self._answers[request] = send
        try:
            self.tell(make(request))
            with trio.fail_after(ASK_SECONDS_MAX):
                return await receive.receive()
        except trio.TooSlowError as error:
            raise PeerError(f"{self.peer} did not answer in {ASK_SECONDS_MAX:.0f} s") from error
        except trio.EndOfChannel as error:
            raise SessionClosed(f"{self.peer} went away") from error
        finally:
            del self._answers[request]
            send.close()
            receive.close()

    def _next_request(self) -> int:
        self._request += 1
        return -self._request & 0xFFFFFFFF  # never the number of a Want

    async def _send(self) -> None:
        async for message in self._out_end:
            await self._stream.send_all(encode(message))

    async def _receive(
        self, nursery: trio.Nursery, ready: Callable[[Asking], Awaitable[None]]
    ) -> None:
        decoder, greeted = Decoder(), False
        scope = trio.CancelScope(deadline=trio.current_time() + HELLO_SECONDS_MAX)
        with scope:
            while data := await self._stream.receive_some(RECEIVE_BYTES):
                self.bytes_received += len(data)
                for message in decoder.feed(data):
                    if greeted:
                        await self._dispatch(message)
                        continue
                    greeted = self._greet(message)
                    if greeted:
                        scope.deadline = float("inf")
                        nursery.start_soon(ready, self)
        if scope.cancelled_caught:
            raise RemoteError(f"{self.peer} sent no Hello in {HELLO_SECONDS_MAX:.0f} s")

    def _greet(self, message: Message) -> bool:
        """Hello, then Show; whether both were said."""
        if self.their.salt:
            if not isinstance(message, Show):
                raise RemoteError(f"{self.peer} sent {type(message).__name__} before Show")
            self._introductions.shown(self.peer, message)
            return True
        if not isinstance(message, Hello) or message.version != PROTOCOL_VERSION:
            raise RemoteError(f"{self.peer} speaks another version of the protocol")
        self.their = message
        self._heard = Heard(message.salt)
        self.tell(self._introductions.show_first(self.peer, message))
        return False

    async def _dispatch(self, message: Message) -> None:
        if isinstance(message, Sent):  # most messages
            await self._handler(self.peer, message)
            return
        answer = self._answers.get(getattr(message, "request", -1))
        if answer is not None and isinstance(message, Found | ManifestPart | Refuse):
            try:
                answer.send_nowait(message)
            except (trio.WouldBlock, trio.BrokenResourceError):
                raise RemoteError(f"{self.peer} answered one question twice") from None
            return
        if (
            isinstance(message, Found | ManifestPart)
            and 0 < -message.request % 2**32 <= self._request
        ):
            return  # we waited for it no longer
        if isinstance(message, Hello):
            self.their = replace(self.their, fetches=message.fetches)  # all else is for good
        elif isinstance(message, SummaryPart | SummaryDelta):
            if not self._heard.hear(message):
                self.get_summary()
        elif isinstance(message, Refuse) and self._heard.refused(message.request):
            log.info("%s tells no summary: %s", self.peer, message.reason)
        else:
            await self._handler(self.peer, message)


def _finding(questions: tuple[bytes, ...]) -> Callable[[int], Message]:
    return lambda request: Find(request, questions)


def _getting(wanted: ManifestId, offset: int) -> Callable[[int], Message]:
    return lambda request: GetManifest(request, wanted, offset)
