"""An upstream's process is killed in the middle of a NAR, and Nix does not notice: another upstream
has the bytes, or a peer that came meanwhile."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.program import Program
from tests.interop.conftest import Office


class Dying:
    """The process, and what it says."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.interop.dying", str(directory)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def await_middle(self) -> None:
        assert self._line() == "held"

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def dying(office: Office) -> Iterator[Dying]:
    dying = Dying(office.closure.cache)
    yield dying
    dying.kill()


class Later(http.server.SimpleHTTPRequestHandler):
    """The same cache, which tells of a path only once the other holds a NAR: who tells first may be
    asked for the NAR, and then nothing would be held."""

    held: threading.Event

    def do_GET(self) -> None:
        if self.path.endswith(".narinfo"):
            self.held.wait()
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def later(office: Office) -> Iterator[tuple[str, threading.Event]]:
    held = threading.Event()
    handler = type("Handler", (Later,), {"held": held})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(office.closure.cache))
    ) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", held
        held.set()
        server.shutdown()
        thread.join()


def gateway(office: Office, *upstreams: tuple[str, int]) -> Program:
    """It knows the peer, which is not there yet."""
    tables = "".join(f'[[upstreams]]\nurl = "{url}"\npriority = {n}\n' for url, n in upstreams)
    file = office.top / "config.toml"
    file.write_text(tables)
    return office.start("gateway", "gateway", "--config", str(file), *office.knows("peer"))


@pytest.mark.parametrize("other", ["upstream", "peer"])
def test_nix_does_not_notice_that_an_upstream_is_killed(
    office: Office, dying: Dying, later: tuple[str, threading.Event], other: str
) -> None:
    url, held = later
    second = [(url, 1)] if other == "upstream" else []
    if other == "peer":
        office.seed("peer").stop()  # its store is full now
    program = gateway(office, (dying.url, 0), *second)
    with ThreadPoolExecutor(1) as pool:
        realised = pool.submit(office.substitute, "client", program.url)
        try:
            dying.await_middle()
            held.set()
            if other == "peer":
                office.gateway(program, name="peer")
                program.await_peers(1)
        finally:
            held.set()
            dying.kill()  # whatever went wrong: what is held keeps Nix waiting
        said = realised.result()
    office.verify("client")
    assert "error" not in said and "retrying" not in said, said
    served = program.status()["served"]
    assert isinstance(served, dict)
    assert served["nars"] == len(office.closure.infos), "each NAR in one answer, none continued"
    log = program.log.read_text()
    assert f"{dying.url} failed on" in log
    assert "cut a connection" not in log and "Traceback" not in log
