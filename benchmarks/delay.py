"""python -m benchmarks.delay HALF_SECONDS TARGET_PORT...: relays on loopback that hold bytes back.

One relay for each target; their ports are one line on stdout. What is read waits HALF_SECONDS and
is then sent on, in either direction, so a round trip takes twice that more. In user space, because
this kernel cannot delay packets.
"""

from __future__ import annotations

import socket
import sys
from collections import deque

import trio

READ_BYTES = 256 * 1024
UNSENT_PIECES_MAX = 4096


async def relay(source: trio.SocketStream, sink: trio.SocketStream, half_seconds: float) -> None:
    pieces: deque[tuple[float, bytes]] = deque()
    send, receive = trio.open_memory_channel[None](UNSENT_PIECES_MAX)

    async def read() -> None:
        async with send:
            while data := await source.receive_some(READ_BYTES):
                pieces.append((trio.current_time() + half_seconds, bytes(data)))
                await send.send(None)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            async for _ in receive:
                due, data = pieces.popleft()
                await trio.sleep_until(due)
                await sink.send_all(data)
            await sink.send_eof()
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # one end went away


async def serve(port: int, half_seconds: float, listener: trio.SocketListener) -> None:
    async def connection(stream: trio.SocketStream) -> None:
        async with stream, await trio.open_tcp_stream("127.0.0.1", port) as target:
            for end in (stream, target):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay, stream, target, half_seconds)
                nursery.start_soon(relay, target, stream, half_seconds)

    await trio.serve_listeners(connection, [listener])


async def main(half_seconds: float, ports: list[int]) -> None:
    async with trio.open_nursery() as nursery:
        found = []
        for port in ports:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            found.append(listener.socket.getsockname()[1])
            nursery.start_soon(serve, port, half_seconds, listener)
        print(*found, flush=True)


if __name__ == "__main__":
    trio.run(main, float(sys.argv[1]), [int(word) for word in sys.argv[2:]])
