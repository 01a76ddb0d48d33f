"""HTTP/1.1 for one handler: the only framing in this project. Requests in, answers out.

    bytes --httptools--> Request --handler--> Response --> bytes, or a cut connection

What protects the machine's user is here: an exact list of Host values (DNS rebinding), no request
with an Origin (a browser's page), caps on everything a client can make long. A body that breaks
(`BodyBroken`) or has another length than announced ends in a cut connection, never in a clean end:
Nix then resumes with a range or goes to the next substituter. A handler that fails answers 404,
because Nix 2.8 fails a whole build over a 5xx.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httptools
import trio

from chunker.digest import Bytes

from .pump import BodyBroken, Pump, Readable

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 512
HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
TARGET_BYTES_MAX = 4096
PIPELINED_REQUESTS_MAX = 64
RECEIVE_BYTES = 64 * 1024
UNSENT_BYTES = 1024 * 1024
IDLE_SECONDS_MAX = 120.0
HEAD_SECONDS_MAX = 20.0
SEND_SECONDS_MAX = 300.0
STOP_SECONDS_MAX = 10.0
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class Request:
    """`headers` have lower-case names; of several lines with one name the last counts."""

    method: str
    target: str
    headers: Mapping[str, str]
    keep_alive: bool = True


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
) -> None:
    """Until `stopping`; then no new connection, and up to 10 s for the answers under way."""
    server = _Server(handler, allowed_hosts, stopping)
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            for listener in listeners:
                accepting.start_soon(server.accept, listener, connections)
            await stopping.wait()
            accepting.cancel_scope.cancel()
        for scope in list(server.idle):
            scope.cancel()
        connections.cancel_scope.deadline = trio.current_time() + STOP_SECONDS_MAX


class _Server:
    def __init__(self, handler: Handler, hosts: frozenset[str], stopping: trio.Event) -> None:
        self.handler = handler
        self.hosts = hosts
        self.stopping = stopping
        self.idle: set[trio.CancelScope] = set()
        self.pump = Pump()
        self._slots = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        async with listener:
            while True:
                await self._slots.acquire_on_behalf_of(token := object())
                try:
                    stream = await listener.accept()
                except BaseException:
                    self._slots.release_on_behalf_of(token)
                    raise
                nursery.start_soon(self._connection, stream, token)

    async def _connection(self, stream: trio.SocketStream, token: object) -> None:
        try:
            await _Connection(stream, self).run()
        except (trio.BrokenResourceError, trio.TooSlowError, trio.ClosedResourceError):
            pass
        except BodyBroken as error:
            log.warning("cut a connection: %s", error)
        except Exception:
            log.exception("a connection failed")
        finally:
            self._slots.release_on_behalf_of(token)
            await trio.aclose_forcefully(stream)


@dataclass
class _Parsing:
    """httptools calls these by name while it is fed."""

    done: list[Request] = field(default_factory=list)
    parser: Any = None
    target: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    head_bytes: int = 0
    refusal: int = 0
    idle: bool = True

    def on_message_begin(self) -> None:
        self.target, self.headers, self.head_bytes = b"", {}, 0
        self.idle = False

    def on_url(self, part: bytes) -> None:
        self.target += part
        if len(self.target) > TARGET_BYTES_MAX:
            self._refuse(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head_bytes += len(name) + len(value)
        if len(self.headers) >= HEADERS_MAX or self.head_bytes > HEAD_BYTES_MAX:
            self._refuse(431)
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, part: bytes) -> None:
        self._refuse(413)

    def on_message_complete(self) -> None:
        if len(self.done) >= PIPELINED_REQUESTS_MAX:
            self._refuse(429)
        self.done.append(
            Request(
                self.parser.get_method().decode("latin-1"),
                self.target.decode("latin-1"),
                self.headers,
                self.parser.should_keep_alive(),
            )
        )
        self.idle = True

    def _refuse(self, status: int) -> None:
        self.refusal = self.refusal or status
        raise ValueError(f"refused with {status}")


class _Connection:
    def __init__(self, stream: trio.SocketStream, server: _Server) -> None:
        self._stream = stream
        self._server = server
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._parsing = _Parsing()
        self._parsing.parser = httptools.HttpRequestParser(self._parsing)

    async def run(self) -> None:
        while (request := await self._next()) is not None:
            stop = self._server.stopping.is_set()
            last = stop or not request.keep_alive or request.method not in ("GET", "HEAD")
            await self._answer(request, last)
            if last:
                return

    async def _next(self) -> Request | None:
        """The next request, or None when the connection is over (refusals are sent here)."""
        parsing, unparsed = self._parsing, 0
        deadline = float("inf")
        while not parsing.done:
            data = await self._receive(deadline, parsing.idle)
            if not data:
                return None
            deadline = min(deadline, trio.current_time() + HEAD_SECONDS_MAX)
            unparsed += len(data)
            try:
                parsing.parser.feed_data(data)
                if unparsed > HEAD_BYTES_MAX and not parsing.done:
                    parsing.refusal = 431
            except httptools.HttpParserUpgrade:
                return None
            except httptools.HttpParserError:
                parsing.refusal = parsing.refusal or 400
            if parsing.refusal:
                await self._send(_head(parsing.refusal, (), 0, last=True))
                return None
        return parsing.done.pop(0)

    async def _receive(self, deadline: float, idle: bool) -> bytes:
        """b"" at the end, when the time is up, or when the server stops between requests."""
        if idle and self._server.stopping.is_set():
            return b""
        limit = min(deadline, trio.current_time() + IDLE_SECONDS_MAX)
        with trio.CancelScope(deadline=limit) as scope:
            if idle:
                self._server.idle.add(scope)
            try:
                return bytes(await self._stream.receive_some(RECEIVE_BYTES))
            finally:
                self._server.idle.discard(scope)
        return b""

    async def _answer(self, request: Request, last: bool) -> None:
        response = await self._respond(request)
        head = _head(response.status, response.headers, response.length, last=last)
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

    async def _respond(self, request: Request) -> Response:
        if "origin" in request.headers:
            return _short(403, "browsers may not ask this server")
        if request.headers.get("host", "").lower() not in self._server.hosts:
            return _short(403, "this server does not go by that Host")
        if request.method not in ("GET", "HEAD"):
            return _short(405, "only GET and HEAD", ("Allow", "GET, HEAD"))
        try:
            return await self._server.handler(request)
        except Exception:
            log.exception("answering %s %s failed", request.method, request.target)
            return _short(404, "failed")

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


def _closing(body: AsyncIterator[Any]) -> aclosing[Any]:
    return aclosing(body)


def _short(status: int, text: str, *headers: tuple[str, str]) -> Response:
    body = f"{status} {text}\n".encode()
    return Response(status, (("Content-Type", "text/plain"), *headers), body, len(body))


def _head(status: int, headers: Sequence[tuple[str, str]], length: int, *, last: bool) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if last:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
