"""Connections between two requests, and answers that need nobody to wait."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from gateway import server as server_module
from gateway.requests import Request
from gateway.responses import Response, prepared
from gateway.server import serve

SECONDS_MAX = 10.0
LARGE_BYTES = 30_000_000
GET = b"GET /known HTTP/1.1\r\nHost: a\r\n\r\n"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@dataclass
class Place:
    port: int
    at_once: list[str] = field(default_factory=list)
    awaited: list[str] = field(default_factory=list)

    def answer_at_once(self, request: Request) -> Response | None:
        if request.target == "/broken":
            raise ValueError("broken")
        if request.target == "/large":
            return prepared(Response(200, (), bytes(LARGE_BYTES), LARGE_BYTES))
        if request.target != "/known":
            return None
        self.at_once.append(request.target)
        return prepared(Response(200, (), b"hello", 5))

    async def answer(self, request: Request) -> Response:
        self.awaited.append(f"{request.method} {request.target}")
        return Response(200, (), b"hello", 5)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@asynccontextmanager
async def served() -> AsyncIterator[Place]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    place = Place(listeners[0].socket.getsockname()[1])
    stopping = trio.Event()

    async def run() -> None:
        answers = place.answer, place.answer_at_once
        await serve(listeners, *answers, allowed_hosts=frozenset({"a"}), stopping=stopping)

    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield place
            stopping.set()


async def exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        assert part, data[-200:]
        data += part
    return data


async def test_what_is_known_is_answered_without_a_task() -> None:
    async with served() as place, await place.connect() as stream:
        for _ in range(5):
            await stream.send_all(GET)
            assert await exactly(stream, len(HELLO)) == HELLO
        assert (len(place.at_once), place.awaited) == (5, [])


async def test_known_and_unknown_take_turns_on_one_connection() -> None:
    async with served() as place, await place.connect() as stream:
        for _ in range(3):
            await stream.send_all(GET + GET.replace(b"known", b"other") + GET)
            assert await exactly(stream, 3 * len(HELLO)) == 3 * HELLO
            await stream.send_all(GET)
            assert await exactly(stream, len(HELLO)) == HELLO
        assert len(place.at_once) == 3, "what came together is answered in order, by one task"
        assert len(place.awaited) == 9


async def test_a_request_in_pieces_is_answered() -> None:
    async with served() as place, await place.connect() as stream:
        await stream.send_all(GET[:20])
        await trio.testing.wait_all_tasks_blocked(0.02)
        await stream.send_all(GET[20:] + GET)
        assert await exactly(stream, 2 * len(HELLO)) == 2 * HELLO
        await stream.send_all(GET)
        assert await exactly(stream, len(HELLO)) == HELLO
        assert len(place.at_once) == 1


async def test_half_a_head_behind_a_known_answer_does_not_wait_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "HEAD_SECONDS_MAX", 0.1)
    async with served() as place, await place.connect() as stream:
        await stream.send_all(GET + GET[:10])
        assert await exactly(stream, len(HELLO)) == HELLO
        assert await stream.receive_some() == b""
        assert len(place.at_once) == 1


@pytest.mark.parametrize(
    "line",
    [b"Host: evil", b"Host: a\r\nOrigin: http://evil", b"Host: a\r\nSec-Fetch-Site: same-site"],
)
async def test_who_may_not_ask_gets_nothing_that_is_known(line: bytes) -> None:
    async with served() as place, await place.connect() as stream:
        await stream.send_all(GET.replace(b"Host: a", line))
        assert (await exactly(stream, 13)) == b"HTTP/1.1 403 "
        assert place.at_once == []


@pytest.mark.parametrize("method", [b"HEAD", b"DELETE", b"PUT"])
async def test_other_methods_have_a_task(method: bytes) -> None:
    async with served() as place, await place.connect() as stream:
        await stream.send_all(GET.replace(b"GET", method))
        await exactly(stream, 13)
        assert place.at_once == []


async def test_the_last_answer_of_a_connection_ends_it() -> None:
    async with served() as place, await place.connect() as stream:
        await stream.send_all(GET.replace(b"Host: a", b"Host: a\r\nConnection: close"))
        assert b"Connection: close" in await exactly(stream, len(HELLO) + 19)
        assert await stream.receive_some() == b""


async def test_a_known_answer_that_breaks_is_404_and_the_connection_goes_on() -> None:
    async with served() as place, await place.connect() as stream:
        await stream.send_all(GET.replace(b"known", b"broken"))
        assert await exactly(stream, 13) == b"HTTP/1.1 404 "
        while not (await stream.receive_some()).endswith(b"failed\n"):
            pass
        await stream.send_all(GET)
        assert await exactly(stream, len(HELLO)) == HELLO


async def test_what_the_socket_does_not_take_at_once_comes_later() -> None:
    async with served() as place, await place.connect() as stream:
        await stream.send_all(GET.replace(b"known", b"large"))
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {LARGE_BYTES}\r\n\r\n".encode()
        left = LARGE_BYTES + len(head)
        while left:
            left -= len(await stream.receive_some(min(left, 1_000_000)))
        await stream.send_all(GET)
        assert await exactly(stream, len(HELLO)) == HELLO


async def test_a_client_that_goes_takes_nothing_with_it() -> None:
    async with served() as place:
        for data in (b"", GET[:10], GET):
            gone = await place.connect()
            await gone.send_all(data)
            await gone.aclose()
        async with await place.connect() as stream:
            await stream.send_all(GET)
            assert await exactly(stream, len(HELLO)) == HELLO
