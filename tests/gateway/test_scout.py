"""A process beside this one that asks: what it answers, and what it costs when it does not."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgpack
import nacl.signing
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as some

from chunker.record import PathRecord
from gateway import scout as scout_module
from gateway.access import Access
from gateway.errors import ScoutBroken, Stopping, UpstreamError
from gateway.handles import Login
from gateway.narinfo import Narinfo, fingerprint, format, parse
from gateway.scout import COMMAND, Scout
from gateway.scout_frames import LENGTH_BYTES, Frames, answers, frame, read_settings, settings
from gateway.scout_process import signed_text
from gateway.seals import SECRET_BYTES, Seals, seal
from gateway.signing import KeyRing
from gateway.transfers import Transfers
from gateway.upstream import HttpCache
from tests.gateway.test_memory import signed_path
from tests.gateway.test_substituter import KEY
from tests.gateway.test_upstream import Server, server
from tests.peer.office import until

__all__ = ["server"]  # a fixture

RECORD: PathRecord = signed_path("hello", size=10)[0]
BODY = format(RECORD, RECORD.signatures)
FORGED = format(replace(RECORD, nar_size=11), RECORD.signatures)
HASH = RECORD.store_hash
NOT_THERE = "0" * 32
ENDLESS = (200, {"Content-Length": "99999999999", "X-Test": "endless"}, b"")
PAGE = f"/{HASH}.narinfo"

FAKE = """
import os, socket, struct, sys, time
import msgpack
line = socket.socket(fileno=0)
def say(value):
    data = msgpack.packb(value)
    line.sendall(struct.pack(">I", len(data)) + data)
def hear():
    size = struct.unpack(">I", line.recv(4, socket.MSG_WAITALL))[0]
    return msgpack.unpackb(line.recv(size, socket.MSG_WAITALL))
secret = hear()[0]
say([])
asked = hear()
"""
LONG = "import threading; threading.Event().wait()"
BROKEN = {
    "it dies": "sys.exit(1)",
    "it is silent": LONG,
    "it says what is no answer": f"say([[asked[0][0], 'what']]); {LONG}",
    "it says what is no msgpack": rf"line.sendall(b'\0\0\0\1\xc1'); {LONG}",
    "it answers what nobody asked": f"say([[asked[0][0] + 1000, 404, b'', []]]); {LONG}",
    "it speaks without end": f"line.sendall(b'\\xff\\xff\\xff\\xff'); {LONG}",
}


@dataclass
class Place:
    scout: Scout
    cache: HttpCache
    ring: KeyRing

    def holds(self, info: Narinfo | None) -> bool:
        assert info is not None
        text = fingerprint(info.store_path, info.nar_hash, info.nar_size, info.references)
        return bool(self.ring.verified(text, info.signatures))


def fake(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", FAKE + code)


@asynccontextmanager
async def place(server: Server, command: tuple[str, ...] = COMMAND) -> AsyncIterator[Place]:
    """With a scout that is there, and is asked from the first question on."""
    transfers, ring = Transfers(), KeyRing((KEY.public,))
    scout = Scout(ring.seals, [ring], command)
    cache = HttpCache(server.url, None, transfers, scout)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(transfers.run)
            await nursery.start(scout.run)
            assert await cache.narinfo(NOT_THERE) is None  # here: nobody else is there
            await until(lambda: scout.is_there)
            yield Place(scout, cache, ring)
            nursery.cancel_scope.cancel()
    cache.close()


@pytest.fixture(autouse=True)
def asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scout_module, "BURST_QUESTIONS", 0)
    monkeypatch.setattr(scout_module, "ASKING_QUESTIONS_MIN", 0)


@pytest.fixture
def verifies_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*_: object) -> None:
        raise AssertionError("verified here")

    monkeypatch.setattr(nacl.signing.VerifyKey, "verify", verify)


async def test_it_asks_and_verifies(server: Server, verifies_nothing_here: None) -> None:
    server.pages[PAGE] = (200, {}, BODY)
    async with place(server) as here:
        info = await here.cache.narinfo(HASH)
        assert info == parse(BODY) and here.holds(info)
        assert await here.cache.narinfo(NOT_THERE) is None


async def test_a_forged_narinfo_does_not_hold(server: Server) -> None:
    server.pages[PAGE] = (200, {}, FORGED)
    async with place(server) as here:
        assert not here.holds(await here.cache.narinfo(HASH))


async def test_a_seal_that_was_not_made_proves_nothing(server: Server) -> None:
    """Whatever a process says that lost its mind: what it passes off is verified here."""
    answer = f"say([[asked[0][0], 200, {FORGED!r}, [os.urandom(32), bytes(32), secret]]]); {LONG}"
    async with place(server, fake(answer)) as here:
        assert not here.holds(await here.cache.narinfo(HASH))
        assert here.scout.is_there


async def test_a_seal_of_something_else_proves_nothing(server: Server) -> None:
    text = fingerprint(RECORD.store_path, RECORD.nar_hash, RECORD.nar_size, RECORD.references)
    sealed = f"seal(secret, {KEY.public.key!r}, {RECORD.signatures[0]!r}, {text!r})"
    answer = (
        f"from gateway.seals import seal\nsay([[asked[0][0], 200, {FORGED!r}, [{sealed}]]]); {LONG}"
    )
    async with place(server, fake(answer)) as here:
        assert not here.holds(await here.cache.narinfo(HASH))
        assert here.scout.is_there


@pytest.mark.parametrize("name", BROKEN)
async def test_one_that_breaks_costs_no_answer(
    server: Server, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scout_module, "SILENCE_SECONDS_MAX", 0.2)
    caplog.set_level(logging.WARNING, "gateway.scout")
    server.pages[PAGE] = (200, {}, BODY)
    async with place(server, fake(BROKEN[name])) as here:
        assert here.holds(await here.cache.narinfo(HASH))
        assert not here.scout.is_there
        assert await here.cache.narinfo(NOT_THERE) is None  # it rests, and no other is started
    assert [record.getMessage()[-18:] for record in caplog.records] == ["asked here instead"]


async def test_one_that_cannot_be_started_costs_nothing(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.pages[PAGE] = (200, {}, BODY)
    transfers, ring = Transfers(), KeyRing((KEY.public,))
    scout = Scout(ring.seals, [ring], ("/nowhere/python",))
    cache = HttpCache(server.url, None, transfers, scout)
    async with trio.open_nursery() as nursery:
        await nursery.start(transfers.run)
        await nursery.start(scout.run)
        assert await cache.narinfo(HASH) == parse(BODY)
        await until(lambda: bool(caplog.records))
        assert await cache.narinfo(HASH) == parse(BODY)
        nursery.cancel_scope.cancel()
    cache.close()


async def test_what_it_does_not_follow_is_followed_here(server: Server) -> None:
    server.pages[PAGE] = (302, {"Location": f"{server.url}/there"}, b"")
    server.pages["/there"] = (200, {}, BODY)
    async with place(server) as here:
        assert await here.cache.narinfo(HASH) == parse(BODY)
    assert server.seen.count(PAGE) == 2


async def test_what_fails_there_fails_here(server: Server) -> None:
    server.pages[PAGE] = (503, {}, b"")
    server.pages[f"/{'1' * 32}.narinfo"] = ENDLESS
    server.pages[f"/{'2' * 32}.narinfo"] = (200, {"Content-Length": "9", "X-Test": "cut"}, b"")
    async with place(server) as here:
        for name, why in ((HASH, "503"), ("1" * 32, "longer than"), ("2" * 32, "narinfo: ")):
            with pytest.raises(UpstreamError, match=why):
                await here.cache.narinfo(name)


async def test_that_this_process_stops_is_said_to_who_waits(server: Server) -> None:
    raised: list[Exception] = []

    async def ask(here: Place) -> None:
        try:
            await here.cache.narinfo(HASH)
        except Stopping as error:
            raised.append(error)

    async with trio.open_nursery() as asking, place(server, fake(LONG)) as here:
        asking.start_soon(ask, here)
        await trio.testing.wait_all_tasks_blocked()
    assert len(raised) == 1


async def test_it_goes_when_it_is_not_needed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scout_module, "QUIET_SECONDS_MAX", 0.05)
    server.pages[PAGE] = (200, {}, BODY)
    async with place(server) as here:
        await until(lambda: not here.scout.is_there)
        assert await here.cache.narinfo(HASH) == parse(BODY)
        await until(lambda: here.scout.is_there)  # and comes again


async def test_one_that_goes_is_asked_nothing_more(server: Server) -> None:
    """Until it is gone there are moments in which others want to ask: no question is lost."""
    heard: list[int] = []
    async with place(server) as here:
        patience = here.scout._patience
        patience.deadline = float("-inf")  # the quiet minute is over
        while not patience.cancelled_caught:
            await trio.lowlevel.checkpoint()
        if here.scout.takes(1):
            here.scout.ask(0, f"{server.url}{PAGE}", lambda status, body: heard.append(status))
            await until(lambda: bool(heard))


async def test_what_is_asked_when_a_quiet_minute_ends_is_answered(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int] = []
    async with place(server) as here:
        here.scout._patience.cancel()
        here.scout.ask(0, f"{server.url}{PAGE}", lambda status, body: heard.append(status))
        await until(lambda: bool(heard))
        assert here.scout.is_there
    assert heard == [404] and not caplog.records


async def test_a_few_questions_are_asked_here(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place(server, fake(LONG)) as here:
        monkeypatch.setattr(scout_module, "ASKING_QUESTIONS_MIN", 2)
        assert await here.cache.narinfo(NOT_THERE) is None


def test_seals_prove_one_thing_once() -> None:
    seals, secret, key = Seals(), bytes(range(SECRET_BYTES)), bytes(32)
    seals.begin(secret)
    made = seal(secret, key, "a:b", b"text")
    seals.add([made])
    assert not seals.proves(key, "a:b", b"texT")
    assert not seals.proves(key, "a:c", b"text")
    assert not seals.proves(bytes([1] * 32), "a:b", b"text")
    assert seals.proves(key, "a:b", b"text")
    assert not seals.proves(key, "a:b", b"text")
    seals.add([made])
    seals.begin(bytes(SECRET_BYTES))
    assert not seals.proves(key, "a:b", b"text")


def test_seals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.seals.SEALS_MAX", 2)
    seals, secret = Seals(), bytes(SECRET_BYTES)
    seals.begin(secret)
    seals.add(seal(secret, bytes(32), "a:b", text) for text in (b"1", b"2", b"3"))
    assert [seals.proves(bytes(32), "a:b", text) for text in (b"1", b"2", b"3")] == [
        False, True, True,
    ]  # fmt: skip


def test_the_text_that_is_verified_is_the_fingerprint() -> None:
    record = replace(
        RECORD, references=tuple(sorted((RECORD.store_path, f"{RECORD.store_path}-b")))
    )
    text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    assert signed_text(format(record, ("a:b", "c:d"))) == (text, ["a:b", "c:d"])


@given(some.binary(max_size=200))
def test_whatever_a_cache_says_is_looked_at(body: bytes) -> None:
    signed_text(body)


@given(some.binary(max_size=64), some.integers(0, 64))
def test_whatever_it_says_is_an_answer_or_broken(data: bytes, at: int) -> None:
    frames = Frames()
    try:
        for piece in (data[:at], data[at:]):
            for value in frames.feed(piece):
                answers(value)
    except ScoutBroken:
        pass


def test_frames_come_in_any_split() -> None:
    said = [[1, 200, b"body", [bytes(32)]], [2, 404, b"", []]]
    frames, heard = Frames(), []
    for byte in frame(said) + frame([]):
        heard += [answers(value) for value in frames.feed(bytes([byte]))]
    assert heard == [said, []]


def test_what_it_is_told_first() -> None:
    access = Access(Path("/netrc"), None, {"host:443": "token"})
    login = Login(("https", "host"), ("user", "password"), access)
    packed = settings(bytes(SECRET_BYTES), [("name", bytes(32))], [login])[LENGTH_BYTES:]
    assert read_settings(msgpack.unpackb(packed)) == (
        bytes(SECRET_BYTES), [("name", bytes(32))], [login],
    )  # fmt: skip
