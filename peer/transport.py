"""Authenticated streams between peers: the protocol, and its version in memory.

Contract (tests/contract/test_transport.py): a stream's `peer` is proven, not claimed; a peer that
vanishes shows as SessionClosed or an end of stream, never as silence alone; writers feel a reader
that does not read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import trio

from chunker.digest import Bytes

from .errors import SessionClosed, Unreachable
from .identity import Address, PeerId

PROTOCOL = "/narswarm/blocks/1"
DIAL_SECONDS_MAX = 5.0
MEMORY_BUFFER_BYTES = 256 * 1024


class Stream(Protocol):
    peer: PeerId
    remote_host: str | None
    """The address of the other end, where there is one."""

    def is_near(self) -> bool:
        """Whether the other end is on the same LAN, as far as can be told by now."""
        ...

    async def receive_some(self, bytes_max: int) -> Bytes:
        """Empty at the end. Raises SessionClosed if the stream broke."""
        ...

    async def send_all(self, *parts: Bytes) -> None:
        """All of them, in order. One writer at a time. Raises SessionClosed."""
        ...

    async def flush(self) -> None:
        """Until what was sent has left this process. Returns too when the stream broke."""
        ...

    async def aclose(self) -> None:
        """Never raises; may be called twice."""
        ...


Handler = Callable[[Stream], Awaitable[None]]


class Transport(Protocol):
    peer: PeerId

    def addresses(self) -> tuple[Address, ...]: ...

    async def run(
        self,
        handlers: Mapping[str, Handler],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen until cancelled; each inbound stream gets a task of its own, in the handler of the
        protocol that its opener named. Others are refused."""
        ...

    async def open(self, address: Address, protocol: str = PROTOCOL) -> Stream:
        """A new stream to exactly that peer. Raises Unreachable."""
        ...

    async def hang_up(self, peer: PeerId) -> None:
        """Close every connection with `peer`: the streams at both ends break. Never raises."""
        ...


class MemoryNetwork:
    """All transports of one test; `cut` takes a peer away, `restore` brings it back. `delay` says
    for how many seconds the next piece is under way; without it none is."""

    def __init__(self) -> None:
        self.delay: Callable[[], float] | None = None
        self.sites: dict[PeerId, str] = {}
        """Which LAN each is on; those that are not named share one."""
        self.transports: dict[PeerId, MemoryTransport] = {}
        self.streams: list[MemoryStream] = []
        self._away: set[PeerId] = set()

    def cut(self, peer: PeerId) -> None:
        self._away.add(peer)
        for stream in self.streams:
            if peer in (stream.peer, stream.here):
                stream.sever()

    def restore(self, peer: PeerId) -> None:
        self._away.discard(peer)

    def is_away(self, peer: PeerId) -> bool:
        return peer in self._away


class MemoryStream:
    def __init__(self, here: PeerId, peer: PeerId, network: MemoryNetwork) -> None:
        self.here = here
        self.peer = peer
        self._network = network
        self.remote_host: str | None = None
        self.other: MemoryStream | None = None
        self._buffer = bytearray()
        self._ended = False
        self._broken = False
        self._change = trio.Event()

    def is_near(self) -> bool:
        sites = self._network.sites
        return sites.get(self.here) == sites.get(self.peer)

    async def receive_some(self, bytes_max: int) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._buffer:
            if self._broken:
                raise SessionClosed(f"the stream to {self.peer} broke")
            if self._ended:
                return b""
            await self._change.wait()
        data = bytes(self._buffer[:bytes_max])
        del self._buffer[:bytes_max]
        self._wake()
        return data

    async def send_all(self, *parts: Bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self._network.delay is not None:
            await trio.sleep(self._network.delay())
        data = b"".join(parts)
        other = self.other
        assert other is not None
        for at in range(0, len(data), MEMORY_BUFFER_BYTES):
            while len(other._buffer) >= MEMORY_BUFFER_BYTES and not self._over(other):
                await other._change.wait()
            if self._over(other):
                raise SessionClosed(f"{self.peer} is gone")
            other._buffer += data[at : at + MEMORY_BUFFER_BYTES]
            other._wake()

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._ended = True
        self._wake()
        if self.other is not None:
            self.other._ended = True
            self.other._wake()

    def sever(self) -> None:
        self._broken = True
        self._buffer.clear()
        self._wake()

    def _over(self, other: MemoryStream) -> bool:
        return self._broken or self._ended or other._broken or other._ended

    def _wake(self) -> None:
        self._change.set()
        self._change = trio.Event()


class MemoryTransport:
    def __init__(self, network: MemoryNetwork, peer: PeerId) -> None:
        self.peer = peer
        self._network = network
        self._handlers: Mapping[str, Handler] = {}
        self._nursery: trio.Nursery | None = None
        network.transports[peer] = self

    def addresses(self) -> tuple[Address, ...]:
        return (Address(self.peer, "127.0.0.1", 1),)

    async def run(
        self,
        handlers: Mapping[str, Handler],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._handlers, self._nursery = handlers, nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._handlers, self._nursery = {}, None

    async def open(self, address: Address, protocol: str = PROTOCOL) -> Stream:
        await trio.lowlevel.checkpoint()
        network = self._network
        there = network.transports.get(address.peer)
        away = network.is_away(address.peer) or network.is_away(self.peer)
        handler = None if there is None else there._handlers.get(protocol)
        if there is None or away or there._nursery is None or handler is None:
            raise Unreachable(f"nobody answers at {address.text}")
        ours = MemoryStream(self.peer, there.peer, network)
        theirs = MemoryStream(there.peer, self.peer, network)
        ours.other, theirs.other = theirs, ours
        network.streams += [ours, theirs]
        there._nursery.start_soon(handler, theirs)
        return ours

    async def hang_up(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        for stream in self._network.streams:
            if {stream.here, stream.peer} == {self.peer, peer}:
                stream.sever()
