"""What waits in the kernel, by what the line carries, and what of it wakes us."""

from __future__ import annotations

import fcntl
import socket
import struct
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from libp2p.peer.id import ID
from noise.backends.default.ciphers import ChaCha20Cipher

from peer import noise
from peer.line import (
    UNSENT_BYTES_DRAINED,
    UNSENT_BYTES_MAX,
    UNSENT_BYTES_MIN,
    Line,
    fitting_unsent,
)
from peer.sessions import FastConnection
from peer.yamux import DATA, HEADER

MB = 1_000_000
SIOCOUTQ, SIOCOUTQNSD = 0x5411, 0x894B


@pytest.mark.parametrize(
    ("mb_per_second", "settles_at"),
    [(3, UNSENT_BYTES_MIN), (125, 1024 * 1024), (600, UNSENT_BYTES_MAX), (3000, UNSENT_BYTES_MAX)],
)
@pytest.mark.parametrize("start", [UNSENT_BYTES_MIN, 1024 * 1024, UNSENT_BYTES_MAX])
def test_it_settles_near_a_hundredth_of_a_second(
    mb_per_second: int, settles_at: int, start: int
) -> None:
    unsent = start
    for _ in range(8):
        unsent = fitting_unsent(unsent, MB, 1 / mb_per_second)
    assert settles_at <= unsent <= 2 * settles_at
    assert unsent == fitting_unsent(unsent, MB, 1 / mb_per_second)
    assert UNSENT_BYTES_MIN <= unsent <= UNSENT_BYTES_MAX


def test_a_clock_that_stands_still_is_a_fast_line() -> None:
    assert fitting_unsent(UNSENT_BYTES_MIN, MB, 0.0) == 2 * UNSENT_BYTES_MIN


def unsent_bytes(tcp: trio.SocketStream, question: int = SIOCOUTQNSD) -> int:
    """What the kernel has of it and did not send yet."""
    answer = fcntl.ioctl(tcp.socket.fileno(), question, bytes(4))
    return int(struct.unpack("i", answer)[0])


def unacknowledged_bytes(tcp: trio.SocketStream) -> int:
    return unsent_bytes(tcp, SIOCOUTQ)


async def connected() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a connection; the second has a small receive buffer."""
    with trio.socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        near = trio.socket.socket()
        await near.connect(listener.getsockname())
        far, _ = await listener.accept()
        return trio.SocketStream(near), trio.SocketStream(far)


def session(tcp: trio.SocketStream) -> tuple[FastConnection, noise.Sealer]:
    """A session on it, and what seals for it."""
    cipher, buffers = ChaCha20Cipher(), noise.Buffers()
    cipher.initialize(bytes(32))
    inside = cipher.cipher, cipher.format_nonce, 0, buffers
    connection = FastConnection(
        SimpleNamespace(is_initiator=True),  # type: ignore[arg-type]
        ID(b"peer"), tcp, noise.Sealer(*inside), noise.Opener(*inside), buffers, b"",
    )  # fmt: skip
    return connection, noise.Sealer(*inside)


async def test_a_turn_is_over_when_little_of_it_is_left() -> None:
    """Else fifteen connections have each a block in the kernel, and none of them in any order."""
    with trio.fail_after(10):
        tcp, far = await connected()
        connection, _ = session(tcp)
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(connection.start)
            stream = await connection.open_stream()
            await stream.write(bytes(200_000))

            async def read() -> None:
                async for _ in far:
                    pass

            nursery.start_soon(read)
            await stream.flush()
            left = unsent_bytes(tcp)
            nursery.cancel_scope.cancel()
    assert left <= UNSENT_BYTES_DRAINED


@pytest.mark.parametrize("size", [50_000, 180_000])
async def test_segments_and_messages_wake_nobody(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """As on a slow line: each segment has been taken in, or not, before the next is sent. A frame
    of 180 KB takes three messages; the first says how long it is."""
    reads: list[int | None] = []
    read = Line.read

    def count(line: Line, into: memoryview) -> int | None:
        reads.append(read(line, into))
        return reads[-1]

    monkeypatch.setattr(Line, "read", count)
    with trio.fail_after(10):
        tcp, far = await connected()
        connection, sealer = session(tcp)
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(connection.start)
            stream = await connection.open_stream()
            data = HEADER.pack(0, DATA, 0, stream._stream.id, size) + bytes(size)
            [run] = sealer.seal([data])
            for at in range(0, len(run), 1448):
                await far.send_all(run[at : at + 1448])
                while unacknowledged_bytes(far):
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
            received = 0
            while received < size:
                received += len(await stream.receive(size))
            nursery.cancel_scope.cancel()
    assert len(reads) <= 3
    assert sum(count or 0 for count in reads) == len(run)
