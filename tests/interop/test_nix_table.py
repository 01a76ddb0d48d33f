"""What real Nix does with each answer of a substituter: what the gateway's answers are built on.

One row per answer. `Told` serves one signed path of the closure the way the row says; an honest
cache stands behind it. `expected` says by version whether Nix got the path, from where, and with
how many requests. `make interop-all` runs the table on Nix 2.8, 2.26 and 2.34; a Nix that behaves
otherwise turns a row red, and the gateway's choice beside it must be thought about again.
"""

from __future__ import annotations

import bz2
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.interop.conftest import Office

Version = tuple[int, int]


class Told(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, narinfo: str, nar: bytes, row: Row) -> None:
        super().__init__(("127.0.0.1", 0), Teller)
        self.narinfo = narinfo
        self.nar = nar
        self.row = row
        self.seen: list[str] = []
        """`METHOD kind` of each request, kind one of cache-info, narinfo, nar, other."""
        self.ranges: list[str] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, request: str) -> int:
        return self.seen.count(request)


class Teller(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Told

    def do_GET(self) -> None:
        row, kind = self.server.row, self._kind()
        self.server.seen.append(f"{self.command} {kind}")
        if kind == "cache-info":
            self.say(row.cache_info_status, row.cache_info.encode())
        elif kind == "narinfo":
            self.say(row.narinfo_status, row.narinfo(self.server.narinfo).encode())
        elif kind == "nar":
            self.server.ranges += [self.headers["Range"]] if "Range" in self.headers else []
            row.nar(self, self.server.nar)
        else:
            self.say(404, b"")

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.server.seen.append(f"PUT {self._kind()}")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.say(403, b"")

    def _kind(self) -> str:
        if self.path == "/nix-cache-info":
            return "cache-info"
        if self.path.endswith(".narinfo"):
            return "narinfo"
        return "nar" if self.path.startswith("/nar/") else "other"

    def say(self, status: int, body: bytes, length: int = -1, **headers: str) -> None:
        """A `length` beyond the body cuts the connection behind it; status 0 never answers."""
        if status == 0:
            self.server.over.wait()
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if length > len(body):
            self.wfile.flush()
            self.close_connection = True

    def stall(self, nar: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(nar)))
        self.end_headers()
        self.wfile.write(nar[:1000])
        self.server.over.wait()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def whole(teller: Teller, nar: bytes) -> None:
    teller.say(200, nar)


def status(code: int) -> Callable[[Teller, bytes], None]:
    return lambda teller, nar: teller.say(code, b"")


def cut_once(teller: Teller, nar: bytes, **headers: str) -> None:
    """Half of the body, and the rest for whoever asks for it with a range."""
    start = re.fullmatch(r"bytes=(\d+)-", teller.headers.get("Range", ""))
    if start is None:
        teller.say(200, nar[: len(nar) // 2], len(nar), **headers)
    else:
        at = int(start[1])
        teller.say(206, nar[at:], Content_Range=f"bytes {at}-{len(nar) - 1}/{len(nar)}", **headers)


def cut_resumable(teller: Teller, nar: bytes) -> None:
    cut_once(teller, nar, Accept_Ranges="bytes")


def corrupt(teller: Teller, nar: bytes) -> None:
    teller.say(200, nar[:1000] + bytes([nar[1000] ^ 1]) + nar[1001:])


def chunked(teller: Teller, nar: bytes) -> None:
    teller.send_response(200)
    teller.send_header("Transfer-Encoding", "chunked")
    teller.end_headers()
    for at in range(0, len(nar), 100_000):
        part = nar[at : at + 100_000]
        teller.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    teller.wfile.write(b"0\r\n\r\n")


def drop(*names: str) -> Callable[[str], str]:
    return lambda text: "".join(
        line for line in text.splitlines(True) if not line.startswith(tuple(f"{n}:" for n in names))
    )


def other_key(text: str) -> str:
    return re.sub(r"(?m)^Sig: [^:]+:", "Sig: other-1:", text)


def wrong_signature(text: str) -> str:
    return re.sub(r"(?m)^(Sig: [^:]+:).{8}", r"\1AAAAAAAA", text)


def stranger_first(text: str) -> str:
    return re.sub(r"(?m)^Sig: ", f"Sig: other-1:{'A' * 86}==\nSig: ", text)


def junk_first(text: str) -> str:
    return re.sub(r"(?m)^Sig: ", "Sig: junk-1:AAAA\nSig: nonsense\nSig: ", text)


@dataclass(frozen=True)
class Outcome:
    """`source`: told, honest, or none (Nix gave up). `narinfos`, `nars`: GETs that Told saw."""

    source: str
    narinfos: int | None = None
    nars: int | None = None
    resumed: bool | None = None


@dataclass(frozen=True)
class Row:
    gateway: str
    """What the gateway does about it."""
    expected: dict[Version, Outcome]
    """From this version on."""
    narinfo: Callable[[str], str] = lambda text: text
    narinfo_status: int = 200
    nar: Callable[[Teller, bytes], None] = whole
    cache_info: str = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 20\n"
    cache_info_status: int = 200
    settings: str = ""
    honest_priority: int = 90
    running: bool = True
    compress: Callable[[bytes], bytes] = bytes


ALL = (2, 8)
MISS = {ALL: Outcome("honest", narinfos=1, nars=0)}
CORRUPT = {ALL: Outcome("none", 1, 0), (2, 34): Outcome("honest", 3, 0)}
GOOD = {ALL: Outcome("told", narinfos=1, nars=1)}
ROWS = {
    "a good one": Row("is like this", GOOD),
    "narinfo 404": Row("answers 404, fast", MISS, narinfo_status=404),
    "narinfo 410": Row("answers 404", MISS, narinfo_status=410),
    "narinfo 401": Row("answers 404", MISS, narinfo_status=401),
    "narinfo 403": Row("answers 404", MISS, narinfo_status=403),
    "narinfo 400": Row("never", {ALL: Outcome("none"), (2, 34): Outcome("honest")},
                       narinfo_status=400),
    "narinfo 500": Row("never 5xx: 404", {ALL: Outcome("none", narinfos=5),
                       (2, 34): Outcome("honest", narinfos=15)}, narinfo_status=500),
    "narinfo 503, fallback = true": Row("the same", {ALL: Outcome("none"),
                       (2, 26): Outcome("honest")}, narinfo_status=503,
                       settings="fallback = true\ndownload-attempts = 1"),
    "NAR 404": Row("404 before the first byte", {ALL: Outcome("honest", 1, 1)}, nar=status(404)),
    "NAR 410": Row("404", {ALL: Outcome("honest", 1, 1)}, nar=status(410)),
    "NAR 403": Row("404", {ALL: Outcome("honest", 1, 1)}, nar=status(403)),
    "NAR 500": Row("prefers 404", {ALL: Outcome("honest", 1, 5)}, nar=status(500)),
    "a cut body that can be resumed": Row("sends Accept-Ranges, true 206",
                       {ALL: Outcome("told", 1, 2, resumed=True)}, nar=cut_resumable),
    "a cut body that cannot": Row("sends Accept-Ranges",
                       {ALL: Outcome("honest", 1, 1, resumed=False)}, nar=cut_once),
    "a corrupt NAR": Row("never sends unverified last bytes",
                       {ALL: Outcome("honest", 1, 1)}, nar=corrupt),
    "a short NAR": Row("never ends cleanly before the end",
                       {ALL: Outcome("honest", 1, 1)}, nar=lambda t, nar: t.say(200, nar[:-8])),
    "bytes after the NAR": Row("enforces NarSize itself", GOOD,
                       nar=lambda t, nar: t.say(200, nar + b"more")),
    "a chunked body": Row("sends Content-Length all the same", GOOD, nar=chunked),
    "no signature": Row("404", MISS, narinfo=drop("Sig")),
    "another key": Row("404", MISS, narinfo=other_key),
    "a wrong signature": Row("404", MISS, narinfo=wrong_signature),
    "a stranger's signature first": Row("keeps only what it verified", GOOD,
                       narinfo=stranger_first),
    "junk before the signature": Row("keeps only what it verified",
                       {**GOOD, (2, 34): Outcome("honest", 3, 0)}, narinfo=junk_first),
    "no NarSize": Row("always there", CORRUPT, narinfo=drop("NarSize")),
    "CRLF": Row("LF", CORRUPT,
                       narinfo=lambda text: text.replace("\n", "\r\n")),
    "no final newline": Row("a final newline", CORRUPT,
                       narinfo=lambda text: text.rstrip("\n")),
    "no Compression": Row("always states it", GOOD, narinfo=drop("Compression"),
                       compress=bz2.compress),
    "no nix-cache-info": Row("always serves it", {ALL: Outcome("honest", 0, 0)},
                       cache_info_status=404),
    "no Priority": Row("states it", GOOD, honest_priority=1,
                       cache_info="StoreDir: /nix/store\nWantMassQuery: 1\n"),
    "a lower Priority elsewhere": Row("10 to 30", {ALL: Outcome("honest", 0, 0)},
                       honest_priority=1),
    "narinfo 429": Row("never", {ALL: Outcome("none", 1), (2, 34): Outcome("honest", 3)},
                       narinfo_status=429, settings="download-attempts = 1"),
    "NAR 429": Row("never", {ALL: Outcome("honest", 1, 1)}, nar=status(429),
                       settings="download-attempts = 1"),
    "a stalled narinfo": Row("404 after 5 s", {ALL: Outcome("none", 1),
                       (2, 34): Outcome("honest", 3)}, narinfo_status=0,
                       settings="download-attempts = 1\nstalled-download-timeout = 1"),
    "a stalled NAR": Row("goes on with another source", {ALL: Outcome("honest", 1, 1)},
                       nar=lambda teller, nar: teller.stall(nar),
                       settings="download-attempts = 1\nstalled-download-timeout = 1"),
    "another store directory": Row("has one: /nix/store", {ALL: Outcome("honest", 0, 0)},
                       cache_info="StoreDir: /gnu/store\n"),
    "not running": Row("starts on demand, stops gracefully", {ALL: Outcome("honest", 0, 0)},
                       running=False),
}  # fmt: skip


def row_expected(row: Row, version: str) -> Outcome:
    here = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    return row.expected[max(since for since in row.expected if since <= here)]


@pytest.fixture
def told(request: pytest.FixtureRequest, office: Office) -> Iterator[Told]:
    row = ROWS[request.param]
    path = path_of(office)
    text = (office.closure.cache / f"{path[11:43]}.narinfo").read_text()
    text = re.sub(r"(?m)^URL: .*$", "URL: nar/x.nar", text)
    text = drop("FileHash", "FileSize", "Deriver")(text)
    nar = office.closure.nar(path)
    with serving(Told(text, row.compress(nar), row)) as server:
        yield server


@contextmanager
def serving(server: Told) -> Iterator[Told]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def path_of(office: Office) -> str:
    return next(path for path in office.closure.infos if path.endswith("-middle"))


@pytest.mark.parametrize("told", ROWS, indirect=True)
def test_what_nix_does(office: Office, told: Told) -> None:
    row, path = told.row, path_of(office)
    expected = row_expected(row, office.nix.version())
    url = told.url
    if not row.running:
        url = "http://127.0.0.1:1"
    honest = f"file://{office.closure.cache}"
    urls = url, f"{honest}?priority={row.honest_priority}"
    worked, said = realise(office, "client", *urls, settings=row.settings)
    source = "none"
    if worked:
        office.verify("client", path)
        source = "honest" if f"from '{honest}" in said else "told"
    seen = Outcome(
        source,
        None if expected.narinfos is None else told.count("GET narinfo"),
        None if expected.nars is None else told.count("GET nar"),
        None if expected.resumed is None else bool(told.ranges),
    )
    assert seen == expected, said


@pytest.mark.parametrize("told", ["a good one"], indirect=True)
def test_a_narinfo_seen_is_not_asked_for_again(office: Office, told: Told) -> None:
    """For 30 days Nix asks only for the NAR: so NAR URLs and the port survive a restart here, and
    a NAR that is gone is a 404, after which Nix asks the next substituter."""
    urls = told.url, f"file://{office.closure.cache}?priority=90"
    assert realise(office, "client", *urls)[0]
    forget(office, "client")
    told.seen.clear()
    assert realise(office, "client", *urls)[0]
    assert told.seen == ["GET nar"]
    forget(office, "client")
    told.row = ROWS["NAR 404"]
    assert realise(office, "client", *urls)[0]
    forget(office, "client")
    assert not realise(office, "client", told.url)[0]


@pytest.mark.parametrize("told", ["narinfo 404"], indirect=True)
def test_a_404_is_believed_for_an_hour(office: Office, told: Told) -> None:
    """So 404 is said only after every source had its time to answer."""
    assert not realise(office, "client", told.url)[0]
    assert told.count("GET narinfo") == 1
    told.row = ROWS["a good one"]
    assert not realise(office, "client", told.url)[0]
    assert told.count("GET narinfo") == 1
    settings = "narinfo-cache-negative-ttl = 0"
    assert realise(office, "client", told.url, settings=settings)[0]


@pytest.mark.parametrize("right", [True, False])
def test_a_content_address_needs_no_signature_but_must_recompute(
    office: Office, right: bool
) -> None:
    """A wrong one is refused before any NAR request."""
    file = office.nix.top / "addressed"
    file.write_text("its path is made from its content\n")
    path = office.nix.run("nix-store", "--add", str(file)).stdout.strip()
    cache = office.top / "addressed-cache"
    office.nix.run("nix", "copy", "--to", f"file://{cache}?compression=none", path)
    text = re.sub(
        r"(?m)^URL: .*$", "URL: nar/x.nar", (cache / f"{path[11:43]}.narinfo").read_text()
    )
    assert "\nCA: " in text and "\nSig: " not in text
    if not right:
        text = re.sub(r"(?m)^(CA: .*).$", lambda m: m[1] + ("0" if m[0][-1] != "0" else "1"), text)
    with serving(Told(text, office.closure.nar(path), ROWS["a good one"])) as told:
        worked, said = realise(office, "client", told.url, path=path)
        assert worked is right, said
        assert told.count("GET nar") == (1 if right else 0)


def realise(
    office: Office, name: str, *urls: str, settings: str = "", path: str = ""
) -> tuple[bool, str]:
    """Whether Nix has the path now, and the end of what it said."""
    lines = f"substituters = {' '.join(urls)}\ntrusted-public-keys = {office.closure.public}"
    done = office.nix.run(
        "nix-store", "--store", str(office.top / f"root-{name}"),
        "--realise", path or path_of(office),
        home=f"{office.top.name}-{name}", settings=f"{lines}\n{settings}", check=False,
    )  # fmt: skip
    return done.returncode == 0, done.stderr[-2000:]


def forget(office: Office, name: str) -> None:
    """The path goes from that client's store; what Nix remembers of narinfos stays."""
    office.nix.run(
        "nix-store", "--store", str(office.top / f"root-{name}"), "--delete", path_of(office)
    )
