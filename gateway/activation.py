"""Listening sockets that systemd made before this process ran (sd_listen_fds(3)).

Whoever connects while the gateway is not running waits in the socket's queue, and the connection
itself starts the gateway: Nix sees a slow first answer instead of 5 s of refused connections, and
then a cache that it leaves out. See docs/service.md for the units.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

import trio

from .errors import ConfigError

FIRST_FILE = 3
LISTENERS_MAX = 16


def inherited_listeners(
    environ: MutableMapping[str, str] | None = None, process: int | None = None
) -> list[trio.SocketListener]:
    """Those meant for this process; none without socket activation. The variables are taken out,
    so that no child takes the sockets for its own. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    count, meant_for = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if not count or meant_for != str(os.getpid() if process is None else process):
        return []
    if not (count.isascii() and count.isdigit() and 0 < int(count) <= LISTENERS_MAX):
        raise ConfigError(f"LISTEN_FDS={count!r:.20}: expected 1 to {LISTENERS_MAX} sockets")
    return [_listener(file) for file in range(FIRST_FILE, FIRST_FILE + int(count))]


def _listener(file: int) -> trio.SocketListener:
    try:
        os.set_inheritable(file, False)
        found = socket.socket(fileno=file)
    except OSError as error:
        raise ConfigError(f"file {file}, which LISTEN_FDS names, is no socket") from error
    inet = found.family in (socket.AF_INET, socket.AF_INET6)
    if not inet or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found.detach()
        raise ConfigError(
            f"the socket {file} of LISTEN_FDS does not listen on TCP; "
            "give the .socket unit ListenStream=127.0.0.1:PORT"
        )
    found.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(found))
