"""What every Transport must do; each test runs in memory and on libp2p over loopback."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio

from peer.errors import SessionClosed, Unreachable
from peer.identity import Address, Identity
from peer.transport import PROTOCOL, MemoryNetwork, MemoryTransport, Stream, Transport

SECONDS_MAX = 20.0
KINDS = ["memory", "libp2p"]
OTHER = "/narswarm/other/1"


@pytest.fixture(autouse=True)
def sockets_left_by_libp2p() -> Iterator[None]:
    """py-libp2p 0.8.1 leaves sockets of ended dials to the collector; that must not fail others."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def maker(kind: str) -> Callable[[int], Transport]:
    """Transports of identities 1, 2, 3... that can reach each other."""
    network = MemoryNetwork()

    def make(number: int) -> Transport:
        identity = Identity(bytes([number]) * 32)
        if kind == "memory":
            return MemoryTransport(network, identity.peer_id)
        from peer.host import Libp2pTransport

        return Libp2pTransport(identity, [("127.0.0.1", 0)])

    return make


@dataclass
class Inbox:
    streams: list[Stream] = field(default_factory=list)
    arrived: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)
    other: Inbox | None = None

    async def handle(self, stream: Stream) -> None:
        self.streams.append(stream)
        self.arrived.set()
        await self.done.wait()


@asynccontextmanager
async def running(kind: str) -> AsyncIterator[tuple[Transport, Transport, Inbox, trio.Nursery]]:
    """Two transports; the inbox of the second, which has another for a second protocol."""
    make = maker(kind)
    first, second, inbox = make(1), make(2), Inbox()
    other = inbox.other = Inbox()
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            await nursery.start(first.run, {PROTOCOL: Inbox().handle})
            await nursery.start(second.run, {PROTOCOL: inbox.handle, OTHER: other.handle})
            yield first, second, inbox, nursery
            inbox.done.set()
            other.done.set()
            nursery.cancel_scope.cancel()


async def read_exactly(stream: Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        assert part, "ended early"
        data += part
    return data


async def read_to_end(stream: Stream) -> bytes:
    data = b""
    while True:
        try:
            part = await stream.receive_some(65536)
        except SessionClosed:
            return data
        if not part:
            return data
        data += part


@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_both_ways_and_proven_names(kind: str) -> None:
    async with running(kind) as (first, second, inbox, _):
        stream = await first.open(second.addresses()[0])
        await stream.send_all(b"question")
        await inbox.arrived.wait()
        theirs = inbox.streams[0]
        assert (stream.peer, theirs.peer) == (second.peer, first.peer)
        assert await read_exactly(theirs, 8) == b"question"
        await theirs.send_all(b"answer")
        assert await read_exactly(stream, 6) == b"answer"


@pytest.mark.parametrize("kind", KINDS)
async def test_many_bytes_arrive_in_order(kind: str) -> None:
    data = bytes(range(256)) * 8192
    async with running(kind) as (first, second, inbox, nursery):
        stream = await first.open(second.addresses()[0])
        nursery.start_soon(stream.send_all, data)
        await inbox.arrived.wait()
        assert await read_exactly(inbox.streams[0], len(data)) == data


@pytest.mark.parametrize("kind", KINDS)
async def test_closing_is_seen_on_the_other_side(kind: str) -> None:
    async with running(kind) as (first, second, inbox, _):
        stream = await first.open(second.addresses()[0])
        await stream.send_all(b"last words")
        await inbox.arrived.wait()
        await stream.aclose()
        await stream.aclose()
        assert await read_to_end(inbox.streams[0]) == b"last words"


@pytest.mark.parametrize("kind", KINDS)
async def test_hanging_up_ends_all_streams_with_that_peer_at_both_ends(kind: str) -> None:
    async with running(kind) as (first, second, inbox, _):
        streams = [await first.open(second.addresses()[0]) for _ in range(2)]
        for stream in streams:
            await stream.send_all(b"x")
        while len(inbox.streams) < 2:  # noqa: ASYNC110
            await trio.sleep(0.01)
        await second.hang_up(first.peer)
        await second.hang_up(first.peer)
        for stream in (*streams, *inbox.streams):
            assert len(await read_to_end(stream)) <= 1
        again = await first.open(second.addresses()[0])
        await again.send_all(b"again")
        while len(inbox.streams) < 3:  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert await read_exactly(inbox.streams[2], 5) == b"again"


async def test_libp2p_tells_where_the_other_end_is_and_that_it_is_near() -> None:
    async with running("libp2p") as (first, second, inbox, _):
        stream = await first.open(second.addresses()[0])
        await stream.send_all(b"x")
        await inbox.arrived.wait()
        assert stream.remote_host == inbox.streams[0].remote_host == "127.0.0.1"
        assert stream.is_near() and inbox.streams[0].is_near()


async def test_who_could_not_be_reached_is_dialled_again_when_asked() -> None:
    """libp2p itself would not try again for a minute."""
    make = maker("libp2p")
    first, second, inbox = make(1), make(2), Inbox()
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            await nursery.start(first.run, {PROTOCOL: Inbox().handle})
            with pytest.raises(Unreachable):
                await first.open(Address(second.peer, "127.0.0.1", 1))
            await nursery.start(second.run, {PROTOCOL: inbox.handle})
            stream = await first.open(second.addresses()[0])
            assert stream.peer == second.peer
            inbox.done.set()
            nursery.cancel_scope.cancel()


async def test_a_peer_that_vanishes_is_noticed_in_memory() -> None:
    async with running("memory") as (first, second, inbox, _):
        stream = await second.open(first.addresses()[0])
        first._network.cut(second.peer)  # type: ignore[attr-defined]
        with pytest.raises(SessionClosed):
            await stream.receive_some(1)
        with pytest.raises(SessionClosed):
            await stream.send_all(b"x")
        assert not inbox.streams


CALLER = """
import sys, trio
from peer.host import Libp2pTransport
from peer.identity import Identity, parse_address
from peer.transport import PROTOCOL

async def handle(stream):
    pass

async def main():
    transport = Libp2pTransport(Identity(b"c" * 32), [("127.0.0.1", 0)])
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, {PROTOCOL: handle})
        stream = await transport.open(parse_address(sys.argv[1]))
        await stream.send_all(b"x")
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_killed_process_is_noticed_over_libp2p() -> None:
    async with running("libp2p") as (_, second, inbox, nursery):
        command = [sys.executable, "-c", CALLER, second.addresses()[0].text]
        run = partial(trio.run_process, command, check=False)
        caller = await nursery.start(run)
        await inbox.arrived.wait()
        assert await read_exactly(inbox.streams[0], 1) == b"x"
        caller.kill()
        assert await read_to_end(inbox.streams[0]) == b""


@pytest.mark.parametrize("kind", KINDS)
async def test_nobody_there(kind: str) -> None:
    async with running(kind) as (first, _, _, _):
        with pytest.raises(Unreachable):
            await first.open(Address(Identity(b"z" * 32).peer_id, "127.0.0.1", 1))


async def test_another_peer_at_the_address_is_refused() -> None:
    """An address proves nothing: the key does."""
    async with running("libp2p") as (first, second, inbox, _):
        where = second.addresses()[0]
        with pytest.raises(Unreachable):
            await first.open(Address(Identity(b"z" * 32).peer_id, where.host, where.port))
        assert not inbox.arrived.is_set()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_reaches_the_handler_of_its_protocol(kind: str) -> None:
    async with running(kind) as (first, second, inbox, _):
        stream = await first.open(second.addresses()[0], OTHER)
        await stream.send_all(b"x")
        assert inbox.other is not None
        await inbox.other.arrived.wait()
        assert await read_exactly(inbox.other.streams[0], 1) == b"x"
        assert not inbox.streams


@pytest.mark.parametrize("kind", KINDS)
async def test_a_protocol_that_nobody_speaks_is_refused(kind: str) -> None:
    async with running(kind) as (first, second, inbox, _):
        with pytest.raises(Unreachable):
            await first.open(second.addresses()[0], "/narswarm/never/1")
        assert not inbox.streams
