"""Bodies that are read without waiting for anybody, moved into a socket by one worker thread.

    a client that keeps up   a thread reads a batch into its buffer, writes it, reads the next
    one that does not        after WAIT_SECONDS what is left goes back to trio, without the thread

Passing each batch through the trio loop costs more than hashing it, so a client that keeps up is
served by a thread from beginning to end. A slow one holds no thread: the rest of its batch waits in
the loop, as every other body does. A thread's buffer is used again and again: fresh memory for each
batch would cost a page fault for each 4 KiB of it.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Sequence
from typing import Protocol

import trio

from chunker.digest import Bytes

BUFFER_BYTES = 2 * 1024 * 1024
WAIT_SECONDS = 0.005
TURN_BYTES_MAX = 64 * 1024 * 1024
"""Then another body has its turn, and a stop is heeded."""
THREADS_MAX = 16
PIECES_PER_WRITE_MAX = 512
"""Below IOV_MAX, which is 1024 on Linux."""


class BodyBroken(Exception):
    """The rest of a body is not to be had, or is wrong: the connection must be cut."""


class Readable(Protocol):
    def read(self, buffer: bytearray) -> Sequence[Bytes]:
        """The next pieces, blocking on nothing but the disk; none at the end. They may lie in
        `buffer` and count until the next call. Whatever it raises cuts the connection."""
        ...


class Pump:
    """One for all connections of a server."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(THREADS_MAX)
        self._local = threading.local()

    async def turn(self, body: Readable, file: int, most: int) -> tuple[int, list[bytes], bool]:
        """(bytes written to the socket `file`, bytes that it did not take, whether that is the
        end). Not abandoned when cancelled: the caller may close the socket afterwards. Raises
        BodyBroken before more than `most` bytes are sent, OSError, and what the body raises."""
        return await trio.to_thread.run_sync(self._push, body, file, most, limiter=self._threads)

    def _push(self, body: Readable, file: int, most: int) -> tuple[int, list[bytes], bool]:
        if not hasattr(self._local, "buffer"):
            self._local.buffer = bytearray(BUFFER_BYTES)
        sent = 0
        while sent < TURN_BYTES_MAX:
            pieces = body.read(self._local.buffer)
            if not pieces:
                return sent, [], True
            if sent + sum(map(len, pieces)) > most:
                raise BodyBroken("a body was longer than announced")
            written, left = _write(file, pieces)
            sent += written
            if left:
                return sent, [bytes(piece) for piece in left], False
        return sent, [], False


def _write(file: int, pieces: Sequence[Bytes]) -> tuple[int, list[memoryview]]:
    """To a socket that does not block: (bytes written, what it did not take). Raises OSError."""
    left = [memoryview(piece) for piece in pieces if piece]
    written = 0
    while left:
        try:
            count = os.writev(file, left[:PIECES_PER_WRITE_MAX])
        except BlockingIOError:
            if not _writable(file):
                return written, left
            continue
        written += count
        done = 0
        while done < len(left) and count >= len(left[done]):
            count -= len(left[done])
            done += 1
        del left[:done]
        if count:
            left[0] = left[0][count:]
    return written, left


def _writable(file: int) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    return bool(poll.poll(WAIT_SECONDS * 1000))
