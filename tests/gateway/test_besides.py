"""Listings, realisations and logs through the substituter, and answers that are known already."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chunker.store import MemoryStore
from gateway import besides as besides_module
from gateway.errors import UpstreamError
from gateway.narinfo import nar_url
from gateway.policy import any_of
from gateway.requests import Request
from gateway.responses import Response
from gateway.shelf import Shelf
from gateway.signing import KeyRing
from gateway.upstream import FileCache
from tests.gateway.test_realisations import ID, signed_by_id
from tests.gateway.test_substituter import Border, border, signed_path
from tests.peer.office import hold, office

DERIVATION = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q-bar.drv"


class Failing(FileCache):
    async def file(self, path: str, bytes_max: int) -> bytes | None:
        raise UpstreamError("down")


@asynccontextmanager
async def beside(*directories: Path) -> AsyncIterator[Border]:
    failing = Failing("file:///nowhere", Path("/nowhere"))
    caches = (failing, *(FileCache(f"file://{path}", path) for path in directories))
    async with office() as place, border(place, upstreams=caches) as me:
        yield me


def put(directory: Path, name: str, data: bytes) -> None:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)


async def ask(me: Border, target: str, method: str = "GET", **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await me.substituter.answer(Request(method, target, named))


async def test_a_listing_is_of_what_is_whole_here() -> None:
    async with office() as place:
        record, nar = signed_path("path")
        hold(place.stores.setdefault("me", MemoryStore()), record, nar)
        other, _ = signed_path("elsewhere")
        async with border(place) as me:
            answer = await ask(me, f"/{record.store_hash}.ls")
            assert answer.status == 200 and ("Content-Type", "application/json") in answer.headers
            assert isinstance(answer.body, bytes)
            root = json.loads(answer.body)["root"]
            assert root["type"] == "regular"
            at = root["narOffset"]
            assert len(nar[at : at + root["size"]]) == root["size"] > len(nar) - 200
            assert (await ask(me, f"/{other.store_hash}.ls")).status == 404


async def test_a_signed_realisation_passes_whichever_upstream_has_it(tmp_path: Path) -> None:
    lying, honest = tmp_path / "lying", tmp_path / "honest"
    changed = {**signed_by_id(), "outPath": "0" * 32 + "-evil"}
    put(lying, f"realisations/{ID}.doi", json.dumps(changed).encode())
    put(honest, f"realisations/{ID}.doi", json.dumps(signed_by_id()).encode())
    async with beside(lying) as me:
        assert (await ask(me, f"/realisations/{ID}.doi")).status == 404
    async with beside(lying, honest) as me:
        answer = await ask(me, f"/realisations/{ID}.doi")
        assert answer.status == 200 and isinstance(answer.body, bytes)
        assert b"evil" not in answer.body and b"office-1:" in answer.body


async def test_a_log_is_an_upstreams_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(besides_module, "LOG_BYTES_MAX", 1000)
    put(tmp_path, f"log/{DERIVATION}", b"built\n")
    put(tmp_path, "log/" + DERIVATION.replace("bar", "long"), bytes(1001))
    async with beside(tmp_path) as me:
        answer = await ask(me, f"/log/{DERIVATION}")
        assert (answer.status, answer.body) == (200, b"built\n")
        assert ("Content-Type", "text/plain; charset=utf-8") in answer.headers
        assert ("X-Content-Type-Options", "nosniff") in answer.headers
        assert (await ask(me, "/log/" + DERIVATION.replace("bar", "long"))).status == 404
        assert (await ask(me, "/log/" + DERIVATION.replace("bar", "none"))).status == 404
        assert (await ask(me, "/log/../x.drv")).status == 404


async def test_what_was_put_here_is_served_before_anybody_is_asked(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    targets = (f"log/{DERIVATION}", f"realisations/{ID}.doi")
    async with office() as place, border(place, shelf=shelf) as me:
        for target in targets:
            assert (await ask(me, f"/{target}")).status == 404
        await shelf.put(targets[0], b"built\n")
        await shelf.put(targets[1], json.dumps(signed_by_id()).encode())
        assert (await ask(me, f"/{targets[0]}")).body == b"built\n"
        answer = await ask(me, f"/{targets[1]}")
        assert answer.status == 200 and b"office-1:" in bytes(answer.body)  # type: ignore[arg-type]
    async with office() as place, border(place, shelf=shelf, policy=any_of(KeyRing(()))) as me:
        assert (await ask(me, f"/{targets[1]}")).status == 404, "its key counts no longer"
    put(tmp_path / "cache", targets[1], json.dumps(signed_by_id()).encode())
    cache = FileCache(f"file://{tmp_path}", tmp_path / "cache")
    async with office() as place, border(place, shelf=shelf, upstreams=(cache,)) as me:
        await shelf.put(targets[1], b"damaged")
        assert (await ask(me, f"/{targets[1]}")).status == 200, "an upstream is asked then"


async def test_what_is_known_already_is_not_sent_again() -> None:
    async with office() as place:
        record, nar = signed_path("path")
        hold(place.stores.setdefault("me", MemoryStore()), record, nar)
        async with border(place) as me:
            small = ("/nix-cache-info", f"/{record.store_hash}.narinfo", f"/{record.store_hash}.ls")
            for target in (*small, f"/{nar_url(record)}"):
                first = await ask(me, target, "HEAD")
                tag = dict(first.headers)["ETag"]
                for held in (tag, f'"x", W/{tag}', "*"):
                    again = await ask(me, target, if_none_match=held)
                    assert (again.status, again.body) == (304, b""), target
                    assert ("ETag", tag) in again.headers
                assert (await ask(me, target, if_none_match='"other"')).status == 200
            assert me.substituter.served.nars == 1
            ranged = {"range": "bytes=5-", "if_range": '"other"'}
            assert (await ask(me, f"/{nar_url(record)}", **ranged)).status == 200
            ranged["if_range"] = tag
            assert (await ask(me, f"/{nar_url(record)}", **ranged)).status == 206
            absent = "/" + "0" * 32 + ".narinfo"
            assert (await ask(me, absent, if_none_match="*")).status == 404
