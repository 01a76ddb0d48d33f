"""Sockets that were there before the gateway: who asked early is answered."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.activation import inherited_listeners
from gateway.config import HTTP_PORT
from gateway.errors import ConfigError

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "docs" / "systemd"
START_SECONDS_MAX = 60


def listening() -> socket.socket:
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    found.listen()
    return found


def ask(to: socket.socket, host: str = "127.0.0.1") -> socket.socket:
    early = socket.create_connection(to.getsockname(), timeout=START_SECONDS_MAX)
    port = to.getsockname()[1]
    early.sendall(f"GET /nix-cache-info HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    return early


AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "gateway.cli", *sys.argv[2:]])
"""


def start(listener: socket.socket, store: Path) -> subprocess.Popen[bytes]:
    """As systemd does: the socket is file 3, and the process is named."""
    words = ["gateway", "--no-nix-conf", "--listen", "127.0.0.1:0", "--store", str(store)]
    return subprocess.Popen(
        [sys.executable, "-c", AS_SYSTEMD, str(listener.fileno()), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        pass_fds=[listener.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_who_asked_before_the_gateway_ran_is_answered(tmp_path: Path) -> None:
    """And again after a restart: the socket stays, and with it whoever waits."""
    with listening() as listener:
        for _ in range(2):
            early = [ask(listener), ask(listener)]
            process = start(listener, tmp_path / "store")
            try:
                for connection in early:
                    with connection:
                        assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
            finally:
                process.send_signal(signal.SIGTERM)
                out, errors = process.communicate(timeout=START_SECONDS_MAX)
            port = listener.getsockname()[1]
            assert f"ready: Nix may ask http://127.0.0.1:{port}".encode() in out, errors
            assert process.returncode == 0


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_PID": "77"}],
)
async def test_what_is_meant_for_nobody_or_another_is_left(environ: dict[str, str]) -> None:
    assert inherited_listeners(environ, 77) == []
    assert "LISTEN_FDS" not in environ


@pytest.mark.parametrize("count", ["0", "x", "-1", "1000"])
async def test_a_strange_count_is_refused(count: str) -> None:
    with pytest.raises(ConfigError):
        inherited_listeners({"LISTEN_FDS": count, "LISTEN_PID": "77"}, 77)


@pytest.mark.parametrize("kind", ["no socket", "not listening", "a unix socket", "closed"])
def test_what_is_no_listener_is_refused(kind: str) -> None:
    """In a process of its own, for it must be file 3."""
    make = {
        "no socket": "os.dup2(os.open('/dev/null', os.O_RDONLY), 3)",
        "not listening": "s = socket.socket(); os.dup2(s.fileno(), 3)",
        "a unix socket": "s = socket.socket(socket.AF_UNIX); os.dup2(s.fileno(), 3)",
        "closed": "os.closerange(3, 4)",
    }[kind]
    script = f"""
import os, socket
from gateway.activation import inherited_listeners
from gateway.errors import ConfigError
{make}
try:
    inherited_listeners({{"LISTEN_FDS": "1", "LISTEN_PID": "77"}}, 77)
except ConfigError as error:
    print("refused", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("refused")


def test_the_units_name_the_port_and_each_other() -> None:
    unit = (UNITS / "narswarm.socket").read_text()
    assert re.findall(r"^ListenStream=(.*)$", unit, re.M) == [f"127.0.0.1:{HTTP_PORT}"]
    service = (UNITS / "narswarm.service").read_text()
    assert "Requires=narswarm.socket" in service
    assert re.search(r"^ExecStart=.* gateway$", service, re.M)
    told = (ROOT / "docs" / "service.md").read_text()
    assert "narswarm.socket" in told and f"127.0.0.1:{HTTP_PORT}" in told
