"""Clients that are many, slow or silent, and a server that stops: nobody holds up the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from gateway import server as server_module
from gateway.requests import Request
from gateway.responses import Response
from gateway.server import serve

SECONDS_MAX = 10.0
ROOT = Path(__file__).parents[2]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Place:
    """A server whose `/slow` gives its second half when it is let."""

    def __init__(self, port: int, stopping: trio.Event) -> None:
        self.port = port
        self.stopping = stopping
        self.go_on = trio.Event()
        self.put_bytes: list[int] = []
        self.ended = trio.Event()

    async def answer(self, request: Request) -> Response:
        if request.target == "/slow":
            return Response(200, (), self.halves(), 8)
        if request.target == "/endless":
            return Response(200, (), endless(), 1 << 40)
        return Response(200, (), b"hello", 5)

    async def put(self, request: Request, pieces: AsyncGenerator[bytes, None]) -> Response:
        if request.target == "/unread":
            return Response(200, (), b"hello", 5)
        self.put_bytes.append(0)
        async for piece in pieces:
            self.put_bytes[-1] += len(piece)
        return Response(200, (), b"hello", 5)

    async def halves(self) -> AsyncIterator[bytes]:
        yield b"half"
        await self.go_on.wait()
        yield b"half"

    async def connect(self, data: bytes = b"") -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        await stream.send_all(data)
        return stream


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(1_000_000)


@asynccontextmanager
async def served() -> AsyncIterator[Place]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    place = Place(listeners[0].socket.getsockname()[1], trio.Event())

    async def run() -> None:
        await serve(
            listeners, place.answer, allowed_hosts=frozenset({"a"}), stopping=place.stopping,
            put=place.put,
        )  # fmt: skip
        place.ended.set()

    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield place
            place.stopping.set()


async def rest(stream: trio.SocketStream) -> bytes:
    """What comes until the other side closes, gracefully or not."""
    data = b""
    async with stream:
        try:
            async for part in stream:
                data += part
        except trio.BrokenResourceError:
            pass
    return data


async def read(stream: trio.SocketStream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        data += await stream.receive_some()
    return data


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET])
async def test_when_all_places_are_taken_the_longest_waiting_goes(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent, half a head, or idle after an answer: 100 of them do not keep the next one out."""
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 8)
    async with served() as place:
        waiting = []
        for _ in range(100):
            waiting.append(await place.connect(sent))
            if sent == GET:
                await read(waiting[-1], b"hello")
        last = await place.connect(GET)
        assert (await read(last, b"hello")).startswith(b"HTTP/1.1 200 ")
        assert await rest(waiting[0]) in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        for stream in (*waiting, last):
            await stream.aclose()


async def test_an_answer_under_way_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 2)
    async with served() as place:
        asked = GET.replace(b"/ ", b"/slow ", 1)
        slow = await place.connect(asked[:10])
        await trio.testing.wait_all_tasks_blocked(0.02)
        await slow.send_all(asked[10:])
        await read(slow, b"half")
        others = []
        for _ in range(5):
            others.append(await place.connect(GET))
            await read(others[-1], b"hello")
        place.go_on.set()
        assert await read(slow, b"half") == b"half"
        for stream in (slow, *others):
            await stream.aclose()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET + b"GET / HTTP/1.1\r\nHo"])
async def test_slow_heads_end(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, and a byte now and then: neither holds a connection for long."""
    monkeypatch.setattr(server_module, "IDLE_SECONDS_MAX", 0.2)
    monkeypatch.setattr(server_module, "HEAD_SECONDS_MAX", 0.2)
    async with served() as place:
        stream = await place.connect(sent)
        assert (await rest(stream)).count(b"hello") == sent.count(b"\r\n\r\n")


async def test_dripping_does_not_prolong_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEAD_SECONDS_MAX", 0.3)
    async with served() as place:
        stream = await place.connect(b"GET / HTTP/1.1\r\nX: ")
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"y")
                await trio.sleep(0.02)
        await stream.aclose()


async def test_who_reads_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SEND_SECONDS_MAX", 0.2)
    async with served() as place:
        deaf = await place.connect(GET.replace(b"/ ", b"/endless ", 1))
        place.stopping.set()  # no end of the server before that of its answers
        await place.ended.wait()
        await deaf.aclose()


async def test_who_stops_sending_a_body_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BODY_SECONDS_MAX", 0.2)
    async with served() as place:
        stream = await place.connect(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
        assert await rest(stream) == b""
        assert place.put_bytes == [4]


async def test_a_body_then_the_next_request() -> None:
    async with served() as place:
        head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n"
        stream = await place.connect((head + bytes(200_000)) * 3 + GET)
        data = b""
        while data.count(b"hello") < 4:
            data += await stream.receive_some()
        assert place.put_bytes == [200_000] * 3
        await stream.aclose()


async def test_a_body_that_nobody_reads_closes_behind_the_answer() -> None:
    """What follows would be read as a request: a body may look like one."""
    async with served() as place:
        head = b"PUT /unread HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(GET)
        data = await rest(await place.connect(head + GET))
        assert data.count(b"HTTP/1.1 ") == 1 and b"Connection: close" in data


async def test_requests_before_nonsense_are_answered_first() -> None:
    async with served() as place:
        data = await rest(await place.connect(GET + GET + b"nonsense\r\n\r\n"))
        assert [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"400"]


async def test_stopping_finishes_what_is_under_way() -> None:
    async with served() as place:
        slow = await place.connect(GET.replace(b"/ ", b"/slow ", 1))
        idle = await place.connect()
        await read(slow, b"half")
        place.stopping.set()
        assert await rest(idle) == b""
        with pytest.raises(OSError):
            while True:  # the listener closes in its own time
                await (await place.connect()).aclose()
        assert not place.ended.is_set()
        place.go_on.set()
        assert await rest(slow) == b"half"
        await place.ended.wait()


SLOW_GATEWAY = """
import os, sys, trio
import gateway.substituter
from gateway.cli import main
from gateway.responses import Response

async def never():
    yield b"half"
    await trio.sleep_forever()

async def answer(self, request):
    return Response(200, (), never(), 8)

gateway.substituter.Substituter.answer = answer
sys.exit(main(sys.argv[1:]))
"""


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """The real program, with an answer that never ends."""
    import socket

    words = ["gateway", "--no-nix-conf", "--listen", "127.0.0.1:0", "--http-port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_GATEWAY, *words, "--store", str(tmp_path / "store")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().strip().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS_MAX) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            data = b""
            while not data.endswith(b"half"):
                data += client.recv(100)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS_MAX) == 0
    finally:
        process.kill()
        process.communicate()
