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
import socket
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import trio

from chunker.digest import Bytes

from .lobby import After, Lobby
from .pump import BodyBroken, Pump, Readable
from .requests import Event, Refusal, Request, RequestReader
from .responses import Response, head, prepared, short

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


Handler = Callable[[Request], Awaitable[Response]]
AtOnce = Callable[[Request], Response | None]
"""What can be answered without waiting, with bytes; None: ask the Handler."""
PutHandler = Callable[[Request, AsyncGenerator[bytes, None]], Awaitable[Response]]
"""The body's pieces raise BodyBroken when the client breaks off."""


async def serve(
    listeners: Sequence[trio.SocketListener],
    handler: Handler,
    at_once: AtOnce = lambda request: None,
    *,
    allowed_hosts: frozenset[str],
    stopping: trio.Event,
    put: PutHandler | None = None,
) -> None:
    """Until `stopping`; then no new connection, and a while for the answers under way."""
    server = _Server(handler, at_once, put, allowed_hosts, stopping)
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(server.lobby.run)
            for listener in listeners:
                accepting.start_soon(server.accept, listener)
            server.nursery = connections
            await stopping.wait()
            accepting.cancel_scope.cancel()
        connections.cancel_scope.deadline = trio.current_time() + STOP_SECONDS_MAX


class _Server:
    nursery: trio.Nursery

    def __init__(
        self,
        handler: Handler,
        at_once: AtOnce,
        put: PutHandler | None,
        hosts: frozenset[str],
        stopping: trio.Event,
    ) -> None:
        self.handler = handler
        self.at_once = at_once
        self.put = put
        self.hosts = hosts
        self.stopping = stopping
        self.lobby = Lobby(self._serve, IDLE_SECONDS_MAX)
        self.waiting: dict[_Connection, float] = {}
        """Since when a request has begun and is not whole, the longest first."""
        self.pump = Pump()
        self._open = 0
        self._change = trio.Event()

    async def accept(self, listener: trio.SocketListener) -> None:
        async with listener:
            while True:
                stream = await listener.accept()
                try:
                    await self._make_room()
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
                self._open += 1
                self._rest(_Connection(stream, self))

    async def _make_room(self) -> None:
        """For one that is there already: whoever waits for its request gives way, now or as soon
        as there is one."""
        while self._open >= CONNECTIONS_MAX:
            longest = next(iter(self.waiting), None)
            if longest is None or self.lobby.longest < self.waiting[longest]:
                if self.lobby.close_longest():
                    continue
            else:
                del self.waiting[longest]
                longest.give_way()
            await self._change.wait()

    def changed(self) -> None:
        """A connection ended, or waits."""
        if self._open >= CONNECTIONS_MAX:
            self._change.set()
            self._change = trio.Event()

    def closed(self) -> None:
        self.changed()
        self._open -= 1

    def _rest(self, connection: _Connection) -> None:
        """Until its next request comes."""
        if self.stopping.is_set():
            connection.close()
            return
        self.lobby.enter(connection)
        self.changed()

    def _serve(self, connection: _Connection) -> None:
        self.nursery.start_soon(self._connection, connection)

    async def _connection(self, connection: _Connection) -> None:
        goes_on = False
        try:
            goes_on = await connection.run()
        except (trio.BrokenResourceError, trio.TooSlowError, trio.ClosedResourceError):
            pass
        except BodyBroken as error:
            log.warning("cut a connection: %s", error)
        except Exception:
            log.exception("a connection failed")
        finally:
            if not goes_on:
                connection.close()
        if goes_on:
            self._rest(connection)


class _Connection:
    def __init__(self, stream: trio.SocketStream, server: _Server) -> None:
        self._stream = stream
        self._server = server
        with suppress(OSError):  # it is gone already, which is seen when it is read
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._reader = RequestReader()
        self._events: deque[Event] = deque()
        self._unsent: Bytes = b""
        self._scope = trio.CancelScope()

    def fileno(self) -> int:
        return self._stream.socket.fileno()

    def close(self) -> None:
        self._stream.socket.close()
        self._server.closed()

    def take_in(self) -> After:
        """In the lobby: answer what can be answered at once."""
        file = self._stream.socket.fileno()
        try:
            data = os.read(file, RECEIVE_BYTES)
        except BlockingIOError:
            return After.STAYS
        except OSError:
            return After.OVER
        if not data:
            return After.OVER
        self._events.extend(self._reader.feed(data))
        answer = self._known()
        if answer is None:
            return After.BUSY
        self._events.clear()
        try:
            self._unsent = answer[os.write(file, answer) :]
        except BlockingIOError:
            self._unsent = answer
        except OSError:
            return After.OVER
        return After.STAYS if not self._unsent and self._reader.idle else After.BUSY

    def _known(self) -> bytes | None:
        """The whole answer to what came, where it is one question that needs nobody to wait."""
        if len(self._events) != 1 or not isinstance(request := self._events[0], Request):
            return None
        plain = request.method == "GET" and request.keep_alive and not request.length
        if not plain or self._refusal(request) is not None:
            return None
        try:
            response = self._server.at_once(request)
        except Exception:
            log.exception("answering GET %s failed", request.target)
            response = short(404, "failed")
        if response is None:
            return None
        return response.wire or prepared(response).wire

    async def run(self) -> bool:
        """Until the connection waits for its next request (True), or is over."""
        unsent, self._unsent = self._unsent, b""
        if unsent:
            await self._send(unsent)
        while self._events or not self._reader.idle:
            request = await self._next()
            if request is None:
                return False
            if await self._answer(request, _Body(self, request)):
                await self._linger()
                return False
        return True

    def give_way(self) -> None:
        """Others need the place of one that waits for its request."""
        self._scope.cancel()

    async def _next(self) -> Request | None:
        """The next request, or None when the connection is over (refusals are sent here)."""
        waiting = self._server.waiting
        if not self._events:
            with trio.move_on_after(HEAD_SECONDS_MAX) as self._scope:
                waiting[self] = trio.current_time()
                self._server.changed()
                try:
                    await self._receive_head()
                finally:
                    waiting.pop(self, None)
        event = self._events.popleft() if self._events else None
        if isinstance(event, Refusal):
            await self._send(head(event.status, (), 0, last=True))
            await self._linger()
            return None
        assert not isinstance(event, bytes), "a body is taken by its _Body"
        return event

    async def _receive_head(self) -> None:
        """Until there is an event; none at the end."""
        while not self._events:
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                return
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
        start = head(response.status, response.headers, response.length, last=last)
        await self._send_response(request, response, start)
        return last

    async def _send_response(self, request: Request, response: Response, start: bytes) -> None:
        if isinstance(response.body, bytes):
            await self._send(start if request.method == "HEAD" else start + response.body)
            return
        if not isinstance(response.body, AsyncIterator):
            await self._send(start)
            if request.method != "HEAD":
                await self._pump(response.body, response.length)
            return
        async with _closing(response.body) as body:
            await self._send(start)
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

    def _refusal(self, request: Request) -> Response | None:
        """Of one that may not ask here at all."""
        if "origin" in request.headers or request.headers.get("sec-fetch-site", "none") != "none":
            return short(403, "browsers may not ask this server")
        if request.headers.get("host", "").lower() not in self._server.hosts:
            return short(403, "this server does not go by that Host")
        return None

    async def _respond(self, request: Request, body: _Body) -> Response:
        server = self._server
        if (refusal := self._refusal(request)) is not None:
            return refusal
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
