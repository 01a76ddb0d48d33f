"""HTTP/1.1 for one handler: the only framing in this project. Requests in, answers out.

    bytes --RequestReader--> Request --handler--> Response --> bytes, or a cut connection

What protects the machine's user is here: an exact list of Host values (DNS rebinding), no request
of a browser's page (Origin, Sec-Fetch-Site), and an end to who is slow. When all connections are
taken, the one that has waited longest with its request makes room. PUT goes to a handler of its
own, if there is one; a body is asked for (100) and read only as the handler reads it, and where it
was not read to its end, the connection closes behind the answer. An answer that breaks
(`BodyBroken`) or has another length than announced ends in a cut connection, never in a clean end:
Nix then resumes with a range or goes to the next substituter. A handler that fails answers 404,
because Nix 2.8 fails a whole build over a 5xx.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import trio

from chunker.digest import Bytes

from .pump import BodyBroken, Pump, Readable
from .requests import Event, Refusal, RequestReader
from .requests import Request as Request

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 512
RECEIVE_BYTES = 64 * 1024
UNSENT_BYTES = 1024 * 1024
IDLE_SECONDS_MAX = 120.0
HEAD_SECONDS_MAX = 20.0
SEND_SECONDS_MAX = 300.0
BODY_SECONDS_MAX = 60.0
"""For the next piece of a body that a client sends."""
STOP_SECONDS_MAX = 60.0
"""For the answers under way; who stops a second time does not wait (gateway.run)."""
LINGER_SECONDS_MAX = 2.0
LINGER_BYTES_MAX = 1024 * 1024
"""For a client to read its refusal while it still sends: a reset would take the answer away."""
BODY_METHODS = ("PUT",)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class Response:
    """`length` is what Content-Length says, also where HEAD sends no body. An iterator or what is
    read gives exactly that many bytes; an iterator is closed here in every case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | AsyncIterator[Bytes] | Readable
    length: int


@dataclass(frozen=True, slots=True)
class Unsatisfiable:
    """A range that begins at or after the end."""


Handler = Callable[[Request], Awaitable[Response]]
PutHandler = Callable[[Request, AsyncGenerator[bytes, None]], Awaitable[Response]]
"""The body's pieces raise BodyBroken when the client breaks off."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | Unsatisfiable | None:
    """[start, end) of one byte range (RFC 9110, 14.1.2); None: send the whole, which is also the
    answer to what is malformed or asks for several ranges."""
    match = None if header is None else _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        count = min(int(match[2]), size)
        return (size - count, size) if count else Unsatisfiable()
    start, end = int(match[1]), size
    if match[2]:
        if int(match[2]) < start:
            return None
        end = min(size, int(match[2]) + 1)
    return (start, end) if start < size else Unsatisfiable()


async def serve(
    listeners: Sequence[trio.SocketListener],
    handler: Handler,
    *,
    allowed_hosts: frozenset[str],
    stopping: trio.Event,
    put: PutHandler | None = None,
) -> None:
    """Until `stopping`; then no new connection, and a while for the answers under way."""
    server = _Server(handler, put, allowed_hosts, stopping)
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            for listener in listeners:
                accepting.start_soon(server.accept, listener, connections)
            await stopping.wait()
            accepting.cancel_scope.cancel()
        for connection in list(server.waiting):
            connection.give_way_if_idle()
        connections.cancel_scope.deadline = trio.current_time() + STOP_SECONDS_MAX


class _Server:
    def __init__(
        self, handler: Handler, put: PutHandler | None, hosts: frozenset[str], stopping: trio.Event
    ) -> None:
        self.handler = handler
        self.put = put
        self.hosts = hosts
        self.stopping = stopping
        self.waiting: dict[_Connection, None] = {}
        """Those whose next request is not whole, the longest first."""
        self.pump = Pump()
        self._open = 0
        self._change = trio.Event()

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        async with listener:
            while True:
                stream = await listener.accept()
                try:
                    await self._make_room()
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
                self._open += 1
                nursery.start_soon(self._connection, stream)

    async def _make_room(self) -> None:
        """For one that is there already: whoever waits for its request gives way, now or as soon
        as there is one."""
        while self._open >= CONNECTIONS_MAX:
            if self.waiting:
                longest = next(iter(self.waiting))
                del self.waiting[longest]
                longest.give_way()
            await self._change.wait()

    def changed(self) -> None:
        """A connection ended, or waits."""
        if self._open >= CONNECTIONS_MAX:
            self._change.set()
            self._change = trio.Event()

    async def _connection(self, stream: trio.SocketStream) -> None:
        try:
            await _Connection(stream, self).run()
        except (trio.BrokenResourceError, trio.TooSlowError, trio.ClosedResourceError):
            pass
        except BodyBroken as error:
            log.warning("cut a connection: %s", error)
        except Exception:
            log.exception("a connection failed")
        finally:
            self.changed()
            self._open -= 1
            await trio.aclose_forcefully(stream)


class _Connection:
    def __init__(self, stream: trio.SocketStream, server: _Server) -> None:
        self._stream = stream
        self._server = server
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._reader = RequestReader()
        self._events: deque[Event] = deque()
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        while (request := await self._next()) is not None:
            body = _Body(self, request)
            if await self._answer(request, body):
                await self._linger()
                return

    def give_way(self) -> None:
        """Others need the place of one that waits for its request."""
        self._scope.cancel()

    def give_way_if_idle(self) -> None:
        if self._reader.idle:
            self._scope.cancel()

    async def _next(self) -> Request | None:
        """The next request, or None when the connection is over (refusals are sent here)."""
        waiting = self._server.waiting
        if not self._events:
            with trio.CancelScope() as self._scope:
                waiting[self] = None
                self._server.changed()
                try:
                    await self._receive_head()
                finally:
                    waiting.pop(self, None)
        event = self._events.popleft() if self._events else None
        if isinstance(event, Refusal):
            await self._send(_head(event.status, (), 0, last=True))
            await self._linger()
            return None
        assert not isinstance(event, bytes), "a body is taken by its _Body"
        return event

    async def _receive_head(self) -> None:
        """Until there is an event; none at the end, when the time is up, or when the server stops
        between requests."""
        deadline = float("inf")
        while not self._events:
            if self._reader.idle and self._server.stopping.is_set():
                return
            limit = min(deadline, trio.current_time() + IDLE_SECONDS_MAX)
            self._scope.deadline = limit
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                return
            deadline = min(deadline, trio.current_time() + HEAD_SECONDS_MAX)
            self._events.extend(self._reader.feed(bytes(data)))

    async def receive_body(self) -> bytes:
        """The next piece of the body of the request under way. Raises BodyBroken."""
        while not self._events:
            data = b""
            with trio.move_on_after(BODY_SECONDS_MAX):
                data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                raise BodyBroken("a client broke off while it sent a body")
            self._events.extend(self._reader.feed(bytes(data)))
        piece = self._events.popleft()
        if not isinstance(piece, bytes):
            raise BodyBroken("a body that cannot be understood")
        return piece

    async def _linger(self) -> None:
        """Say that we are done and wait for the client to see it: closing while it sends would
        reset the connection and lose the answer."""
        with trio.move_on_after(LINGER_SECONDS_MAX):
            await self._stream.send_eof()
            left = LINGER_BYTES_MAX
            while left > 0 and (data := await self._stream.receive_some(RECEIVE_BYTES)):
                left -= len(data)

    async def ask_for_body(self) -> None:
        await self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _answer(self, request: Request, sent: _Body) -> bool:
        """Whether that was the last answer on this connection."""
        response = await self._respond(request, sent)
        known = request.method in ("GET", "HEAD", *BODY_METHODS)
        more = request.keep_alive and known and not sent.left
        last = not more or self._server.stopping.is_set()
        head = _head(response.status, response.headers, response.length, last=last)
        await self._send_response(request, response, head)
        return last

    async def _send_response(self, request: Request, response: Response, head: bytes) -> None:
        if isinstance(response.body, bytes):
            await self._send(head if request.method == "HEAD" else head + response.body)
            return
        if not isinstance(response.body, AsyncIterator):
            await self._send(head)
            if request.method != "HEAD":
                await self._pump(response.body, response.length)
            return
        async with _closing(response.body) as body:
            await self._send(head)
            if request.method == "HEAD":
                return
            left = response.length
            async for piece in body:
                left -= len(piece)
                if left < 0:
                    raise BodyBroken("a body was longer than announced")
                await self._send(piece)
            if left:
                raise BodyBroken(f"a body ended {left} bytes early")

    async def _pump(self, body: Readable, left: int) -> None:
        over = False
        while not over:
            try:
                file = self._stream.socket.fileno()
                sent, rest, over = await self._server.pump.turn(body, file, left)
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            left -= sent + sum(map(len, rest))
            for piece in rest:
                await self._send(piece)
        if left:
            raise BodyBroken(f"a body ended {left} bytes early")

    async def _respond(self, request: Request, body: _Body) -> Response:
        server = self._server
        if "origin" in request.headers or request.headers.get("sec-fetch-site", "none") != "none":
            return short(403, "browsers may not ask this server")
        if request.headers.get("host", "").lower() not in server.hosts:
            return short(403, "this server does not go by that Host")
        if request.method in BODY_METHODS and server.put is not None:
            return await server.put(request, body.pieces())
        if request.method not in ("GET", "HEAD"):
            return short(405, "only GET and HEAD", ("Allow", "GET, HEAD"))
        try:
            return await server.handler(request)
        except Exception:
            log.exception("answering %s %s failed", request.method, request.target)
            return short(404, "failed")

    async def _send(self, data: Bytes) -> None:
        """What the socket takes at once needs no deadline: that is nearly every narinfo."""
        try:
            sent = os.write(self._stream.socket.fileno(), data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        if sent < len(data):
            with trio.fail_after(SEND_SECONDS_MAX):
                await self._stream.send_all(memoryview(data)[sent:])


class _Body:
    """What comes behind the head of one request; `left` are the bytes not read yet."""

    def __init__(self, connection: _Connection, request: Request) -> None:
        self.left = request.length
        self._connection = connection
        self._asks = request.headers.get("expect", "").lower() == "100-continue"

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        if self._asks and self.left:
            await self._connection.ask_for_body()
        while self.left:
            piece = await self._connection.receive_body()
            self.left -= len(piece)
            yield piece


def _closing(body: AsyncIterator[Any]) -> aclosing[Any]:
    return aclosing(body)


def short(status: int, text: str, *headers: tuple[str, str]) -> Response:
    """One line of text, for a person who looks at what went wrong."""
    body = f"{status} {text}\n".encode()
    return Response(status, (("Content-Type", "text/plain"), *headers), body, len(body))


def _head(status: int, headers: Sequence[tuple[str, str]], length: int, *, last: bool) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    if status != 304:
        lines.append(f"Content-Length: {length}")
    lines += [f"{name}: {value}" for name, value in headers]
    if last:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
