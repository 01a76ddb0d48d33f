"""What goes wrong between peers and at the border, with a real Nix that must not notice."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from chunker.digest import nix32_encode
from gateway.narinfo import parse
from gateway.program import Program
from tests.interop.conftest import Office
from tests.nix import Closure


def evil_seed(office: Office, kind: str, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("EVIL", kind)
    return office.seed("evil", "gateway", module="tests.interop.evil")


def peers_of(status: dict[str, object]) -> dict[str, dict[str, object]]:
    peers = status["peers"]
    assert isinstance(peers, list)
    return {peer["peer_id"]: peer for peer in peers}


def narinfo(url: str, path: str) -> bytes | None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("GET", f"/{path[11:43]}.narinfo")
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status in (200, 404)
    return body if answer.status == 200 else None


def test_a_peer_that_sends_corrupt_blocks_is_banned(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = evil_seed(office, "corrupt", monkeypatch)
    honest = office.seed("seed", "gateway")
    gateway = office.gateway(evil, honest)
    office.substitute("client", gateway.url)
    office.verify("client")
    status = gateway.status()
    assert status["bans"] == 1
    peers = peers_of(status)
    assert peers[office.peer_id("evil")]["blocks_received"] == 0
    assert not peers[office.peer_id("evil")]["connected"]
    assert peers[office.peer_id("seed")]["connected"]


def test_a_lying_manifest_costs_one_try_and_its_source_is_blamed(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = evil_seed(office, "manifest", monkeypatch)
    gateway = office.gateway(evil)
    largest = office.closure.largest
    assert not office.copy("deceived", gateway.url, largest, check=False)
    assert "rebuilt NAR is not what was signed" in gateway.log.read_text()
    gateway.stop()

    honest = office.seed("seed", "gateway")
    gateway = office.gateway(evil, honest)
    office.substitute("client", gateway.url)
    office.verify("client")


def test_a_silent_peer_is_left_for_another(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = evil_seed(office, "silent", monkeypatch)
    honest = office.seed("seed", "gateway")
    gateway = office.gateway(evil, honest)
    office.substitute("client", gateway.url)
    office.verify("client")
    assert gateway.status()["bans"] == 0


def test_a_rotten_block_is_found_before_it_is_sent(office: Office) -> None:
    """Bytes that rot on the seed's disk are refused there, not blamed on it by others."""
    rotten = office.seed("rotten", "gateway")
    rotten.stop()
    pack = office.top / "rotten" / "packs" / "0001.pack"
    pack = pack if pack.exists() else next((office.top / "rotten" / "packs").iterdir())
    with pack.open("r+b") as file:
        for at in range(1_000_000, pack.stat().st_size, 4_000_000):
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
    key = str(office.closure.secret)
    rotten = office.start("rotten", "seed", "--sign-key", key, *office.knows("gateway"))
    honest = office.seed("seed", "gateway")
    gateway = office.gateway(rotten, honest)
    office.substitute("client", gateway.url)
    office.verify("client")
    assert gateway.status()["bans"] == 0


def test_a_peer_killed_in_mid_transfer_is_not_noticed(office: Office) -> None:
    first = office.seed("first", "gateway")
    second = office.seed("second", "gateway")
    gateway = office.gateway(first, second)
    info = parse(narinfo(gateway.url, office.closure.largest) or b"")
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=60)
    connection.request("GET", f"/{info.url}")
    answer = connection.getresponse()
    digest = hashlib.sha256(answer.read(100_000))
    first.kill()
    while data := answer.read(65536):
        digest.update(data)
    assert digest.digest() == info.nar_hash
    connection.close()
    office.substitute("client", gateway.url)
    office.verify("client")


def test_clients_that_vanish_cost_nothing(office: Office) -> None:
    """Readers that go away in mid-body leave no fetch behind and break nothing for others."""
    seed = office.seed("seed", "gateway")
    gateway = office.gateway(seed)
    info = parse(narinfo(gateway.url, office.closure.largest) or b"")
    for stored in (False, True):
        for _ in range(5):
            connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=60)
            connection.request("GET", f"/{info.url}")
            connection.getresponse().read(100_000)
            connection.close()
        if not stored:
            office.substitute("client", gateway.url)
            office.verify("client")
    office.substitute("again", gateway.url)
    assert gateway.status()["fetching"] == []
    assert "Traceback" not in gateway.log.read_text()


@contextmanager
def cutting_proxy(url: str, after_bytes: int) -> Iterator[tuple[str, list[str]]]:
    """Forwards to the gateway, but cuts the first NAR's connection after so many bytes. Yields
    its URL and the Range headers it saw."""
    ranges: list[str] = []
    cuts = iter([True])

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            upstream = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
            asked = {"Range": self.headers["Range"]} if "Range" in self.headers else {}
            ranges.extend(asked.values())
            upstream.request(self.command, self.path, headers=asked)
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            cut = answer.length is not None and answer.length > after_bytes and next(cuts, False)
            if self.command == "GET":
                left = after_bytes if cut else answer.length or 0
                while left > 0 and (data := answer.read(min(left, 65536))):
                    self.wfile.write(data)
                    left -= len(data)
            upstream.close()
            if cut:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", ranges
        finally:
            server.shutdown()
            thread.join()


def test_a_cut_connection_is_resumed_with_a_range(office: Office) -> None:
    seed = office.seed("seed", "gateway")
    gateway = office.gateway(seed)
    with cutting_proxy(gateway.url, 5_000_000) as (url, ranges):
        office.substitute("client", url)
    office.verify("client")
    assert ranges == ["bytes=5000000-"]


def test_a_missing_path_falls_through_to_the_next_substituter(office: Office) -> None:
    seed = office.start(
        "seed", "seed", office.closure.largest, "--sign-key", str(office.closure.secret),
        *office.knows("gateway"),
    )  # fmt: skip
    gateway = office.gateway(seed)
    cache = f"file://{office.closure.cache}?priority=50"
    office.substitute("client", gateway.url, cache)
    office.verify("client")
    served = gateway.status()["served"]
    assert isinstance(served, dict)
    assert served["nars"] == 1 and served["missing"] == len(office.closure.infos) - 1


@pytest.fixture
def doctored(closure: Closure, tmp_path: Path) -> tuple[Path, str]:
    """A copy of the signed cache in which the root path has no signature."""
    cache = tmp_path / "doctored"
    shutil.copytree(closure.cache, cache)
    file = cache / f"{closure.root[11:43]}.narinfo"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("Sig:")))
    return cache, closure.root


def test_unsigned_is_not_there(office: Office, doctored: tuple[Path, str]) -> None:
    cache, path = doctored
    seed = office.start("seed", "seed", f"file://{cache}", *office.knows("gateway"))
    gateway = office.gateway(seed, more=("--upstream", f"file://{cache}"))
    assert narinfo(gateway.url, path) is None
    assert narinfo(gateway.url, office.closure.largest) is not None
    assert "no trusted key signed" in gateway.log.read_text()
    assert not office.copy("client", gateway.url, path, check=False)


def test_a_foreign_key_is_not_trusted(office: Office) -> None:
    _, foreign = office.nix.generate_key(f"foreign-{office.top.name}")
    office.trust = ["--no-nix-conf", "--trusted-public-key", foreign]
    gateway = office.gateway(more=("--upstream", f"file://{office.closure.cache}"))
    for path in office.closure.infos:
        assert narinfo(gateway.url, path) is None


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The URL of a plain HTTP server for a directory."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(directory))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def packed_cache(office: Office, compression: str) -> Path:
    cache = office.top / "cache"
    office.nix.run(
        "nix",
        "copy",
        "--to",
        f"file://{cache}?compression={compression}&compression-level=1",
        office.closure.root,
    )
    return cache


@pytest.mark.parametrize("compression", ["none", "zstd", "xz"])
def test_an_upstream_is_cut_and_stored_while_nix_gets_it(office: Office, compression: str) -> None:
    with served(packed_cache(office, compression)) as url:
        gateway = office.gateway(more=("--upstream", url))
        office.substitute("client", gateway.url)
    office.verify("client")
    assert gateway.status()["paths"] == len(office.closure.infos)
    gateway.stop()
    alone = office.start("gateway", "gateway")
    office.substitute("later", alone.url)
    office.verify("later")


def test_a_closure_seeded_from_an_http_cache(office: Office) -> None:
    with served(packed_cache(office, "zstd")) as url:
        words = [url, office.closure.root, "--closure", *office.knows("gateway")]
        seed = office.start("seed", "seed", *words)
        gateway = office.gateway(seed)
        office.substitute("client", gateway.url)
    office.verify("client")
    assert seed.status()["paths"] == len(office.closure.infos)


def test_served_narinfo_is_rebuilt_from_the_signed_fields(office: Office) -> None:
    """Whatever an upstream adds that nobody signed, Nix gets the same narinfo."""
    cache = office.top / "cache"
    shutil.copytree(office.closure.cache, cache)
    root = office.closure.root
    gateway = office.gateway(more=("--upstream", f"file://{cache}"))
    plain = narinfo(gateway.url, root)
    gateway.stop()
    file = cache / f"{root[11:43]}.narinfo"
    signed = [line for line in file.read_text().splitlines() if not line.startswith("Deriver:")]
    free = ["Deriver: 00000000000000000000000000000000-x.drv", "System: evil", "X-Unknown: 1"]
    file.write_text("\n".join([*free, "Sig: nobody-1:QUJD", *signed]) + "\n")
    gateway = office.gateway(name="other", more=("--upstream", f"file://{cache}"))
    assert narinfo(gateway.url, root) == plain
    info = office.closure.infos[root]
    assert plain is not None
    found = parse(plain)
    assert found.nar_size == info["narSize"]
    assert sorted(found.references) == sorted(info["references"])
    assert f"sha256:{nix32_encode(found.nar_hash)}" in plain.decode()
