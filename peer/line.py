"""One TCP connection as the kernel has it: what may wait there, and when it wakes us.

What waits in the kernel can no longer change its order, and being woken for less than can be used
costs more than ciphers do.
"""

from __future__ import annotations

import os
import socket

import trio

UNSENT_BYTES_MIN, UNSENT_BYTES_DRAINED = 256 * 1024, 32 * 1024
UNSENT_BYTES_MAX = 4 * 1024 * 1024
UNSENT_SECONDS = 0.01
"""In the kernel; more waits here, where its order can still change. As much as the line carries in
that time: on a fast one, being woken for less costs more than ciphers. DRAINED ends a turn: more,
of many connections, overflows a slow line's queue."""
RATED_BYTES_MIN = 256 * 1024
"""What is said of the line by less is chance."""
DRAIN_SECONDS_MAX = 1.0


def fitting_unsent(unsent: int, size: int, seconds: float) -> int:
    """Bytes to allow after `unsent`, when the line took `size` bytes in `seconds`; one step."""
    carried = size * UNSENT_SECONDS
    if carried >= 2 * unsent * seconds:
        return min(2 * unsent, UNSENT_BYTES_MAX)
    return max(unsent // 2, UNSENT_BYTES_MIN) if 2 * carried < unsent * seconds else unsent


class Line:
    def __init__(self, tcp: trio.SocketStream) -> None:
        self.tcp = tcp
        self._unsent = UNSENT_BYTES_MIN
        self._wakes_at = 1
        self._allow_unsent(UNSENT_BYTES_MIN)

    async def readable(self, size: int) -> None:
        """Until so many bytes are there, or the end. On a slow line each segment would wake us for
        nothing: forty times for each message."""
        if size != self._wakes_at:
            self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._wakes_at = size
        await trio.lowlevel.wait_readable(self.tcp.socket)

    def read(self, into: memoryview) -> int | None:
        """Bytes that were there, 0 at the end, None for nothing. Raises OSError."""
        try:
            return os.readv(self.tcp.socket.fileno(), [into])
        except BlockingIOError:
            return None

    async def write(self, data: memoryview) -> None:
        """Past trio's own sending, which passes through its loop once more for each system call.
        Raises OSError."""
        descriptor, size, began = self.tcp.socket.fileno(), len(data), trio.current_time()
        waited = False
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                waited = True
                await trio.lowlevel.wait_writable(self.tcp.socket)
        if waited and size >= RATED_BYTES_MIN:
            unsent = fitting_unsent(self._unsent, size, trio.current_time() - began)
            if unsent != self._unsent:
                self._unsent = unsent
                self._allow_unsent(unsent)

    async def drained(self) -> None:
        """Until all but UNSENT_BYTES_DRAINED is on the wire, or it is no use to wait for that."""
        watched = os.dup(self.tcp.socket.fileno())  # who writes may wait for the other one
        self._allow_unsent(UNSENT_BYTES_DRAINED)
        try:
            with trio.move_on_after(DRAIN_SECONDS_MAX):
                await trio.lowlevel.wait_writable(watched)
        finally:
            trio.lowlevel.notify_closing(watched)
            os.close(watched)
            if self.tcp.socket.fileno() >= 0:
                self._allow_unsent(self._unsent)

    def _allow_unsent(self, size: int) -> None:
        self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)
