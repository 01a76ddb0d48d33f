"""An office behind one upstream: each NAR enters once, whoever is killed, and Nix has it all."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.delivery import SHARED_BYTES_MIN
from gateway.program import Program
from tests.interop.conftest import Office

BEFORE_BYTES = 1_500_000
"""Of a NAR that is held up, this much is sent."""
HELD_SECONDS_MAX = 60


class Cache(http.server.ThreadingHTTPServer):
    """A binary cache over HTTP that counts. `began`: NARs asked for, by path. While `holds` is
    set, a NAR stops after BEFORE_BYTES until `goes_on`. Each gateway has a URL of its own, so that
    it is known who asks: `holder` is whose NAR stopped first; `without` get narinfos only."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory = directory
        self.began: Counter[str] = Counter()
        self.holds = threading.Event()
        self.held = threading.Event()
        self.goes_on = threading.Event()
        self.holder = ""
        self.without: set[str] = set()

    def handle_error(self, *_: object) -> None:
        """Gateways that are killed in the middle are what these tests are about."""

    def upstream(self, name: str) -> tuple[str, str]:
        return "--upstream", f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Cache

    def do_GET(self) -> None:
        name, _, path = self.path.lstrip("/").partition("/")
        file = self.server.directory / path
        is_here = file.is_file() and not (path.startswith("nar/") and name in self.server.without)
        body = file.read_bytes() if is_here else b""
        self.send_response(200 if is_here else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if path.startswith("nar/") and is_here:
            self.server.began[path] += 1
            if self.server.holds.is_set() and len(body) > 2 * BEFORE_BYTES:
                self.wfile.write(body[:BEFORE_BYTES])
                body = body[BEFORE_BYTES:]
                self.server.holder = self.server.holder or name
                self.server.held.set()
                self.server.goes_on.wait(HELD_SECONDS_MAX)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def cache(office: Office) -> Iterator[Cache]:
    with Cache(office.closure.cache) as cache:
        thread = threading.Thread(target=cache.serve_forever, args=(0.01,))
        thread.start()
        yield cache
        cache.goes_on.set()
        cache.shutdown()
        thread.join()


def gateways(office: Office, cache: Cache, *names: str) -> list[Program]:
    """All know each other."""
    found: list[Program] = []
    for name in names:
        known = office.knows(*names[len(found) + 1 :])
        found.append(office.gateway(*found, name=name, more=(*known, *cache.upstream(name))))
    for program in found:
        program.await_peers(len(names) - 1)
    return found


@contextmanager
def realising(office: Office, *gateways: Program) -> Iterator[list[Future[str]]]:
    """A Nix at each of these gets the closure, which is awaited at the end."""
    with ThreadPoolExecutor(len(gateways)) as pool:
        yield [pool.submit(office.substitute, p.name, p.url) for p in gateways]


def large_nars(cache: Cache) -> set[str]:
    """Those that are worth the settling of who asks for them."""
    nars = cache.directory.glob("nar/*")
    return {f"nar/{file.name}" for file in nars if file.stat().st_size >= SHARED_BYTES_MIN}


def test_each_nar_leaves_the_upstream_once(office: Office, cache: Cache) -> None:
    programs = gateways(office, cache, "first", "second", "third")
    with realising(office, *programs[:2]) as done:
        pass
    for future, program in zip(done, programs, strict=False):
        future.result()
        office.verify(program.name)
    large = large_nars(cache)
    assert large
    assert {path: cache.began[path] for path in large} == dict.fromkeys(large, 1)
    assert max(cache.began.values()) <= 2
    for program in programs:
        assert program.status()["bans"] == 0
        assert "Traceback" not in program.log.read_text()


@pytest.mark.parametrize("without", ["", "first"])
def test_nix_does_not_notice_that_who_fetches_is_killed(
    office: Office, cache: Cache, without: str
) -> None:
    """In mid-transfer of the largest NAR. Without NARs at its upstream, the first depends on the
    others; with them, it may be the one that is killed, and then another Nix looks on."""
    cache.holds.set()
    cache.without = {without}
    programs = gateways(office, cache, "first", "second", "third")
    with realising(office, *programs[:2]) as done:
        assert cache.held.wait(HELD_SECONDS_MAX)
        killed = next(program for program in programs if program.name == cache.holder)
        killed.kill()
        cache.holds.clear()
        cache.goes_on.set()
    lookers_on = [
        (future, program)
        for future, program in zip(done, programs, strict=False)
        if program is not killed
    ]
    assert lookers_on
    for future, program in lookers_on:
        future.result()
        office.verify(program.name)
        assert "Traceback" not in program.log.read_text()
    assert max(cache.began[path] for path in large_nars(cache)) <= 2


def test_gateways_without_upstreams_get_a_closure_through_a_peer_that_has_one(
    office: Office, cache: Cache
) -> None:
    lan = office.start("lan", "peer", *cache.upstream("lan"), *office.knows("first", "second"))
    first = office.gateway(lan, name="first")
    with realising(office, first):
        pass
    office.verify("first")
    began = dict(cache.began)
    assert set(began.values()) == {1}
    received = lan.status()["upstream_bytes"]
    assert isinstance(received, int) and received > 20_000_000

    # It kept what passed: the next one costs the upstream nothing, and the first need not be here.
    first.stop()
    second = office.gateway(lan, name="second")
    with realising(office, second):
        pass
    office.verify("second")
    assert cache.began == began
