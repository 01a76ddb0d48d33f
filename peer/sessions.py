"""Fast sessions: our Noise and Yamux in the place of libp2p's, for plain TCP connections.

    libp2p: TCP --multistream, Noise handshake, multistream--> SecureSession
    here:   its socket, keys and counters --> FastConnection (many messages per read and write)

The wire is the same, so peers with stock layers do not notice (tests/contract/test_sessions.py and
test_js.py). Stock py-libp2p carries 112 MB/s on a core, these several times as much; decision 5 has
the figures. What is not a TCP connection secured by Noise (a relay, a private network, a release of
libp2p with another inside) gets the stock Yamux.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux as StockYamux
from multiaddr import Multiaddr

from . import noise
from .yamux import (
    CONTROL_BYTES_MAX,
    FRAME_BYTES_MAX,
    GO_AWAY_NORMAL,
    GO_AWAY_PROTOCOL_ERROR,
    HEADER,
    OUTGOING_BYTES_MAX,
    Yamux,
    YamuxError,
    YamuxStream,
)

log = logging.getLogger(__name__)

RECEIVE_BYTES = 1024 * 1024
SEND_BYTES_MAX = OUTGOING_BYTES_MAX + FRAME_BYTES_MAX + CONTROL_BYTES_MAX + 2 * HEADER.size
TICK_SECONDS = 5.0
UNSENT_BYTES = 256 * 1024
"""In the kernel; more waits here, where its order can still change."""
CLOSE_SECONDS_MAX = 1.0
DRAIN_SECONDS_MAX = 1.0
READ_BYTES = 64 * 1024
ARRIVED_MAX = 256
"""Streams that the peer opened and libp2p did not take yet. More come only from a peer that opens
and resets them at once: those count no more among its open ones, and each costs a task."""


class FastMuxers(MuxerMultistream):
    """Chooses the muxer as libp2p does, and makes it a fast one where it can."""

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        protocol, muxer = await self._selector.select(
            conn, conn.is_initiator, self.negotiate_timeout
        )
        muxed: Any
        if protocol != YAMUX_ID:
            muxed = muxer(conn, peer_id)
        elif (inside := _tcp_and_ciphers(conn)) is not None:
            muxed = FastConnection(conn, peer_id, *inside)
        else:
            muxed = StockYamux(conn, peer_id, is_initiator=conn.is_initiator)
        return self._annotate_connection(muxed, conn, protocol)


def _tcp_and_ciphers(
    conn: Any,
) -> tuple[trio.SocketStream, noise.Sealer, noise.Opener, bytes] | None:
    """The inside of a session that is Noise over TCP, with what it had read ahead; else None."""
    if type(conn) is not SecureSession or type(conn.conn) is not NoiseTransportReadWriter:
        return None
    raw = conn.conn.read_writer.read_write_closer
    if type(raw) is not RawConnection or type(raw.stream) is not TrioTCPStream:
        return None
    try:
        protocol: Any = conn.conn.noise_state.noise_protocol
        ours, theirs = protocol.cipher_state_encrypt, protocol.cipher_state_decrypt
        sealer = noise.Sealer(ours.cipher.cipher, ours.n, SEND_BYTES_MAX)
        opener = noise.Opener(theirs.cipher.cipher, theirs.n)
        ahead = conn._drain(None)
    except AttributeError as error:
        log.warning("this release of libp2p has no place for fast sessions: %s", error)
        return None
    return raw.stream.stream, sealer, opener, ahead


class FastConnection(IMuxedConn):
    """libp2p runs `start` until the connection is over."""

    def __init__(
        self,
        conn: ISecureConn,
        peer_id: ID,
        tcp: trio.SocketStream,
        sealer: noise.Sealer,
        opener: noise.Opener,
        ahead: bytes,
    ) -> None:
        self.peer_id = peer_id
        self.secured_conn = conn
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.machine = Yamux(is_initiator=conn.is_initiator, now=trio.current_time())
        self._tcp = tcp
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._sealer = sealer
        self._opener = opener
        self._ahead = ahead
        self._streams: dict[YamuxStream, FastStream] = {}
        self._accepted, self._accept = trio.open_memory_channel[FastStream](ARRIVED_MAX)
        self._to_send = trio.Event()
        self._sends = False
        self._drained = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()

    # -- what libp2p asks ----------------------------------------------------------------------

    @property
    def is_initiator(self) -> bool:
        return self.secured_conn.is_initiator

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self.is_closed

    @property
    def is_closed(self) -> bool:
        return self.event_closed.is_set()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.secured_conn.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self.secured_conn.get_connection_type()

    async def open_stream(self) -> FastStream:
        if self.is_closed:
            raise MuxedConnUnavailable("the connection is closed")
        try:
            return self._wrap(self.machine.open())
        except YamuxError as error:
            raise MuxedConnUnavailable(str(error)) from error

    async def accept_stream(self) -> FastStream:
        try:
            return await self._accept.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise MuxedConnUnavailable("the connection is closed") from None

    async def close(self) -> None:
        """Say goodbye, and let what was written leave."""
        if self.is_closed:
            return
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS_MAX, shield=True):
            self.machine.go_away(GO_AWAY_NORMAL)
            self.wake_sender()
            while self._to_send.is_set() and not self.is_closed:
                await self._drained.park()
        self._end()

    # -- running -------------------------------------------------------------------------------

    async def start(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guard, self._send)
                    nursery.start_soon(self._guard, self._keep_alive)
                    self.event_started.set()
                    await self._guard(self._receive)
        finally:
            self.event_started.set()
            self._end()
            await trio.aclose_forcefully(self._tcp)

    async def _guard(self, work: Any) -> None:
        """Whatever ends one of the three ends all."""
        try:
            await work()
        except (YamuxError, noise.NoiseError) as error:
            log.info("a connection to %s is over: %s", self.peer_id, error)
            if isinstance(error, YamuxError):
                await self._say_why()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            log.debug("a connection to %s broke: %s", self.peer_id, error)
        except Exception:
            log.exception("a connection to %s failed", self.peer_id)
        self._scope.cancel()

    async def _say_why(self) -> None:
        """The last frame to a peer that broke the protocol, if nothing else is being sent."""
        self.machine.drain()
        self.machine.go_away(GO_AWAY_PROTOCOL_ERROR)
        with trio.move_on_after(CLOSE_SECONDS_MAX):
            try:
                await self._tcp.send_all(self._sealer.seal(self.machine.drain()))
            except (trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def _receive(self) -> None:
        if self._ahead:
            self._feed(memoryview(self._ahead))
        buffer = memoryview(bytearray(RECEIVE_BYTES))
        filled = 0
        while True:
            count = await self._tcp.socket.recv_into(buffer[filled:])
            if not count:
                return
            filled += count
            plain, used = self._opener.open(buffer[:filled])
            if used:
                buffer[: filled - used] = buffer[used:filled]
                filled -= used
                self._feed(plain)

    def _feed(self, plain: memoryview) -> None:
        arrived, changed = self.machine.feed(plain, trio.current_time())
        for stream in arrived:
            try:
                self._accepted.send_nowait(self._wrap(stream))
            except trio.WouldBlock:
                raise YamuxError("the peer opens streams faster than they are taken") from None
        for stream in changed:
            if (wrapped := self._streams.get(stream)) is not None:
                wrapped.changed.unpark_all()
                self._forget(stream)
        self.wake_sender()

    async def _send(self) -> None:
        while True:
            await self._to_send.wait()
            pieces = self.machine.drain()
            if pieces:
                self._sends = True
                await self._tcp.send_all(self._sealer.seal(pieces))
                self._sends = False
            if not self.machine.has_outgoing:
                self._to_send = trio.Event()
            self._drained.unpark_all()

    async def _keep_alive(self) -> None:
        while True:
            await trio.sleep(TICK_SECONDS)
            for stream in self.machine.tick(trio.current_time()):
                if (wrapped := self._streams.pop(stream, None)) is not None:
                    wrapped.changed.unpark_all()
            self.wake_sender()

    # -- for its streams -----------------------------------------------------------------------

    def wake_sender(self) -> None:
        if self.machine.has_outgoing:
            self._to_send.set()

    async def room(self) -> None:
        """Wait until the socket took something."""
        await self._drained.park()

    async def drained(self) -> None:
        """Until all but UNSENT_BYTES is on the wire, or it is no use to wait for that."""
        while self.machine.has_outgoing or self._sends:
            if self.is_closed:
                return
            await self._drained.park()
        if self.is_closed:
            return
        # A descriptor of its own: the sender may wait for the socket at the same time.
        watched = os.dup(self._tcp.socket.fileno())
        try:
            with trio.move_on_after(DRAIN_SECONDS_MAX):
                await trio.lowlevel.wait_writable(watched)
        finally:
            trio.lowlevel.notify_closing(watched)
            os.close(watched)

    def fail(self, error: YamuxError) -> None:
        log.info("a connection to %s is over: %s", self.peer_id, error)
        self._scope.cancel()

    def _wrap(self, stream: YamuxStream) -> FastStream:
        wrapped = self._streams[stream] = FastStream(self, stream)
        self.wake_sender()
        return wrapped

    def _forget(self, stream: YamuxStream) -> None:
        if stream.id not in self.machine.streams:
            self._streams.pop(stream, None)

    def _end(self) -> None:
        if self.is_closed:
            return
        self.event_closed.set()
        self._scope.cancel()
        self._accepted.close()
        self._drained.unpark_all()
        for stream, wrapped in self._streams.items():
            stream.broken = True
            wrapped.changed.unpark_all()
        self._streams.clear()


class FastStream(IMuxedStream):
    """What libp2p calls a muxed stream, and `receive_some`, `send_all` without its errors."""

    def __init__(self, connection: FastConnection, stream: YamuxStream) -> None:
        self.muxed_conn: FastConnection = connection
        self.changed = trio.lowlevel.ParkingLot()
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        if n == 0:
            return b""
        return bytes(await self.receive(READ_BYTES if n is None or n < 0 else n))

    async def receive(self, bytes_max: int) -> memoryview:
        """Without a copy. Raises MuxedStreamEOF or MuxedStreamReset."""
        stream = self._stream
        while not stream.queue:
            if stream.ended and not stream.broken:
                raise MuxedStreamEOF("the peer closed the stream")
            if stream.broken:
                raise MuxedStreamReset("the stream was reset")
            await self.changed.park()
        try:
            data = self.muxed_conn.machine.take(stream, bytes_max)
        except YamuxError as error:
            self.muxed_conn.fail(error)
            raise MuxedStreamReset(str(error)) from error
        self.muxed_conn.wake_sender()
        return data

    async def write(self, data: bytes | memoryview) -> None:
        """Returns once all of it waits for the socket; a slow reader makes it wait, for as long as
        the connection lives."""
        connection, stream = self.muxed_conn, self._stream
        left = memoryview(data)
        while left:
            try:
                taken = connection.machine.write(stream, left)
            except YamuxError as error:
                raise MuxedStreamClosed(str(error)) from error
            left = left[taken:]
            if taken:
                connection.wake_sender()
            elif stream.sendable:
                await connection.room()
            else:
                await self.changed.park()

    async def flush(self) -> None:
        await self.muxed_conn.drained()

    async def close(self) -> None:
        await self.close_write()

    async def close_write(self) -> None:
        """Our end only; what the peer still sends can be read."""
        self.muxed_conn.machine.finish(self._stream, trio.current_time())
        self._done()

    async def reset(self) -> None:
        self.muxed_conn.machine.reset(self._stream)
        self.changed.unpark_all()
        self._done()

    def _done(self) -> None:
        self.muxed_conn.wake_sender()
        self.muxed_conn._forget(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.muxed_conn.get_remote_address()

    def set_deadline(self, ttl: int) -> bool:
        return False

    async def __aenter__(self) -> FastStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
