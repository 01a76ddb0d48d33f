"""How much of what we send may wait in the kernel, by what the line carries."""

from __future__ import annotations

import fcntl
import socket
import struct
from types import SimpleNamespace

import pytest
import trio
from libp2p.peer.id import ID
from noise.backends.default.ciphers import ChaCha20Cipher

from peer import noise
from peer.sessions import (
    UNSENT_BYTES_DRAINED,
    UNSENT_BYTES_MAX,
    UNSENT_BYTES_MIN,
    FastConnection,
    fitting_unsent,
)

MB = 1_000_000
SIOCOUTQNSD = 0x894B


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


def unsent_bytes(tcp: trio.SocketStream) -> int:
    """What the kernel has of it and did not send yet."""
    answer = fcntl.ioctl(tcp.socket.fileno(), SIOCOUTQNSD, bytes(4))
    return int(struct.unpack("i", answer)[0])


async def test_a_turn_is_over_when_little_of_it_is_left() -> None:
    """Else fifteen connections have each a block in the kernel, and none of them in any order."""
    with trio.fail_after(10), trio.socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        near = trio.socket.socket()
        await near.connect(listener.getsockname())
        far, _ = await listener.accept()
        tcp, cipher = trio.SocketStream(near), ChaCha20Cipher()
        cipher.initialize(bytes(32))
        buffers = noise.Buffers()
        inside = cipher.cipher, cipher.format_nonce, 0, buffers
        connection = FastConnection(
            SimpleNamespace(is_initiator=True),  # type: ignore[arg-type]
            ID(b"peer"), tcp, noise.Sealer(*inside), noise.Opener(*inside), buffers, b"",
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.start)
            stream = await connection.open_stream()
            await stream.write(bytes(200_000))

            async def read() -> None:
                with far:
                    while await far.recv(8192):
                        pass

            nursery.start_soon(read)
            await stream.flush()
            left = unsent_bytes(tcp)
            nursery.cancel_scope.cancel()
    assert left <= UNSENT_BYTES_DRAINED
