"""Pools on disk, in a running process, and on the command line."""

from __future__ import annotations

import json
import random
import stat
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from chunker.store import MemoryStore
from gateway import cli, pool_files, pool_keeper
from gateway.config import load_config
from gateway.errors import UsageError
from gateway.offer import policy
from gateway.pool_files import DiskRegister
from gateway.pool_keeper import RENEW_AT_SECONDS, PoolKeeper
from gateway.signing import KeyRing, generate
from peer.catalogue import Catalogue
from peer.certificates import (
    CERTIFICATE_SECONDS,
    PoolId,
    decode_certificate,
    issue,
    sign,
)
from peer.identity import Identity, PeerId, load_or_create
from peer.join_code import token_digest
from peer.joining import Answer, Joined, accept
from peer.policies import Policies
from peer.swarm import Swarm
from peer.transport import MemoryNetwork, MemoryTransport
from tests.gateway.test_substituter import signed_path
from tests.peer.office import until
from tests.peer.test_pools import CLUB, OFFICE, START, Pool

SECONDS_MAX = 30.0
KEY, OTHER_KEY = generate("office-1"), generate("other-1")


def with_keys(pool: Pool, *keys: str, holder: PeerId | None = None) -> Pool:
    pool = Pool(pool.name)
    pool.description = replace(
        pool.description, keys=keys, holder=holder or pool.description.holder
    )
    return pool


def joined(pool: Pool, peer: PeerId, *others: PeerId, issued: float = START) -> Joined:
    blob = pool.certificate(peer, issued)
    listed = tuple(
        (pool.certificate(other, issued), (f"/ip4/127.0.0.1/tcp/1/p2p/{other}",))
        for other in others
    )
    answer = Answer(sign(pool.key, pool.description), blob, listed)
    return accept(answer, pool.id, peer, issued)


def identity(store: Path) -> Identity:
    store.mkdir(exist_ok=True, mode=0o700)
    return load_or_create(store / "identity")


PATH_POOL = with_keys(OFFICE, KEY.public.text)


# -- on disk -------------------------------------------------------------------------------------


def test_all_of_it_is_its_owners_alone(tmp_path: Path) -> None:
    here = identity(tmp_path / "a").peer_id
    key = pool_files.make_key(tmp_path / "a")
    own = joined(PATH_POOL, here, CLUB.description.holder)
    directory = pool_files.write_joined(tmp_path / "a", own)
    pool_files.write_token(directory, token_digest(b"t" * 16), START + 1, START)
    pool_files.write_revocation(directory, PATH_POOL.revoke(CLUB.description.holder))
    files = [path for path in (tmp_path / "a" / "pools").rglob("*") if path.is_file()]
    assert len(files) == 6 and key.public != PATH_POOL.id
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    folders = [p for p in (tmp_path / "a").rglob("*") if p.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert all(b"t" * 16 not in path.read_bytes() for path in files)


def test_what_is_written_is_found(tmp_path: Path) -> None:
    here, other = identity(tmp_path).peer_id, CLUB.description.holder
    directory = pool_files.write_joined(tmp_path, joined(PATH_POOL, here, other))
    known = PATH_POOL.revoke(other)
    pool_files.write_revocation(directory, known)
    (held,), wrong = pool_files.load(tmp_path, here)
    assert not wrong and held.description == PATH_POOL.description and held.key is None
    assert [listed.certificate.peer for listed in held.members] == [other]
    assert held.revoked == (known,)
    pool_files.forget(directory)
    assert pool_files.load(tmp_path, here) == ([], [])
    assert not directory.exists()


def test_an_older_revocation_does_not_replace_a_newer(tmp_path: Path) -> None:
    here, other = identity(tmp_path).peer_id, CLUB.description.holder
    directory = pool_files.write_joined(tmp_path, joined(PATH_POOL, here))
    for since in (START, START + 5, START + 1):
        pool_files.write_revocation(directory, PATH_POOL.revoke(other, since))
    (held,), _ = pool_files.load(tmp_path, here)
    assert [known.revocation.since for known in held.revoked] == [START + 5]


@pytest.mark.parametrize("name", ["description", "certificate"])
def test_what_is_damaged_is_said_and_the_other_pools_go_on(tmp_path: Path, name: str) -> None:
    here = identity(tmp_path).peer_id
    directory = pool_files.write_joined(tmp_path, joined(PATH_POOL, here))
    pool_files.write_joined(tmp_path, joined(CLUB, here))
    (directory / name).write_bytes(b"rot")
    held, wrong = pool_files.load(tmp_path, here)
    assert [pool.description.name for pool in held] == ["club"]
    assert len(wrong) == 1 and str(directory) in wrong[0]


def test_another_stores_certificate_is_worth_nothing_here(tmp_path: Path) -> None:
    pool_files.write_joined(tmp_path, joined(PATH_POOL, CLUB.description.holder))
    held, wrong = pool_files.load(tmp_path, identity(tmp_path).peer_id)
    assert not held and "replayed" in wrong[0]


def test_a_token_is_used_up_by_one_of_many_threads(tmp_path: Path) -> None:
    large = with_keys(OFFICE, *[generate(f"key-{number:0100}").public.text for number in range(32)])
    directory = pool_files.write_joined(tmp_path, joined(large, identity(tmp_path).peer_id))
    digest = token_digest(b"t" * 16)
    for _ in range(20):
        pool_files.write_token(directory, digest, START + 10, START)
        with ThreadPoolExecutor(8) as threads:
            got = list(threads.map(partial(DiskRegister(tmp_path).take, digest), [START] * 8))
        assert sorted(got, key=str) == sorted([PATH_POOL.id] + [None] * 7, key=str)


def test_a_token_after_its_time_is_void_and_gone(tmp_path: Path) -> None:
    directory = pool_files.write_joined(tmp_path, joined(PATH_POOL, identity(tmp_path).peer_id))
    digest, later = token_digest(b"t" * 16), token_digest(b"u" * 16)
    pool_files.write_token(directory, digest, START + 10, START)
    assert DiskRegister(tmp_path).take(digest, START + 10) is None
    assert DiskRegister(tmp_path).take(digest, START) is None
    pool_files.write_token(directory, digest, START + 10, START)
    pool_files.write_token(directory, later, START + 30, START + 20)
    assert pool_files.remove_tokens(directory) == 1


# -- who may have what ---------------------------------------------------------------------------


def test_a_member_may_have_what_its_pools_keys_signed() -> None:
    record, _ = signed_path("path", KEY)
    foreign, _ = signed_path("path", OTHER_KEY)
    nothing, ring = KeyRing(()), KeyRing([KEY.public])
    both = KeyRing([KEY.public, OTHER_KEY.public])
    member, stranger = PeerId("member"), PeerId("stranger")
    may = policy([], both, nothing, lambda peer: [ring] if peer == member else [])
    assert may(member, record) and not may(member, foreign)
    assert not may(stranger, record)


# -- in a running process ------------------------------------------------------------------------


class Office:
    """Keepers with real files; streams in memory, one clock for all."""

    def __init__(self, top: Path, nursery: trio.Nursery) -> None:
        self.top = top
        self.now = START
        self.network = MemoryNetwork()
        self._nursery = nursery

    def peer(self, name: str) -> PeerId:
        return identity(self.top / name).peer_id

    def join(self, pool: Pool, name: str, *others: str, issued: float = START) -> Path:
        known = [self.peer(other) for other in others]
        return pool_files.write_joined(
            self.top / name, joined(pool, self.peer(name), *known, issued=issued)
        )

    async def start(self, name: str) -> tuple[PoolKeeper, Swarm]:
        keeper = PoolKeeper(self.top / name, identity(self.top / name), "gateway", lambda: self.now)
        transport, store = MemoryTransport(self.network, self.peer(name)), MemoryStore()
        swarm = Swarm(
            transport, store, Catalogue(store, bytes(32), lambda asker, record: False), "gateway",
            Policies(serves=lambda _: False, asks=keeper.is_member, knows=keeper.is_member,
                     trusted_manifest=lambda _: False, admits=lambda _: True),
            [], random.Random(name), keeper.introductions, keeper.handlers,
        )  # fmt: skip
        await self._nursery.start(swarm.run)
        self._nursery.start_soon(keeper.run, swarm, transport)
        return keeper, swarm


@asynccontextmanager
async def office(top: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    monkeypatch.setattr(pool_keeper, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(pool_keeper, "DIAL_SECONDS", 0.05)
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            yield Office(top, nursery)
            nursery.cancel_scope.cancel()


async def test_members_are_dialled_where_they_were_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office(tmp_path, monkeypatch) as place:
        place.join(PATH_POOL, "one", "two", "three")
        place.join(PATH_POOL, "two")
        keeper, swarm = await place.start("one")
        _, other = await place.start("two")
        await until(lambda: swarm.sessions() == (place.peer("two"),))
        await until(lambda: other.sessions() == (place.peer("one"),))
        assert [ring.keys for ring in keeper.keys_for(place.peer("two"))] == [
            KeyRing([KEY.public]).keys
        ]
        assert list(keeper.keys_for(CLUB.description.holder)) == []
        assert keeper.status() == [
            {
                "name": "office",
                "id": pool_files.directory_of(tmp_path, PATH_POOL.id).name,
                "expires": int(START) + CERTIFICATE_SECONDS,
                "online": [place.peer("two")],
            }
        ]
        # The other has learnt of it, and will know it after a restart.
        here = place.peer("two")
        await until(lambda: bool(pool_files.load(tmp_path / "two", here)[0][0].members))


async def test_what_the_command_line_changes_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office(tmp_path, monkeypatch) as place:
        keeper, swarm = await place.start("one")
        assert keeper.status() == []
        place.join(PATH_POOL, "two")
        await place.start("two")
        directory = place.join(PATH_POOL, "one", "two")
        await until(lambda: swarm.sessions() == (place.peer("two"),))
        pool_files.write_revocation(directory, PATH_POOL.revoke(place.peer("two")))
        await until(lambda: not swarm.sessions() and not keeper.is_member(place.peer("two")))
        pool_files.forget(directory)
        await until(lambda: keeper.status() == [])


async def test_a_revocation_that_was_heard_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office(tmp_path, monkeypatch) as place:
        directory = place.join(PATH_POOL, "one", "two")
        place.join(PATH_POOL, "two")
        known = PATH_POOL.revoke(place.peer("out"))
        await place.start("one")
        await place.start("two")
        pool_files.write_revocation(directory, known)
        here = place.peer("two")
        await until(lambda: pool_files.load(tmp_path / "two", here)[0][0].revoked == (known,))


async def test_a_membership_is_renewed_by_the_holder_while_all_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office(tmp_path, monkeypatch) as place:
        pool = with_keys(OFFICE, KEY.public.text, holder=place.peer("holder"))
        directory = place.join(pool, "holder")
        (directory / "key").write_bytes(
            b"narswarm-identity-1\n" + pool.key.seed.hex().encode() + b"\n"
        )
        (directory / "key").chmod(0o600)
        place.join(pool, "one", "holder")
        _, holding = await place.start("holder")
        keeper, swarm = await place.start("one")
        await until(lambda: bool(swarm.sessions()))
        first = keeper.membership.pools[pool.id].member.certificate
        place.now += CERTIFICATE_SECONDS - RENEW_AT_SECONDS + 1
        await until(lambda: keeper.membership.pools[pool.id].member.certificate != first)
        renewed = keeper.membership.pools[pool.id].member.certificate
        assert renewed.expiry == int(place.now) + CERTIFICATE_SECONDS
        # The holder renews itself, and neither lost the other for it.
        members = keeper.membership.members
        key = (pool.id, place.peer("holder"))
        await until(lambda: members[key].certificate.expiry > first.expiry)
        assert swarm.sessions() and holding.sessions()
        file = pool_files.directory_of(tmp_path / "one", pool.id) / "certificate"
        assert decode_certificate(file.read_bytes()) == renewed


async def test_an_expired_member_is_out_until_it_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows where the other is and dials it again and again."""
    async with office(tmp_path, monkeypatch) as place:
        directory = place.join(PATH_POOL, "one", issued=START - CERTIFICATE_SECONDS - 5)
        two = place.peer("two")
        where = [f"/ip4/127.0.0.1/tcp/1/p2p/{two}"]
        pool_files.write_member(directory, two, PATH_POOL.certificate(two), where, 0.0)
        place.join(PATH_POOL, "two")
        other, _ = await place.start("two")
        keeper, swarm = await place.start("one")
        await until(lambda: len(place.network.streams) >= 8)
        assert not swarm.sessions() and not other.is_member(place.peer("one"))
        assert keeper.status()[0]["online"] == []
        place.join(PATH_POOL, "one")
        await until(lambda: swarm.sessions() == (two,))


# -- the command line ----------------------------------------------------------------------------


def run(*words: str) -> int:
    return cli.main(["pool", *words])


def test_create_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "s")
    assert run("create", "office", "--public-key", KEY.public.text, "--store", store) == 0
    out = capsys.readouterr().out
    assert "pool office is made" in out and "office-1" in out and "pool invite" in out
    held, wrong = pool_files.load(tmp_path / "s", identity(tmp_path / "s").peer_id)
    assert not wrong and held[0].key is not None
    assert held[0].description.keys == (KEY.public.text,)
    assert load_config("gateway", {"store": store}).listen == ("0.0.0.0:4555",)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "Office!", "--public-key", KEY.public.text], "cannot name a pool"),
        (["create", "x", "--public-key", "nonsense"], "a key must read"),
        (["invite"], "in no pool"),
        (["invite", "office"], "in no pool named office"),
        (["join", "nsw1x"], "cut or changed"),
        (["join", "hello"], "that is no join code"),
        (["leave", "office"], "in no pool named office"),
        (
            [
                "create",
                "x",
                *[w for n in range(33) for w in ("--public-key", generate(str(n)).public.text)],
            ],
            "at most 32 keys",
        ),
        (["revoke", "nobody"], "is not a PeerId"),
        (["revoke", CLUB.description.holder], "in no pool"),
    ],
)
def test_bad_use_is_one_clear_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, "--store", str(tmp_path)) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_what_a_plain_member_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = identity(tmp_path).peer_id
    pool_files.write_joined(tmp_path, joined(PATH_POOL, here))
    for words in (["invite"], ["revoke", CLUB.description.holder]):
        assert run(*words, "--store", str(tmp_path)) == 2
        assert PATH_POOL.description.holder in capsys.readouterr().err
    with pytest.raises(UsageError, match="already"):
        from gateway.pool_commands import _make_sure_it_is_new

        _make_sure_it_is_new(pool_files.load(tmp_path, here)[0], "office")


def test_revoking_voids_the_codes_that_are_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who is put out may have one of them, for another PeerId."""
    store = str(tmp_path)
    assert run("create", "office", "--public-key", KEY.public.text, "--store", store) == 0
    directory = next((tmp_path / "pools").iterdir())
    now = pool_keeper.wall_clock()
    pool_files.write_token(directory, token_digest(b"t" * 16), now + 100, now)
    assert run("revoke", CLUB.description.holder, "--store", store) == 0
    assert "1 join codes" in capsys.readouterr().out
    assert DiskRegister(tmp_path).take(token_digest(b"t" * 16), now) is None
    held = pool_files.load(tmp_path, identity(tmp_path).peer_id)[0][0]
    assert [known.revocation.peer for known in held.revoked] == [CLUB.description.holder]


def test_members_in_a_table_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, other = identity(tmp_path).peer_id, CLUB.description.holder
    now = pool_keeper.wall_clock()
    pool = PATH_POOL
    blob = issue(pool.key, here, "gateway", now, 1, None)
    gone = Identity(b"g" * 32).peer_id
    answer = Answer(sign(pool.key, pool.description), blob, ())
    directory = pool_files.write_joined(tmp_path, accept(answer, pool.id, here, now))
    pool_files.write_member(directory, other, pool.certificate(other, now - 10), (), now - 7200)
    over = pool.certificate(gone, now - 8 * 86400)
    pool_files.write_member(directory, gone, over, (), 0)
    pool_files.write_revocation(directory, pool.revoke(other, now))
    assert run("members", "--json", "--store", str(tmp_path)) == 0
    (listed,) = json.loads(capsys.readouterr().out)["pools"]
    states = {member["peer_id"]: member["state"] for member in listed["members"]}
    assert states == {here: "this machine", other: "revoked", gone: "expired"}
    assert run("members", "--store", str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert all(peer in out for peer in (here, other, gone)) and "2 h ago" in out


def test_two_pools_of_one_name_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = identity(tmp_path).peer_id
    first = pool_files.write_joined(tmp_path, joined(PATH_POOL, here))
    twin = Pool("office")
    twin.key = Identity(b"2" * 32)
    twin.description = replace(twin.description, pool=PoolId(twin.key.public))
    second = pool_files.write_joined(tmp_path, joined(twin, here))
    assert run("leave", "office", "--store", str(tmp_path)) == 2
    assert first.name in capsys.readouterr().err
    assert run("leave", second.name, "--store", str(tmp_path)) == 0
    assert first.exists() and not second.exists()


def test_a_renewal_keeps_when_members_were_seen(tmp_path: Path) -> None:
    here, other = identity(tmp_path).peer_id, CLUB.description.holder
    directory = pool_files.write_joined(tmp_path, joined(PATH_POOL, here, other))
    pool_files.write_member(directory, other, PATH_POOL.certificate(other), (), START + 7)
    pool_files.write_joined(tmp_path, joined(PATH_POOL, here, other, issued=START + 60))
    (listed,) = pool_files.load(tmp_path, here)[0][0].members
    assert listed.seen == START + 7 and listed.certificate.issued == START + 60


def test_leaving_the_pool_that_is_held_here_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path)
    assert run("create", "office", "--public-key", KEY.public.text, "--store", store) == 0
    assert run("leave", "office", "--store", store) == 0
    assert "nobody can come in" in capsys.readouterr().err
    assert not list((tmp_path / "pools").iterdir())
    assert PoolId(bytes(32)) not in PoolKeeper(tmp_path, identity(tmp_path), "gateway")._held
