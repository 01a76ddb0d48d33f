"""Fast sessions: the shell of our Noise and Yamux on a plain TCP connection (`muxers` says where).

    socket --> noise.Opener --> yamux.Yamux --> streams' readers
    streams' writers --> yamux.Yamux --> noise.Sealer --> socket

Many messages go through each step at once: passes through trio's loop, calls and system calls cost
more than ciphers where they are made for each message. Decision 5 has the figures.
"""

from __future__ import annotations

import logging
from typing import Any

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from multiaddr import Multiaddr

from chunker.digest import Bytes

from . import noise
from .line import Line
from .yamux import (
    GO_AWAY_NORMAL,
    GO_AWAY_PROTOCOL_ERROR,
    Yamux,
    YamuxError,
    YamuxStream,
)

log = logging.getLogger(__name__)

RECEIVE_BYTES, READ_BYTES = 1024 * 1024, 64 * 1024
WAKES_BYTES_MAX = 128 * 1024
TICK_SECONDS = 5.0
CLOSE_SECONDS_MAX = 1.0
ARRIVED_MAX = 256
"""Streams that the peer opened and libp2p did not take yet. More come only from a peer that opens
and resets them at once: those count no more among its open ones, and each costs a task."""


class FastConnection(IMuxedConn):
    """libp2p runs `start` until the connection is over."""

    def __init__(
        self,
        conn: ISecureConn,
        peer_id: ID,
        tcp: trio.SocketStream,
        sealer: noise.Sealer,
        opener: noise.Opener,
        buffers: noise.Buffers,
        ahead: bytes,
    ) -> None:
        self.peer_id = peer_id
        self.secured_conn = conn
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.machine = Yamux(is_initiator=conn.is_initiator, now=trio.current_time())
        self.tcp = tcp
        self._line = Line(tcp)
        self._sealer = sealer
        self._opener = opener
        self._buffers = buffers
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
            await trio.aclose_forcefully(self.tcp)

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
        if self._sends:
            return
        with trio.move_on_after(CLOSE_SECONDS_MAX):
            for sealed in self._sealer.seal(self.machine.drain()):
                try:
                    await self._line.write(sealed)
                except OSError:
                    return

    async def _receive(self) -> None:
        if self._ahead:
            self._feed(memoryview(self._ahead))
        left: bytes | None = b""
        while left is not None:
            await self._line.readable(self._worth_waking(left))
            left = self._read(left)

    def _worth_waking(self, left: bytes) -> int:
        """The bytes behind `left` without which nothing can be done: those of a whole message, and
        of a whole frame, unless it is so long that opening it meanwhile pays."""
        frame = noise.sealed_bytes_min(self.machine.missing_bytes) - len(left)
        return max(noise.missing_bytes(left), min(frame, WAKES_BYTES_MAX))

    def _read(self, left: bytes) -> bytes | None:
        """Take in what has come, behind `left`, and give what is no whole message yet; None at the
        end."""
        buffer = self._buffers.take(RECEIVE_BYTES)
        buffer[: len(left)] = left
        count = self._line.read(buffer[len(left) :])
        if not count:
            return left if count is None else None
        sealed = buffer[: len(left) + count]
        plain, used = self._opener.open(sealed)
        if plain:
            self._feed(plain)
        return bytes(sealed[used:])

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
                for sealed in self._sealer.seal(pieces):
                    await self._line.write(sealed)
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
        """Until little of what was written is left in this machine (`Line.drained`)."""
        while not self.is_closed and (self.machine.has_outgoing or self._sends):
            await self._drained.park()
        if not self.is_closed:
            await self._line.drained()

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

    async def write(self, *parts: Bytes) -> None:
        """Returns once all of them wait for the socket; a slow reader makes it wait, for as long as
        the connection lives."""
        connection, stream = self.muxed_conn, self._stream
        for part in parts:
            left = part
            while left:
                try:
                    taken = connection.machine.write(stream, left)
                except YamuxError as error:
                    raise MuxedStreamClosed(str(error)) from error
                if taken == len(left):
                    break
                left = memoryview(left)[taken:]
                connection.wake_sender()
                if not taken and stream.sendable:
                    await connection.room()
                elif not taken:
                    await self.changed.park()
        connection.wake_sender()

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
