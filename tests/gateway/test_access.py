"""Secrets and proxies go where they belong, and nowhere else; against real servers and real TLS."""

from __future__ import annotations

import base64
import http.server
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from gateway.access import Access, find_access, proxy_for, read_tokens
from gateway.errors import ConfigError, UpstreamError
from gateway.narinfo import parse
from gateway.upstream import HttpCache
from tests.gateway.test_narinfo import ROOT
from tests.gateway.test_upstream import HASH, INFO, NAR, Handler, Server, read, server

__all__ = ["server"]
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Proxy(http.server.ThreadingHTTPServer):
    """Fetches what it is asked for by absolute URL, and remembers that."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.seen: list[str] = []


class ProxyHandler(http.server.BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.path, timeout=10) as answer:
            body = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(target, Authorization) of every request that any test server saw."""
    seen: list[tuple[str, str]] = []
    plain = Handler.do_GET

    def do_get(self: Handler) -> None:
        seen.append((self.path, self.headers.get("Authorization", "")))
        plain(self)

    monkeypatch.setattr(Handler, "do_GET", do_get)
    return seen


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def tokens_file(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


async def test_a_proxy_is_used_and_left_out_as_the_environment_says(
    server: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/nar/x.nar"] = (200, {}, NAR)
    cache = HttpCache(server.url)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
    assert await read(cache) == NAR
    assert proxy.seen == [f"{server.url}/nar/x.nar"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert await read(cache) == NAR
    assert len(proxy.seen) == 1
    cache.close()


def test_which_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://secure:1")
    monkeypatch.setenv("all_proxy", "http://rest:2")
    monkeypatch.setenv("no_proxy", "example.org,10.0.0.1:8080")
    assert proxy_for("https://cache.example.com/x") == "http://secure:1"
    assert proxy_for("http://cache.example.com/x") == "http://rest:2"
    assert proxy_for("https://a.example.org/x") == ""
    assert proxy_for("http://10.0.0.1:8080/x") == ""


async def test_a_proxied_redirect_is_judged_by_its_name(
    server: Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a proxy only names tell public from private: this one begins at a public name."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
    redirect = (302, {"Location": f"{server.url}/secret"}, b"")

    def do_get(self: ProxyHandler) -> None:
        self.server.seen.append(self.path)
        self.send_response(redirect[0])
        self.send_header("Location", redirect[1]["Location"])
        self.send_header("Content-Length", "0")
        self.end_headers()

    monkeypatch.setattr(ProxyHandler, "do_GET", do_get)
    cache = HttpCache("http://cache.example.com")
    with pytest.raises(UpstreamError, match="private address"):
        await read(cache)
    assert proxy.seen == ["http://cache.example.com/nar/x.nar"]
    cache.close()


async def test_passwords_come_from_netrc_and_from_the_url(
    server: Server, secrets: list[tuple[str, str]], tmp_path: Path
) -> None:
    server.pages["/nar/x.nar"] = (200, {}, NAR)
    netrc = tokens_file(tmp_path / "netrc", "machine 127.0.0.1 login me password p4ss\n")
    for cache, expected in (
        (HttpCache(server.url, Access(netrc=netrc)), basic("me:p4ss")),
        (HttpCache(server.url.replace("//", "//you:p%40ss@"), Access(netrc=netrc)), "you"),
        (HttpCache(server.url), ""),
    ):
        assert "p4ss" not in cache.url and "p%40ss" not in cache.url
        assert await read(cache) == NAR
        cache.close()
        if expected == "you":
            expected = basic("you:p@ss")
        assert secrets[-1][1] == expected


async def test_a_password_does_not_follow_a_redirect_to_another_place(
    server: Server, secrets: list[tuple[str, str]], tmp_path: Path
) -> None:
    port = server.server_address[1]
    server.pages["/nar/x.nar"] = (302, {"Location": f"http://localhost:{port}/moved"}, b"")
    server.pages["/moved"] = (200, {}, NAR)
    netrc = tokens_file(tmp_path / "netrc", "machine 127.0.0.1 login me password p4ss\n")
    tokens = {f"127.0.0.1:{port}": "t0ken"}
    for url, access in (
        (server.url, Access(netrc=netrc)),
        (server.url.replace("//", "//me:p4ss@"), Access()),
        (server.url, Access(tokens=tokens)),
    ):
        cache = HttpCache(url, access)
        assert await read(cache) == NAR
        cache.close()
        first, second = secrets[-2:]
        assert first[1] in (basic("me:p4ss"), "Bearer t0ken")
        assert second == ("/moved", "")


async def test_what_wants_a_password_says_so_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.pages[f"/{HASH}.narinfo"] = (401, {}, b"")
    cache = HttpCache(server.url)
    assert await cache.narinfo(HASH) is None
    assert await cache.narinfo(HASH) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{server.url} wants a password; name it in /etc/nix/netrc"
    ]
    cache.close()


def test_tokens_by_host_and_port(tmp_path: Path) -> None:
    path = tokens_file(
        tmp_path / "tokens",
        "# office\ncache.example t0ken\nlocalhost:8080 other # us\n\n[::1]:80 six\n[::2] seven\n",
    )
    found = read_tokens(path)
    assert found == {
        "cache.example:443": "t0ken", "localhost:8080": "other", "::1:80": "six", "::2:443": "seven"
    }  # fmt: skip
    access = Access(tokens=found)
    assert access.token("https://CACHE.example/x") == "t0ken"
    assert access.token("https://cache.example:8443/x") is None
    assert access.token("http://localhost:8080/x") == "other"
    with pytest.raises(UpstreamError, match="https only"):
        Access(tokens={"cache.example:80": "t"}).token("http://cache.example/x")


@pytest.mark.parametrize(
    ("text", "said"),
    [("cache.example\n", "line 1: expected HOST"), ("ok t\nhttps://x t\n", "line 2"),
     ("a b c\n", "expected"), ("host:port token\n", "'port' is no port"),
     ("host to\u00fcken\n", "expected")],
)  # fmt: skip
def test_bad_tokens_say_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_tokens(tokens_file(tmp_path / "tokens", text))


def test_tokens_that_others_can_read_are_refused(tmp_path: Path) -> None:
    path = tokens_file(tmp_path / "tokens", "a b\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_tokens(path)


def test_which_files_count(tmp_path: Path) -> None:
    roots, netrc = tmp_path / "roots.pem", tmp_path / "netrc"
    for name in ("roots", "roots.pem", "netrc"):
        (tmp_path / name).write_text("")
    environ = {"NIX_SSL_CERT_FILE": str(tmp_path / "none"), "SSL_CERT_FILE": str(roots)}
    assert find_access(environ=environ).tls_roots == roots
    assert find_access(environ=environ, tls_roots=tmp_path / "roots").tls_roots != roots
    assert find_access(environ={}, nix_tls_roots=str(roots)).tls_roots == roots
    assert find_access(environ={}, nix_netrc=str(netrc)).netrc == netrc
    with pytest.raises(ConfigError, match="cannot be read"):
        find_access(environ={}, netrc=tmp_path / "none")


async def test_a_private_root(server: Server, tmp_path: Path) -> None:
    """A cache with a certificate of the office's own authority; without it, no connection."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    await trio.run_process(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        capture_stderr=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.pages[f"/{HASH}.narinfo"] = (200, {}, ROOT)
    url = f"https://localhost:{server.server_address[1]}"
    cache = HttpCache(url, find_access(tls_roots=certificate))
    assert await cache.narinfo(HASH) == parse(ROOT)
    cache.close()
    for roots in (Access(), find_access()):
        stranger = HttpCache(url, roots)
        with pytest.raises(UpstreamError, match="certificate"):
            await stranger.narinfo(HASH)
        stranger.close()


async def test_content_encodings_are_taken_off(server: Server) -> None:
    """As `nix copy --to 's3://...?narinfo-compression=br'` leaves them."""
    import brotli

    server.pages[f"/{HASH}.narinfo"] = (200, {"Content-Encoding": "br"}, brotli.compress(ROOT))
    server.pages["/nar/x.nar"] = (200, {"Content-Encoding": "br"}, brotli.compress(NAR))
    cache = HttpCache(server.url)
    assert await cache.narinfo(HASH) == parse(ROOT)
    assert await read(cache) == NAR
    with pytest.raises(UpstreamError, match="longer than"):
        await read(cache, replace(INFO, nar_size=len(NAR) - 1))
    cache.close()
