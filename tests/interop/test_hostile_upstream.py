"""A hostile upstream costs one clear line, bounded memory and one source; Nix has the path anyway.

Each row is a server that holds the right, signed narinfo and another way to give the NAR. Nix asks
the gateway first and an honest cache second; the path must come, whole and verified. The same
again with an honest upstream behind the hostile one: where the harm shows before the first byte,
Nix gets the path from the gateway itself.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import brotli
import pytest
import zstandard

from gateway.breaker import FAILURES_MAX
from gateway.program import Program
from tests.gateway.test_access import Proxy, ProxyHandler
from tests.gateway.test_upstream import Server
from tests.interop.conftest import Office

BOMB_BYTES = 300_000_000
GROWTH_BYTES_MAX = 150_000_000
"""Far below the bomb, above what a gateway takes for an honest NAR of this size."""
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "xz": functools.partial(lzma.compress, preset=0),
    "bzip2": functools.partial(bz2.compress, compresslevel=1),
    "gzip": functools.partial(gzip.compress, compresslevel=1),
    "zstd": zstandard.ZstdCompressor(level=1).compress,
    "br": functools.partial(brotli.compress, quality=1),
}
Page = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Harm:
    said: str
    """What the one line in the gateway's log must say."""
    page: Callable[[bytes], Page]
    """NAR -> the hostile answer."""
    compression: str = "none"
    times: int = 1
    """How often Nix makes the gateway try it again: a cut may be the network's fault."""
    early: bool = True
    """It shows before Nix has all bytes but the last block."""


def plain(change: Callable[[bytes], bytes]) -> Callable[[bytes], Page]:
    return lambda nar: (200, {}, change(nar))


def announced(length: int, body: bytes, test: str) -> Page:
    return 200, {"Content-Length": str(length), "X-Test": test}, body


def bomb(compression: str) -> Harm:
    compress = COMPRESSORS[compression]
    return Harm(
        "longer than its signed NarSize",
        lambda nar: (200, {}, compress(nar + bytes(BOMB_BYTES))),
        compression,
        early=False,
    )


HARMS = {
    "nothing": Harm("is not there", lambda nar: (404, {}, b"")),
    "an error": Harm("answered 500", lambda nar: (500, {}, b"no")),
    "another body": Harm("where 16 are the most", plain(lambda nar: b"<html>" * 100_000)),
    "another NAR": Harm(
        "has the hash", plain(lambda nar: nar[:5000] + bytes(8) + nar[5008:]), early=False
    ),
    "an end too early": Harm(
        "ends|early|inside|bytes", plain(lambda nar: nar[: len(nar) // 2]), early=False
    ),
    "a cut": Harm(
        "x.nar: ",
        lambda nar: announced(len(nar), nar[: len(nar) // 2], "cut"),
        times=FAILURES_MAX,
        early=False,
    ),
    "more than was signed": Harm("longer than", plain(lambda nar: nar + bytes(100)), early=False),
    "no end": Harm("longer than", lambda nar: announced(10**12, nar, "endless"), early=False),
    "a stall": Harm("too slow", lambda nar: announced(len(nar), nar[:9999], "stall"), early=False),
    "damaged xz": Harm("is damaged", plain(lambda nar: b"garbage!" * 1000), "xz"),
    "an unknown codec": Harm("is not known here", plain(lambda nar: nar), "lz7"),
    "a redirect to a file": Harm(
        "not safe", lambda nar: (302, {"Location": "file:///etc/passwd"}, b"")
    ),
    "a circle": Harm("redirects", lambda nar: (302, {"Location": "/nar/x.nar"}, b"")),
    **{f"a bomb in {name}": bomb(name) for name in COMPRESSORS},
}  # fmt: skip


@pytest.fixture
def hostile() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def set_up(office: Office, server: Server, harm: Harm) -> None:
    """The closure's largest path, with its right narinfo and the hostile NAR."""
    path = office.closure.largest
    name = f"{path[11:43]}.narinfo"
    text = (office.closure.cache / name).read_text()
    text = re.sub(r"(?m)^URL: .*$", "URL: nar/x.nar", text)
    text = re.sub(r"(?m)^Compression: .*$", f"Compression: {harm.compression}", text)
    text = re.sub(r"(?m)^(FileHash|FileSize): .*\n", "", text)
    server.pages[f"/{name}"] = (200, {}, text.encode())
    server.pages["/nar/x.nar"] = harm.page(office.closure.nar(path))


def later(office: Office) -> str:
    """An honest cache that Nix asks after the gateway."""
    return f"file://{office.closure.cache}?priority=90"


def peak_bytes(program: Program) -> int:
    status = Path(f"/proc/{program.process.pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


def complaints(program: Program) -> list[str]:
    """What the gateway logged, but for the rest that follows."""
    lines = program.log.read_text().splitlines()
    return [line for line in lines if "is not asked for" not in line]


@pytest.mark.parametrize("name", HARMS)
def test_nix_gets_the_path_from_the_next_substituter(
    office: Office, hostile: Server, name: str
) -> None:
    harm, path = HARMS[name], office.closure.largest
    set_up(office, hostile, harm)
    gateway = office.gateway(more=("--upstream", hostile.url))
    before = peak_bytes(gateway)
    office.substitute("client", gateway.url, later(office), path=path)
    office.verify("client", path)
    assert peak_bytes(gateway) - before < GROWTH_BYTES_MAX
    said = complaints(gateway)
    named = [line for line in said if hostile.url in line]
    assert len(named) == harm.times and all(re.search(harm.said, line) for line in named), said
    cuts = [line for line in said if "cut a connection" in line]
    assert len(cuts) <= harm.times and len(said) == len(named) + len(cuts), said
    assert hostile.seen.count("/nar/x.nar") <= harm.times or name == "a circle"
    assert "Traceback" not in gateway.log.read_text()


@pytest.mark.parametrize("name", [name for name in HARMS if HARMS[name].early])
def test_nix_gets_the_path_from_the_next_upstream(
    office: Office, hostile: Server, name: str, tmp_path: Path
) -> None:
    harm, path = HARMS[name], office.closure.largest
    set_up(office, hostile, harm)
    settings = tmp_path / "config.toml"
    honest = f"{{url = 'file://{office.closure.cache}', priority = 1}}"
    settings.write_text(f"upstreams = ['{hostile.url}', {honest}]")
    gateway = office.gateway(more=("--config", str(settings)))
    # Both say that they have it before Nix asks, so that the hostile one is preferred.
    urllib.request.urlopen(f"{gateway.url}/{path[11:43]}.narinfo").close()
    assert hostile.asked.acquire(timeout=10)
    office.substitute("client", gateway.url, path=path)
    office.verify("client", path)
    assert sum(hostile.url in line for line in complaints(gateway)) == 1
    assert hostile.seen.count("/nar/x.nar") <= 6


def test_a_public_cache_may_not_send_us_to_a_private_address(
    office: Office, hostile: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public cache lives behind a proxy, as only names can be public on a test machine."""
    set_up(office, hostile, Harm("", plain(lambda nar: nar)))
    pages = dict(hostile.pages)

    def do_get(self: ProxyHandler) -> None:
        self.server.seen.append(self.path)
        target = self.path.removeprefix("http://cache.example.com")
        status, body = 302, b""
        if target.endswith(".narinfo"):
            status, _, body = pages.get(target, (404, {}, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", f"{hostile.url}/nar/x.nar")
        self.end_headers()
        self.wfile.write(body)

    monkeypatch.setattr(ProxyHandler, "do_GET", do_get)
    with Proxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        gateway = office.gateway(more=("--upstream", "http://cache.example.com"))
        monkeypatch.delenv("http_proxy")
        path = office.closure.largest
        office.substitute("client", gateway.url, later(office), path=path)
        proxy.shutdown()
        thread.join()
    office.verify("client", path)
    said = complaints(gateway)
    assert len(said) == 1 and "private address" in said[0], said
    assert hostile.seen == []
