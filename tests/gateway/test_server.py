"""HTTP framing: Host and Origin, caps, ranges, cut bodies, a graceful stop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from gateway.pump import THREADS_MAX
from gateway.requests import HEAD_BYTES_MAX, Request
from gateway.responses import Response, Unsatisfiable, parse_range
from gateway.server import BodyBroken, serve

SECONDS_MAX = 10.0


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def broken() -> AsyncIterator[bytes]:
    yield b"half"
    raise BodyBroken("no more")


class Stored:
    """A body that is read: `parts` one after the other, an exception among them is raised."""

    def __init__(self, *parts: bytes | Exception) -> None:
        self._parts = iter(parts)

    def read(self, buffer: bytearray) -> list[bytes | memoryview]:
        """Every second piece lies in the buffer, as a store's blocks do."""
        part = next(self._parts, b"")
        if isinstance(part, Exception):
            raise part
        half = len(part) // 2
        buffer[:half] = part[:half]
        return [memoryview(buffer)[:half], part[half:]] if part else []


LARGE = [bytes([number]) * 1_000_000 for number in range(40)]


async def answer(request: Request) -> Response:
    bodies: dict[str, Callable[[], Response]] = {
        "/": lambda: Response(200, (("X-A", "b"),), b"hello", 5),
        "/stream": lambda: Response(200, (), pieces(b"hel", b"lo"), 5),
        "/short": lambda: Response(200, (), pieces(b"hel"), 5),
        "/long": lambda: Response(200, (), pieces(b"hello", b"!"), 5),
        "/broken": lambda: Response(200, (), broken(), 8),
        "/read": lambda: Response(200, (), Stored(b"hel", b"lo"), 5),
        "/read-large": lambda: Response(200, (), Stored(*LARGE), 40_000_000),
        "/read-reversed": lambda: Response(200, (), Stored(*LARGE[::-1]), 40_000_000),
        "/read-short": lambda: Response(200, (), Stored(b"hel"), 5),
        "/read-long": lambda: Response(200, (), Stored(b"hel", b"lo!"), 5),
        "/read-broken": lambda: Response(200, (), Stored(b"half", BodyBroken("no more")), 8),
    }
    if request.target == "/error":
        raise RuntimeError("a mistake of ours")
    return bodies[request.target]()


class Client:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def send(self, target: str = "/", *headers: str, method: str = "GET") -> None:
        head = [f"{method} {target} HTTP/1.1", *(headers or ("Host: localhost",))]
        await self.stream.send_all(("\r\n".join(head) + "\r\n\r\n").encode())

    async def read(self) -> bytes:
        """Until the other side closes, or nothing comes for a moment of quiet."""
        data = bytearray()
        while True:
            try:
                part = await self.stream.receive_some()
            except trio.BrokenResourceError:
                return bytes(data)
            if not part:
                return bytes(data)
            data += part

    async def ask(self, target: str = "/", *headers: str, method: str = "GET") -> bytes:
        """One request with its connection."""
        await self.send(target, *(headers or ("Host: localhost",)), "Connection: close",
                        method=method)  # fmt: skip
        return await self.read()


@asynccontextmanager
async def server() -> AsyncIterator[tuple[Callable[[], object], trio.Event]]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    stopping = trio.Event()

    streams: list[trio.SocketStream] = []

    async def connect() -> Client:
        streams.append(await trio.open_tcp_stream("127.0.0.1", port))
        return Client(streams[-1])

    async def run() -> None:
        await serve(
            listeners, answer, allowed_hosts=frozenset({"localhost", "[::1]"}), stopping=stopping
        )

    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield connect, stopping
            stopping.set()
            for stream in streams:
                await stream.aclose()


async def test_answers_with_length() -> None:
    async with server() as (connect, _):
        assert await (await connect()).ask() == (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\nConnection: close\r\n\r\nhello"
        )
        assert (await (await connect()).ask("/stream")).endswith(b"\r\n\r\nhello")


async def test_head_has_the_length_and_no_body() -> None:
    async with server() as (connect, _):
        for target in ("/", "/stream"):
            data = await (await connect()).ask(target, method="HEAD")
            assert b"Content-Length: 5\r\n" in data and data.endswith(b"\r\n\r\n")


async def test_one_connection_carries_many_requests_even_at_once() -> None:
    async with server() as (connect, _):
        client = await connect()
        for _ in range(5):
            await client.send("/stream")
        await client.send("/", "Host: localhost", "Connection: close")
        assert (await client.read()).count(b"hello") == 6


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("Host: localhost",), 200),
        (("Host: LOCALHOST",), 200),
        (("Host: [::1]",), 200),
        (("Host: evil.example",), 403),
        (("Host: localhost.evil.example",), 403),
        (("Host: localhost:99",), 403),
        (("Host: 127.0.0.1.nip.io",), 403),
        (("Host: ",), 403),
        (("X-Host: localhost",), 403),
        (("Host: localhost", "Origin: http://localhost"), 403),
        (("Host: localhost", "Origin: null"), 403),
        (("Host: localhost", "ORIGIN: https://evil.example"), 403),
    ],
)
async def test_host_and_origin(headers: tuple[str, ...], status: int) -> None:
    async with server() as (connect, _):
        data = await (await connect()).ask("/", *headers)
        assert data.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"Access-Control" not in data


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods_are_refused(method: str) -> None:
    async with server() as (connect, _):
        assert (await (await connect()).ask(method=method)).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header line\r\n\r\n",
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n" + b"x" * 99,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)  # fmt: skip
async def test_nonsense_is_refused_and_the_connection_closed(data: bytes) -> None:
    async with server() as (connect, _):
        client = await connect()
        await client.stream.send_all(data)
        answered = await client.read()
        assert not answered or answered[9:10] == b"4"
        assert b"hello" not in answered
        assert (await (await connect()).ask()).endswith(b"hello")


@pytest.mark.parametrize("piece", [b"X: " + b"y" * 1000 + b"\r\n", b"y" * 1005])
async def test_endless_headers_are_cut_off(piece: bytes) -> None:
    async with server() as (connect, _):
        client = await connect()
        await client.stream.send_all(b"GET / HTTP/1.1\r\n")
        sent = 0
        try:
            while sent < 50 * HEAD_BYTES_MAX:
                await client.stream.send_all(piece)
                sent += len(piece)
        except trio.BrokenResourceError:
            pass
        assert sent < 50 * HEAD_BYTES_MAX


async def test_a_body_that_is_read_waits_for_its_client() -> None:
    """A client that stops reading in the middle holds up nobody, and gets every byte."""
    async with server() as (connect, _):
        slow = [await connect() for _ in range(2 * THREADS_MAX)]
        for number, client in enumerate(slow):
            target = ("/read-large", "/read-reversed")[number % 2]
            await client.send(target, "Host: localhost", "Connection: close")
        assert (await (await connect()).ask("/read")).endswith(b"\r\n\r\nhello")
        for number, client in enumerate(slow[:6]):
            body = (await client.read()).partition(b"\r\n\r\n")[2]
            # Of 40 MB pytest would write a comparison for minutes.
            right = body == b"".join(LARGE[:: -1 if number % 2 else 1])
            assert right
        head = await (await connect()).ask("/read-large", method="HEAD")
        assert b"Content-Length: 40000000\r\n" in head and head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "target", ["/short", "/broken", "/long", "/read-short", "/read-broken", "/read-long"]
)
async def test_a_body_that_breaks_is_cut_and_never_ended(target: str) -> None:
    async with server() as (connect, _):
        client = await connect()
        await client.send(target)
        head, _, body = (await client.read()).partition(b"\r\n\r\n")
        announced = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        assert len(body) < announced or target == "/long"
        assert len(body) <= announced
        assert b"!" not in body


async def test_our_own_failure_is_404() -> None:
    """Nix 2.8 fails a whole build over a 5xx."""
    async with server() as (connect, _):
        assert (await (await connect()).ask("/error")).startswith(b"HTTP/1.1 404 ")


async def test_stopping_ends_idle_connections() -> None:
    async with server() as (connect, stopping):
        client = await connect()
        await client.send()
        while not (await client.stream.receive_some()).endswith(b"hello"):
            pass
        stopping.set()
        assert await client.read() == b""


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-", (0, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=10-1000", (10, 100)),
        ("bytes=99-", (99, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=100-", Unsatisfiable()),
        ("bytes=-0", Unsatisfiable()),
        ("bytes=5-4", None),
        ("bytes=0-1,5-6", None),
        ("bytes=a-b", None),
        ("bytes=-", None),
        ("lines=0-1", None),
        ("bytes=" + "9" * 40 + "-", None),
    ],
)
def test_ranges(header: str | None, expected: object) -> None:
    assert parse_range(header, 100) == expected
