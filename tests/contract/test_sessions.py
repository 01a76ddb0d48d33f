"""Our sessions against py-libp2p's own, each as the dialer and as the listener."""

from __future__ import annotations

import gc
import logging
import random
import socket
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.ping import PingService
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport

from peer import muxers, sessions, yamux
from peer.errors import SessionClosed
from peer.host import Libp2pTransport
from peer.muxers import FastMuxers
from peer.sessions import ARRIVED_MAX, FastConnection, FastStream
from peer.transport import PROTOCOL, Stream
from peer.yamux import HEADER, OUTGOING_BYTES_MAX, RST, SYN, WINDOW_BYTES_MIN, WINDOW_UPDATE
from tests.peer.office import until

from .sessions import ciphers, echo, muxer, transport

SECONDS_MAX = 30.0
PAIRS = [
    ("fast", "stock"),
    ("stock", "fast"),
    ("fast", "fast"),
    ("fast", "chacha"),
    ("chacha", "fast"),
]
CLASSES = {"fast": "FastConnection", "chacha": "FastConnection", "stock": "Yamux"}
ECHO_BYTES = 3_000_000


@pytest.fixture(autouse=True)
def sockets_left_by_libp2p() -> Iterator[None]:
    """py-libp2p 0.8.1 leaves sockets of ended dials to the collector; that must not fail others."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@asynccontextmanager
async def talking(dialer: str, listener: str) -> AsyncIterator[tuple[Libp2pTransport, ...]]:
    first, second = transport(dialer, 1), transport(listener, 2)
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            await nursery.start(first.run, {PROTOCOL: echo})
            await nursery.start(second.run, {PROTOCOL: echo})
            yield first, second
            nursery.cancel_scope.cancel()


async def echoed(stream: Stream, data: bytes) -> bytes:
    got = bytearray()

    async def read() -> None:
        while len(got) < len(data):
            piece = await stream.receive_some(100_000)
            assert piece, "ended early"
            got.extend(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await stream.send_all(data)
    return bytes(got)


@pytest.mark.parametrize(("dialer", "listener"), PAIRS)
async def test_bytes_come_back_as_they_were(dialer: str, listener: str) -> None:
    data = random.Random(1).randbytes(ECHO_BYTES)
    async with talking(dialer, listener) as (first, second):
        stream = await first.open(second.addresses()[0])
        assert await echoed(stream, data) == data
        assert (muxer(first), muxer(second)) == (CLASSES[dialer], CLASSES[listener])
        both_say_aes = dialer == listener == "fast"
        cipher = "AESGCM" if both_say_aes else "ChaCha20Poly1305"
        assert ciphers(first) == ciphers(second) == {cipher}
        assert await echoed(stream, b"again") == b"again"


@pytest.mark.parametrize(("dialer", "listener"), PAIRS)
async def test_libp2p_protocols_run_over_it(dialer: str, listener: str) -> None:
    async with talking(dialer, listener) as (first, second):
        await first.open(second.addresses()[0])
        peer = ID.from_base58(second.peer)
        assert len(await PingService(first._host).ping(peer, 3)) == 3
        # Identify runs by itself.
        await until(lambda: bool(first._host.get_peerstore().get_protocols(peer)))
        assert "/narswarm/blocks/1" in first._host.get_peerstore().get_protocols(peer)


@pytest.mark.parametrize(("dialer", "listener"), PAIRS)
async def test_several_streams_do_not_mix(dialer: str, listener: str) -> None:
    chance = random.Random(2)
    async with talking(dialer, listener) as (first, second):
        got: dict[int, bool] = {}

        async def one(number: int, data: bytes) -> None:
            stream = await first.open(second.addresses()[0])
            got[number] = await echoed(stream, data) == data
            await stream.aclose()

        await first.open(second.addresses()[0])
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(one, number, chance.randbytes(200_000))
        assert got == dict.fromkeys(range(6), True)


def only_connection(transport: Libp2pTransport) -> FastConnection:
    (connections,) = transport._host.get_network().connections.values()
    connection = connections[0].muxed_conn
    assert isinstance(connection, FastConnection)
    return connection


async def test_streams_that_ended_are_forgotten() -> None:
    async with talking("fast", "fast") as (first, second):
        for _ in range(20):
            stream = await first.open(second.addresses()[0])
            assert await echoed(stream, b"x") == b"x"
            await stream.aclose()
        connection = only_connection(first)
        await until(lambda: not connection.machine.streams)  # the other side closes its ends too
        assert connection._streams == {}


async def test_a_reader_that_stops_holds_the_writer_and_costs_no_more() -> None:
    """Stock Yamux kills the writer after five seconds; ours waits, with bounded buffers."""
    halfway = trio.Event()

    async def reads_late(stream: Stream) -> None:
        await halfway.wait()
        left = ECHO_BYTES
        while left:
            left -= len(await stream.receive_some(left))
        await stream.send_all(b"done")

    first, second = transport("fast", 1), transport("fast", 2)
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            await nursery.start(first.run, {PROTOCOL: echo})
            await nursery.start(second.run, {PROTOCOL: reads_late})
            stream = await first.open(second.addresses()[0])
            finished = trio.Event()

            async def write() -> None:
                await stream.send_all(bytes(ECHO_BYTES))
                finished.set()

            nursery.start_soon(write)
            fast = stream._fast  # type: ignore[attr-defined]
            assert isinstance(fast, FastStream)
            machine = fast.muxed_conn.machine
            (theirs,) = second._host.get_network().connections.values()

            def queued() -> int:
                return sum(s.queued for s in theirs[0].muxed_conn.machine.streams.values())

            await until(lambda: not fast._stream.sendable and not machine.has_outgoing)
            await until(lambda: queued() > WINDOW_BYTES_MIN // 2)
            assert not finished.is_set()
            assert fast.muxed_conn.machine.outgoing_bytes <= OUTGOING_BYTES_MAX
            assert queued() <= WINDOW_BYTES_MIN
            halfway.set()
            await finished.wait()
            assert bytes(await stream.receive_some(4)) == b"done"
            nursery.cancel_scope.cancel()


async def test_a_cancelled_write_leaves_the_connection_whole() -> None:
    """Frames enter the buffer whole: who gives up in between tears nothing."""
    async with talking("fast", "stock") as (first, second):
        stream = await first.open(second.addresses()[0])
        other = await first.open(second.addresses()[0])
        with trio.move_on_after(0.05) as scope:
            await stream.send_all(bytes(50_000_000))  # nobody reads what is echoed
        assert scope.cancelled_caught
        assert await echoed(other, b"still here") == b"still here"


async def test_streams_that_are_opened_and_reset_at_once_end_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "peer.sessions")
    async with talking("fast", "fast") as (first, second):
        stream = await first.open(second.addresses()[0])
        assert await echoed(stream, b"x") == b"x"
        connection = only_connection(first)
        flood = [
            HEADER.pack(0, WINDOW_UPDATE, flags, number, 0)
            for number in range(10_001, 10_001 + 8 * ARRIVED_MAX, 2)
            for flags in (SYN, RST)
        ]
        connection.machine._outgoing.append(b"".join(flood))
        connection.wake_sender()
        await until(lambda: not second._host.get_network().connections)
    assert "faster than they are taken" in caplog.text


async def test_what_was_written_leaves_before_the_goodbye() -> None:
    data = random.Random(4).randbytes(200_000)
    got, ended = bytearray(), trio.Event()

    async def reads_all(stream: Stream) -> None:
        with pytest.raises(SessionClosed):
            while piece := await stream.receive_some(65536):
                got.extend(piece)
        ended.set()

    first, second = transport("fast", 1), transport("fast", 2)
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            await nursery.start(first.run, {PROTOCOL: echo})
            await nursery.start(second.run, {PROTOCOL: reads_all})
            stream = await first.open(second.addresses()[0])
            await until(lambda: bool(second._host.get_network().connections))
            theirs, ours = only_connection(second).machine, only_connection(first)
            # The kernel takes it in several steps, each when the last has left.
            ours.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await stream.send_all(data)
            await ours.close()
            await ended.wait()
            assert bytes(got) == data and theirs.gone_away
            nursery.cancel_scope.cancel()


async def test_a_peer_that_answers_no_ping_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in (
        (sessions, "TICK_SECONDS", 0.02), (yamux, "PING_SECONDS", 0.1),
        (yamux, "SILENCE_SECONDS_MAX", 3.0),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, seconds)
    async with talking("fast", "fast") as (first, second):
        stream = await first.open(second.addresses()[0])
        await until(lambda: only_connection(first).machine._pings > 3)
        assert await echoed(stream, b"x") == b"x"
        monkeypatch.setattr(only_connection(second), "wake_sender", lambda: None)
        with pytest.raises(SessionClosed):
            await stream.receive_some(1)


async def test_garbage_after_the_handshake_ends_the_connection() -> None:
    async with talking("fast", "fast") as (first, second):
        stream = await first.open(second.addresses()[0])
        assert await echoed(stream, b"x") == b"x"
        await only_connection(first).tcp.send_all(b"\x00\x20" + bytes(32))
        with pytest.raises(SessionClosed):
            while await stream.receive_some(100):
                pass
        await until(lambda: not second._host.get_network().connections)


async def test_without_noise_the_stock_muxer_is_used() -> None:
    hosts = []
    for number in (1, 2):
        keys = create_new_key_pair(bytes([number]) * 32)
        host = new_host(
            key_pair=keys,
            sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)},
            muxer_preference="YAMUX",
        )
        host.get_network().upgrader.muxer_multistream = FastMuxers(  # type: ignore[attr-defined]
            {muxers.YAMUX_ID: muxers.StockYamux}
        )
        hosts.append(host)
    first, second = hosts
    with trio.fail_after(SECONDS_MAX):
        async with first.run(listen_addrs=[]), second.run(listen_addrs=LOOPBACK):
            await first.connect(PeerInfo(second.get_id(), second.get_addrs()))
            (connections,) = first.get_network().connections.values()
            assert type(connections[0].muxed_conn).__name__ == "Yamux"
            assert len(await PingService(first).ping(second.get_id(), 1)) == 1


LOOPBACK = [sessions.Multiaddr("/ip4/127.0.0.1/tcp/0")]
