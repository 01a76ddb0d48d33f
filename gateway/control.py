"""The control socket: how `narswarm status`, `explain` and `sign` ask a running process.

A Unix socket `control.sock` (0600) beside the store; one connection carries one line, `status`, or
`explain` or `sign` and what is needed for it, and gets one JSON object. Bound through
/proc/self/fd so that a long directory name does not exceed the 108 bytes that a socket address may
have.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import trio

from .errors import UsageError

SOCKET_NAME = "control.sock"
ANSWER_BYTES_MAX = 4 * 1024 * 1024
ANSWER_SECONDS_MAX = 5.0
EXPLAIN_SECONDS_MAX = 15.0
"""It asks everybody."""
QUESTION_BYTES_MAX = 1024
QUESTION_SECONDS_MAX = 2.0
CONNECTIONS_MAX = 16


Verb = Callable[[str], Awaitable[Mapping[str, object]]]
"""What follows it on the line to the answer."""


async def serve(
    directory: Path,
    status: Callable[[], Mapping[str, object]],
    verbs: Mapping[str, Verb],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled, then remove the socket. What is no verb gets the status."""
    listener = trio.socket.from_stdlib_socket(_bind(directory))
    slots = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def answer(connection: trio.socket.SocketType) -> None:
        async with slots:
            with trio.move_on_after(ANSWER_SECONDS_MAX + EXPLAIN_SECONDS_MAX):
                try:
                    stream = trio.SocketStream(connection)
                    name, _, rest = (await _question(stream)).partition(" ")
                    verb = verbs.get(name)
                    told = status() if verb is None else await verb(rest)
                    await stream.send_all(json.dumps(told).encode() + b"\n")
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
            connection.close()

    try:
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                connection, _ = await listener.accept()
                nursery.start_soon(answer, connection)
    finally:
        listener.close()
        (directory / SOCKET_NAME).unlink(missing_ok=True)


async def _question(stream: trio.SocketStream) -> str:
    line = b""
    with trio.move_on_after(QUESTION_SECONDS_MAX):
        while b"\n" not in line and len(line) < QUESTION_BYTES_MAX:
            data = await stream.receive_some(QUESTION_BYTES_MAX)
            if not data:
                break
            line += data
    return line.partition(b"\n")[0].decode(errors="replace")


def ask(
    directory: Path, question: str = "status", seconds: float = ANSWER_SECONDS_MAX
) -> dict[str, object]:
    """What the process that holds the store in `directory` answers. Raises UsageError."""
    handle, address = _address(directory)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(address)
            connection.sendall(question.encode() + b"\n")
            data = b""
            while piece := connection.recv(65536):
                data += piece
                if len(data) > ANSWER_BYTES_MAX:
                    raise UsageError(f"the process at {directory} talks without end; restart it")
    except TimeoutError as error:
        raise UsageError(f"the process at {directory} gave no answer in {seconds:.0f} s") from error
    except OSError as error:
        raise UsageError(
            f"no narswarm is running with the store {directory}; "
            "start one, or name its directory with --store"
        ) from error
    finally:
        os.close(handle)
    answer: dict[str, object] = json.loads(data)
    return answer


def _address(directory: Path) -> tuple[int, str]:
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"there is no store at {directory}; name one with --store") from error
    return handle, f"/proc/self/fd/{handle}/{SOCKET_NAME}"


def _bind(directory: Path) -> socket.socket:
    (directory / SOCKET_NAME).unlink(missing_ok=True)
    handle, address = _address(directory)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(address)
        listener.listen(CONNECTIONS_MAX)
    finally:
        os.umask(mask)
        os.close(handle)
    return listener
