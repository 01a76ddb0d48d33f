"""Upstreams that are good, missing, hostile, or elsewhere than they say."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import zstandard

from gateway import handles as handles_module
from gateway import pages as pages_module
from gateway import upstream as upstream_module
from gateway.errors import UpstreamError
from gateway.narinfo import parse
from gateway.redirects import is_public, is_safe_redirect
from gateway.transfers import Transfers
from gateway.upstream import FileCache, HttpCache, open_cache
from tests.gateway.test_narinfo import ROOT

INFO = replace(parse(ROOT), nar_size=300_000, url="nar/x.nar", compression="none")
HASH = INFO.store_path[11:43]
NAR = bytes(range(250)) * 1200


class Server(http.server.ThreadingHTTPServer):
    """`pages`: target -> (status, headers, body). `seen`: what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.seen: list[str] = []
        self.released = threading.Event()
        self.asked = threading.Semaphore(0)

    def handle_error(self, *_: object) -> None:
        """Clients that go away in the middle are what these tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        self.server.asked.release()
        status, headers, body = self.server.pages.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
            if headers.get("X-Test") == "stall":
                self.wfile.flush()
                self.server.released.wait()
            while headers.get("X-Test") == "endless":
                self.wfile.write(bytes(65536))
        except OSError:
            pass
        if "X-Test" in headers:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
async def transfers(nursery: trio.Nursery) -> Transfers:
    transfers = Transfers()
    await nursery.start(transfers.run)
    return transfers


@pytest.fixture(params=["thread", "transfers"])
def cache(
    server: Server, transfers: Transfers, request: pytest.FixtureRequest
) -> Iterator[HttpCache]:
    """Its narinfos in a thread of their own, or many at once; its NARs alike."""
    cache = HttpCache(server.url, None, transfers if request.param == "transfers" else None)
    yield cache
    cache.close()


async def read(cache: HttpCache | FileCache, info: object = INFO) -> bytes:
    data = b""
    async with cache.nar(info) as pieces:  # type: ignore[arg-type]
        async for piece in pieces:
            data += piece
    return data


@contextmanager
def one_error() -> Iterator[pytest.ExceptionInfo[UpstreamError]]:
    """Exactly an UpstreamError, not a group of some."""
    with pytest.raises(UpstreamError) as caught:
        yield caught


async def test_narinfo_there_and_not_there(server: Server, cache: HttpCache) -> None:
    server.pages[f"/{HASH}.narinfo"] = (200, {}, ROOT)
    assert await cache.narinfo(HASH) == parse(ROOT)
    assert await cache.narinfo("0" * 32) is None


@pytest.mark.parametrize("status", [401, 403, 410])
async def test_refused_counts_as_not_there(server: Server, cache: HttpCache, status: int) -> None:
    server.pages[f"/{HASH}.narinfo"] = (status, {}, b"")
    assert await cache.narinfo(HASH) is None


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b""), (429, b""), (200, b"<html>"), (200, b""), (200, b"x" * (2 << 20))],
)
async def test_nonsense_is_an_error_of_the_upstream(
    server: Server, cache: HttpCache, status: int, body: bytes
) -> None:
    server.pages[f"/{HASH}.narinfo"] = (status, {}, body)
    with one_error():
        await cache.narinfo(HASH)


async def test_the_narinfo_of_another_path_is_an_error(server: Server, cache: HttpCache) -> None:
    other = "0" * 32
    server.pages[f"/{other}.narinfo"] = (200, {}, ROOT)
    with one_error() as caught:
        await cache.narinfo(other)
    assert "answered for" in str(caught.value)


async def test_nobody_listens() -> None:
    cache = HttpCache("http://127.0.0.1:1")
    with one_error():
        await cache.narinfo(HASH)
    cache.close()


async def test_a_nar_plain_and_compressed(server: Server, cache: HttpCache) -> None:
    server.pages["/nar/x.nar"] = (200, {}, NAR)
    assert await read(cache) == NAR
    server.pages["/nar/x.nar"] = (200, {}, zstandard.ZstdCompressor().compress(NAR))
    assert await read(cache, replace(INFO, compression="zstd")) == NAR


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ((404, {}, b""), "not there"),
        ((500, {}, b""), "answered 500"),
        ((200, {}, NAR + b"x"), "longer than its signed NarSize"),
        ((200, {"Content-Length": "400000", "X-Test": "cut"}, NAR[:1000]), "x.nar: "),
        ((200, {"Content-Length": "99999999999", "X-Test": "endless"}, b""), "longer than"),
    ],
)  # fmt: skip
async def test_a_bad_nar(
    server: Server, cache: HttpCache, page: tuple[int, dict[str, str], bytes], reason: str
) -> None:
    server.pages["/nar/x.nar"] = page
    with one_error() as caught:
        await read(cache)
    assert reason in str(caught.value)


async def test_a_stalling_nar_is_given_up(
    server: Server, cache: HttpCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles_module, "STALL_SECONDS_MAX", 1)
    server.pages["/nar/x.nar"] = (200, {"Content-Length": "300000", "X-Test": "stall"}, NAR[:10])
    with one_error() as caught:
        await read(cache)
    assert "too slow" in str(caught.value)


async def test_a_reader_that_goes_away_ends_the_download(server: Server, cache: HttpCache) -> None:
    server.pages["/nar/x.nar"] = (200, {"Content-Length": "300000", "X-Test": "stall"}, NAR[:10])
    with trio.fail_after(10):
        with trio.move_on_after(0.5):
            await read(cache)
        async with cache.nar(INFO):
            pass


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest/meta-data", "https://127.0.0.1/x.nar", "//evil.example/x.nar",
     "file:///etc/passwd", "ftp://x/y", "http://127.0.0.1:1/x.nar", "http://[", "//[::1"],
)  # fmt: skip
async def test_a_nar_elsewhere_is_not_fetched(server: Server, cache: HttpCache, url: str) -> None:
    with one_error() as caught:
        await read(cache, replace(INFO, url=url))
    assert "names a NAR" in str(caught.value)
    assert server.seen == []


@pytest.mark.parametrize("url", ["nar/\u00e9.nar", "nar/x y\x01.nar", "nar/\u202e.nar"])
async def test_a_nar_by_what_is_no_url_is_not_fetched(
    server: Server, cache: HttpCache, url: str
) -> None:
    with one_error() as caught:
        await read(cache, replace(INFO, url=url))
    assert "which is no URL" in str(caught.value)
    assert server.seen == []


@pytest.mark.parametrize("target", ["http://[/x", "//[", "https://[::1/x", "\u00e9"])
async def test_redirects_to_nowhere(server: Server, cache: HttpCache, target: str) -> None:
    server.pages["/nar/x.nar"] = (302, {"Location": target}, b"")
    with one_error():
        await read(cache)


async def test_redirects_are_followed_up_to_a_limit(server: Server, cache: HttpCache) -> None:
    server.pages["/nar/x.nar"] = (302, {"Location": "/moved"}, b"")
    server.pages["/moved"] = (200, {}, NAR)
    assert await read(cache) == NAR
    server.pages["/moved"] = (302, {"Location": "/moved"}, b"")
    with one_error() as caught:
        await read(cache)
    assert "redirects" in str(caught.value)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
async def test_redirects_to_other_schemes(server: Server, cache: HttpCache, target: str) -> None:
    server.pages["/nar/x.nar"] = (302, {"Location": target}, b"")
    with one_error() as caught:
        await read(cache)
    assert "not safe" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "location", "safe"),
    [
        ("http://a/", "http://b/", True), ("http://a/", "https://b/", True),
        ("https://a/", "https://b/", True), ("https://a/", "http://a/", False),
        ("https://a/", "HTTP://a/", False), ("http://a/", "http://b:0/", False),
        ("http://a/", "http://b:x/", False), ("http://a/", "http://[", False),
    ],
)  # fmt: skip
def test_which_redirects_are_safe(url: str, location: str, safe: bool) -> None:
    assert is_safe_redirect(url, location) is safe


@pytest.mark.parametrize("target", ["/nar/x.nar", f"/{HASH}.narinfo"])
async def test_a_public_upstream_may_not_redirect_to_a_private_address(
    server: Server, cache: HttpCache, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """127.0.0.1 plays the public upstream; localhost by another name is then private."""
    server.pages[target] = (302, {"Location": f"{server.url}/secret"}, b"")
    server.pages["/secret"] = (200, {"Connection": "close"}, NAR if "nar/" in target else ROOT)
    answers = iter([True])
    for module in (handles_module, pages_module, upstream_module):
        monkeypatch.setattr(module, "is_public", lambda address: next(answers, False))
    with one_error() as caught:
        await (read(cache) if "nar/" in target else cache.narinfo(HASH))
    assert "private address" in str(caught.value)
    assert server.seen == [target]


async def test_narinfos_behind_redirects(server: Server, cache: HttpCache) -> None:
    name = f"/{HASH}.narinfo"
    server.pages[name] = (302, {"Location": "/moved"}, b"")
    server.pages["/moved"] = (307, {"Location": "/again"}, b"")
    server.pages["/again"] = (200, {}, ROOT)
    assert await cache.narinfo(HASH) == parse(ROOT)
    server.pages["/again"] = (404, {}, b"")
    assert await cache.narinfo(HASH) is None
    server.pages["/again"] = (302, {"Location": "/moved"}, b"")
    with one_error() as caught:
        await cache.narinfo(HASH)
    assert "redirects" in str(caught.value)
    server.pages[name] = (302, {"Location": "ftp://127.0.0.1/x"}, b"")
    with one_error() as caught:
        await cache.narinfo(HASH)
    assert "not safe" in str(caught.value)


async def test_many_narinfos_at_once_and_some_given_up(
    server: Server, transfers: Transfers
) -> None:
    """More than may be asked at once, and one that nobody waits for any longer."""
    names = [f"{number:032d}" for number in range(pages_module.PAGES_AT_ONCE_MAX + 40)]
    server.pages[f"/{HASH}.narinfo"] = (200, {}, ROOT)
    answers: list[object] = []
    cache = HttpCache(server.url, None, transfers)

    async def ask(name: str) -> None:
        answers.append(await cache.narinfo(name))

    async with trio.open_nursery() as asking:
        for name in [*names, HASH]:
            asking.start_soon(ask, name)
    assert answers.count(None) == len(names) and parse(ROOT) in answers
    server.pages[f"/{HASH}.narinfo"] = (200, {"Content-Length": "9", "X-Test": "stall"}, b"")
    with trio.move_on_after(0.05) as scope:
        await cache.narinfo(HASH)
    assert scope.cancelled_caught
    assert await cache.narinfo(names[0]) is None
    cache.close()


async def test_an_endless_narinfo_is_given_up(
    server: Server, transfers: Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages_module, "PAGE_SECONDS_MAX", 1)
    endless = {"Content-Length": "99999999999", "X-Test": "endless"}
    server.pages[f"/{HASH}.narinfo"] = (200, endless, b"")
    cache = HttpCache(server.url, None, transfers)
    with one_error() as caught:
        await cache.narinfo(HASH)
    assert "longer than" in str(caught.value)
    cache.close()


async def test_a_narinfo_that_never_comes_is_a_failure(
    server: Server, transfers: Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages_module, "PAGE_SECONDS_MAX", 1)
    server.pages[f"/{HASH}.narinfo"] = (200, {"Content-Length": "9", "X-Test": "stall"}, b"")
    cache = HttpCache(server.url, None, transfers)
    with one_error() as caught:
        await cache.narinfo(HASH)
    assert "timed out" in str(caught.value)
    cache.close()


def test_which_addresses_are_public() -> None:
    private = [
        "127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "::1", "fe80::1", "fd00::1",
        "::ffff:127.0.0.1", "0.0.0.0", "100.64.0.1", "", "x",
    ]  # fmt: skip
    assert not any(is_public(address) for address in private)
    assert is_public("1.1.1.1") and is_public("2606:4700::1111")


async def test_a_directory(tmp_path: Path) -> None:
    cache = open_cache(f"file://{tmp_path}")
    assert isinstance(cache, FileCache)
    (tmp_path / f"{HASH}.narinfo").write_bytes(ROOT)
    (tmp_path / "nar").mkdir()
    (tmp_path / "nar" / "x.nar").write_bytes(NAR)
    assert await cache.narinfo(HASH) == parse(ROOT)
    assert await cache.narinfo("0" * 32) is None
    assert cache.store_hashes() == [HASH]
    assert await read(cache) == NAR


@pytest.mark.parametrize("url", ["../../etc/passwd", "/etc/passwd", "nar/../../x", "%2e%2e/x"])
async def test_a_directory_does_not_lead_out_of_itself(tmp_path: Path, url: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "x").write_bytes(NAR)
    with one_error() as caught:
        await read(FileCache("file:///c", tmp_path / "cache"), replace(INFO, url=url))
    assert "outside itself" in str(caught.value)


@pytest.mark.parametrize("url", ["file:///x", "n" * 5000, "x%00y", "missing"])
async def test_a_directory_without_that_nar(tmp_path: Path, url: str) -> None:
    with one_error():
        await read(FileCache("file:///c", tmp_path), replace(INFO, url=url))


@pytest.mark.parametrize("url", ["ftp://x", "https://", "x", "s3://bucket"])
def test_what_is_no_cache(url: str) -> None:
    with pytest.raises(UpstreamError, match="give an http"):
        open_cache(url)
