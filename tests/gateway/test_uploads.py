"""PUT: who may, what counts, and what becomes of what does not."""

from __future__ import annotations

import base64
import json
import lzma
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from chunker.errors import StoreFull
from chunker.record import PathRecord
from chunker.store import MemoryStore
from gateway import uploads as uploads_module
from gateway.errors import ConfigError
from gateway.narinfo import fingerprint, format, nar_url
from gateway.offer import is_signed
from gateway.realisations import REALISATION_BYTES_MAX
from gateway.report import uploads_report
from gateway.requests import Request
from gateway.server import BodyBroken, serve
from gateway.shelf import Shelf
from gateway.signing import KeyRing
from gateway.uploads import NETRC_NAME, SPOOL_SECONDS_MAX, Counts, Uploads, upload_token
from tests.gateway.test_besides import DERIVATION
from tests.gateway.test_realisations import ID, signed_by_id
from tests.gateway.test_substituter import FOREIGN, KEY, signed_path

TOKEN = "secret-token"
AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}
NAR = "/nar/1as8j5p62nyjnwy9dxk7b19z8phi6hxbsqfqcxdvlq79iqva34kd.nar"


class Place:
    def __init__(self, directory: Path, bytes_max: int = 10_000_000) -> None:
        self.directory = directory / "uploads"
        self.store = MemoryStore()
        self.offered: list[PathRecord] = []
        ring = KeyRing((KEY.public,))
        self.uploads = Uploads(
            self.directory, self.store, TOKEN, lambda record: is_signed(record, ring),
            self.offered.append, bytes_max, Shelf(directory / "shelf"), ring,
        )  # fmt: skip

    async def put(self, target: str, data: bytes, headers: dict[str, str] = AUTHORIZED) -> int:
        async def pieces() -> AsyncGenerator[bytes, None]:
            for at in range(0, len(data), 100_000):
                yield data[at : at + 100_000]

        request = Request("PUT", target, headers, True, len(data))
        return (await self.uploads.put(request, pieces())).status

    def files(self) -> list[str]:
        return [path.name for path in self.directory.iterdir()]


def narinfo_of(record: PathRecord, url: str, compression: str = "none") -> bytes:
    text = format(record, record.signatures).decode()
    text = text.replace(f"URL: {nar_url(record)}", f"URL: {url}")
    return text.replace("Compression: none", f"Compression: {compression}").encode()


def signed_by(record: PathRecord) -> PathRecord:
    text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    return replace(record, signatures=(KEY.sign(text),))


@pytest.mark.parametrize("compression", ["none", "xz"])
async def test_a_nar_counts_when_its_signed_narinfo_comes(tmp_path: Path, compression: str) -> None:
    place = Place(tmp_path)
    record, nar = signed_path("path")
    name, data = (NAR, nar) if compression == "none" else (f"{NAR}.xz", lzma.compress(nar))
    assert await place.put(name, data) == 200
    assert place.files() == ["1"] and place.store.record(record.store_hash) is None
    narinfo = narinfo_of(record, name[1:], compression)
    assert await place.put(f"/{record.store_hash}.narinfo", narinfo) == 200
    kept = place.store.record(record.store_hash)
    assert kept is not None and kept.signatures == record.signatures
    assert place.store.is_verified(kept.manifest)
    assert place.offered == [kept]
    assert place.files() == []
    # The same path again needs no NAR: it is here.
    assert await place.put(f"/{record.store_hash}.narinfo", narinfo) == 200
    assert place.uploads.counts == Counts(paths=2, nar_bytes=len(nar))


@pytest.mark.parametrize("fault", ["other nar", "cut", "longer", "not a nar", "damaged xz", "bomb"])
async def test_a_nar_that_is_not_what_was_signed_does_not_count(tmp_path: Path, fault: str) -> None:
    place = Place(tmp_path)
    record, nar = signed_path("path")
    name, compression, data = NAR, "none", signed_path("other")[1]
    if fault in ("cut", "longer", "not a nar"):
        data = {"cut": nar[:-8], "longer": nar + bytes(8), "not a nar": bytes(len(nar))}[fault]
    elif fault != "other nar":
        name, compression = f"{NAR}.xz", "xz"
        data = lzma.compress(nar)[:-20] if fault == "damaged xz" else lzma.compress(bytes(10**8))
    assert await place.put(name, data) == 200
    narinfo = narinfo_of(record, name[1:], compression)
    assert await place.put(f"/{record.store_hash}.narinfo", narinfo) == 400
    assert place.store.record(record.store_hash) is None and place.offered == []
    assert place.files() == []


async def test_who_signed_decides(tmp_path: Path) -> None:
    place = Place(tmp_path)
    record, nar = signed_path("path", FOREIGN)
    await place.put(NAR, nar)
    unsigned = replace(record, signatures=())
    for refused in (record, unsigned):
        status = await place.put(f"/{record.store_hash}.narinfo", narinfo_of(refused, NAR[1:]))
        assert status == 403
    assert place.store.record(record.store_hash) is None
    assert place.uploads.counts == Counts(refused=2)
    assert uploads_report(place.uploads)["spooled_bytes"] == len(nar)
    assert await place.put(f"/{record.store_hash}.narinfo",
                           narinfo_of(signed_by(record), NAR[1:])) == 200  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": f"Digest {TOKEN}"}, 401),
        ({"authorization": "Basic \xff"}, 401),
        ({"authorization": "Basic " + base64.b64encode(b"narswarm:wrong").decode()}, 401),
        ({"authorization": "Basic " + base64.b64encode(TOKEN.encode()).decode()}, 401),
        ({"authorization": "basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()}, 200),
        ({"authorization": f"bearer {TOKEN}"}, 200),
    ],
)
async def test_the_token_is_asked_for_before_a_byte_is_read(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    read = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        read.append(1)
        yield b"NAR"

    place = Place(tmp_path)
    answer = await place.uploads.put(Request("PUT", NAR, headers, True, 3), pieces())
    assert answer.status == status
    assert bool(read) == (status == 200)
    assert (place.files() == []) == (status == 401)
    assert ("WWW-Authenticate" in dict(answer.headers)) == (status == 401)


async def test_the_spool_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, bytes_max=1000)
    assert await place.put(NAR, bytes(1001)) == 413
    assert await place.put(NAR, b"") == 400
    assert await place.put(NAR, bytes(600)) == 200
    assert place.uploads.spooled_bytes() == 600
    assert await place.put(NAR.replace("1as", "2as"), bytes(600)) == 507
    assert await place.put(NAR.replace("1as", "2as"), bytes(400)) == 200
    monkeypatch.setattr(uploads_module, "SPOOL_FILES_MAX", 2)
    place = Place(tmp_path)
    for letter in "ab":
        assert await place.put(NAR.replace("1", letter), b"x") == 200
    assert await place.put(NAR.replace("1", "c"), b"x") == 507


async def test_what_is_on_its_way_counts_too(tmp_path: Path) -> None:
    place = Place(tmp_path, bytes_max=1000)
    started, go_on = trio.Event(), trio.Event()

    async def slow() -> AsyncGenerator[bytes, None]:
        started.set()
        await go_on.wait()
        yield bytes(600)

    async with trio.open_nursery() as nursery:
        request = Request("PUT", NAR, AUTHORIZED, True, 600)
        nursery.start_soon(place.uploads.put, request, slow())
        await started.wait()
        assert await place.put(NAR.replace("1as", "2as"), bytes(600)) == 507
        go_on.set()


async def test_a_full_disk_costs_only_what_did_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    record, nar = signed_path("path")
    narinfo = f"/{record.store_hash}.narinfo", narinfo_of(record, NAR[1:])
    assert await place.put(NAR, nar) == 200

    def full(blocks: object) -> None:
        raise StoreFull("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(place.store, "put", full)
        assert await place.put(*narinfo) == 507
        assert place.store.record(record.store_hash) is None
    assert await place.put(*narinfo) == 200, "the spooled NAR waited"
    with monkeypatch.context() as patch:
        patch.setattr(uploads_module, "DISK_RESERVE_BYTES", 1 << 60)
        assert await place.put(NAR, nar) == 507
    assert place.files() == []


async def test_a_body_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def breaking() -> AsyncGenerator[bytes, None]:
        yield b"half"
        raise BodyBroken("gone")

    place = Place(tmp_path)
    with pytest.raises(BodyBroken):
        await place.uploads.put(Request("PUT", NAR, AUTHORIZED, True, 10), breaking())
    assert place.files() == []
    assert await place.put(NAR, bytes(9_999_999)) == 200, "nothing is still reserved"


async def test_nobody_comes_for_it_within_the_hour(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    place = Place(tmp_path)
    assert await place.put(NAR, b"x") == 200
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.uploads.run)
        await trio.sleep(SPOOL_SECONDS_MAX - 100)
        assert place.files() == ["1"]
        await trio.sleep(200)
        assert place.files() == []
        nursery.cancel_scope.cancel()


async def test_a_start_empties_the_spool(tmp_path: Path) -> None:
    assert await Place(tmp_path).put(NAR, b"x") == 200
    assert Place(tmp_path).files() == []


@pytest.mark.parametrize(
    ("target", "data", "status"),
    [
        ("/nix-cache-info", b"StoreDir: /nix/store\n", 200),
        (f"/{'0' * 32}.ls", b"{}", 200),
        (f"/{'0' * 32}.narinfo", b"nonsense", 400),
        ("/nar/../../etc/passwd", b"x", 405),
        ("/nar/a/b.nar", b"x", 405),
        ("/realisations/x.doi", b"{}", 405),
        (f"/realisations/{ID}.doi", b"{}", 400),
        ("/log/x.drv", b"", 405),
        (f"/log/../{DERIVATION}", b"", 405),
    ],
)
async def test_what_else_is_put(tmp_path: Path, target: str, data: bytes, status: int) -> None:
    place = Place(tmp_path)
    assert await place.put(target, data) == status
    assert place.files() == []


async def test_a_narinfo_is_of_the_path_that_its_name_says_and_needs_its_nar(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    record, nar = signed_path("path")
    narinfo = narinfo_of(record, NAR[1:])
    assert await place.put(f"/{record.store_hash}.narinfo", narinfo) == 404
    await place.put(NAR, nar)
    assert await place.put(f"/{'0' * 32}.narinfo", narinfo) == 400


def test_the_token_is_its_owners(tmp_path: Path) -> None:
    token = upload_token(tmp_path, "127.0.0.1")
    file = tmp_path / NETRC_NAME
    assert file.read_text() == f"machine 127.0.0.1 login narswarm password {token}\n"
    assert file.stat().st_mode & 0o777 == 0o600 and len(token) > 40
    assert upload_token(tmp_path, "127.0.0.1") == token
    file.chmod(0o640)
    with pytest.raises(ConfigError):
        upload_token(tmp_path, "127.0.0.1")


def kept(place: Place) -> list[bytes]:
    return [file.read_bytes() for file in (place.directory.parent / "shelf").iterdir()]


async def test_a_realisation_counts_when_a_trusted_key_signed_it(tmp_path: Path) -> None:
    place, target = Place(tmp_path), f"/realisations/{ID}.doi"
    fields = signed_by_id()
    other = {**fields, "outPath": "0" * 32 + "-evil"}
    for refused in (other, {**fields, "signatures": []}):
        assert await place.put(target, json.dumps(refused).encode()) == 403
    assert await place.put(target.replace("0a", "0b"), json.dumps(fields).encode()) == 400
    assert await place.put(target, json.dumps(fields).encode(), {}) == 401
    assert await place.put(target, bytes(REALISATION_BYTES_MAX + 1)) == 413
    assert kept(place) == [] and place.uploads.counts == Counts(refused=5)
    assert await place.put(target, json.dumps(fields).encode()) == 200
    (held,) = kept(place)
    assert json.loads(held)["signatures"] == fields["signatures"][:1], (
        "what nobody trusts is left out"
    )  # type: ignore[index]
    assert place.uploads.counts == Counts(refused=5, realisations=1)


async def test_a_log_is_bounded_and_in_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "LOG_BYTES_MAX", 1000)
    place, target = Place(tmp_path), f"/log/{DERIVATION}"
    assert await place.put(target, bytes(1001)) == 413
    assert await place.put(target, b"x", {}) == 401
    assert await place.put(target, b"x", {**AUTHORIZED, "content-encoding": "br"}) == 400
    with monkeypatch.context() as patch:
        patch.setattr(uploads_module, "DISK_RESERVE_BYTES", 1 << 60)
        assert await place.put(target, b"x") == 507
    assert kept(place) == []
    assert await place.put(target, b"built\n") == 200
    assert kept(place) == [b"built\n"] and place.uploads.counts == Counts(refused=4, logs=1)


@asynccontextmanager
async def served(place: Place) -> AsyncIterator[int]:
    async def none(request: Request) -> object:
        raise AssertionError("no GET here")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    stopping = trio.Event()

    async def run() -> None:
        await serve(
            listeners, none, allowed_hosts=frozenset({"a"}), stopping=stopping,
            put=place.uploads.put,
        )  # type: ignore[arg-type]  # fmt: skip

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield listeners[0].socket.getsockname()[1]
            stopping.set()


async def read_all(stream: trio.SocketStream) -> bytes:
    """To its end, and close it."""
    async with stream:
        return b"".join([bytes(data) async for data in stream])


async def test_over_http_a_body_is_asked_for_only_with_the_token(tmp_path: Path) -> None:
    place = Place(tmp_path)
    head = f"PUT {NAR} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n"
    async with served(place) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(f"{head}\r\n".encode())
        refused = await read_all(stream)
        assert refused.startswith(b"HTTP/1.1 401 ") and b"Connection: close" in refused
        assert place.files() == []
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert await stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(b"hello" + f"PUT {NAR} HTTP/1.1\r\nHost: a\r\n".encode())
        await stream.send_all(b"Origin: http://evil\r\nConnection: close\r\n\r\n")
        answers = await read_all(stream)
        assert answers.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 403 " in answers
        assert (place.directory / "1").read_bytes() == b"hello"
