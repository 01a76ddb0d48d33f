"""What Nix is told under a policy: signatures from several places, and content without any."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from chunker.digest import NarHash
from chunker.record import PathRecord
from chunker.store import MemoryStore
from gateway.alarms import Alarms
from gateway.breaker import Guarded
from gateway.narinfo import SIGNATURES_ONLY_URL, Narinfo, format, nar_url, parse
from gateway.policy import Policy, Rule, any_of
from gateway.proofs import DISPROVED_SECONDS
from gateway.server import BodyBroken
from gateway.signing import KeyRing, SecretKey
from gateway.substituter import Substituter
from gateway.upstream import FileCache
from gateway.vouching import publish
from tests.gateway.test_content_address import ALL, ONE_ID, one
from tests.gateway.test_policy import sign
from tests.gateway.test_substituter import KEY, border, signed_path, write_cache
from tests.peer.office import hold, office, until

SECOND = SecretKey("second-1", b"s" * 32)
BOTH = Policy(KeyRing((KEY.public, SECOND.public)), [Rule("both", ("office-1", "second-1"), 2)])
NOBODY = any_of(KeyRing(()))


class Counted(FileCache):
    """Counts the NARs it is asked for."""

    nars = 0

    @asynccontextmanager
    async def nar(self, info: Narinfo) -> AsyncIterator[AsyncIterator[bytes]]:
        self.nars += 1
        async with super().nar(info) as pieces:
            yield pieces


class Late(FileCache):
    """Answers once something else was heard."""

    def __init__(self, cache: FileCache, heard: trio.Event) -> None:
        super().__init__(cache.url, cache._directory)
        self._heard = heard

    async def narinfo(self, store_hash: str) -> Narinfo | None:
        await self._heard.wait()
        return await super().narinfo(store_hash)


def signatures_of(directory: Path, record: PathRecord, key: SecretKey = SECOND) -> Counted:
    directory.mkdir()
    publish(record, key, directory)
    return Counted(f"file://{directory}", directory)


@pytest.mark.parametrize("vouching_first", [True, False])
async def test_two_builders_from_two_places(tmp_path: Path, vouching_first: bool) -> None:
    async with office() as place:
        record, nar = signed_path("path")
        caches = [
            signatures_of(tmp_path / "b", record),
            write_cache(tmp_path / "a", record, nar),
        ]
        upstreams = tuple(caches if vouching_first else reversed(caches))
        async with border(place, upstreams=upstreams, policy=BOTH) as me:
            answer = await me.get(f"/{record.store_hash}.narinfo")
            assert answer.status == 200 and isinstance(answer.body, bytes)
            info = parse(answer.body)
            assert {one.partition(":")[0] for one in info.signatures} == {"office-1", "second-1"}
            assert info.url == nar_url(record)
            right = await me.nar(record) == nar
            assert right and caches[0].nars == 0  # type: ignore[attr-defined]


async def test_who_only_vouches_is_asked_for_no_nar_where_the_others_fail(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path")
        cache = write_cache(tmp_path / "a", record, nar)
        for file in (tmp_path / "a" / "nar").iterdir():
            file.unlink()
        vouching = signatures_of(tmp_path / "b", record)
        async with border(place, upstreams=(cache, vouching), policy=BOTH) as me:
            assert (await me.get(f"/{nar_url(record)}")).status == 404
            assert vouching.nars == 0


async def test_one_of_two_builders_is_not_enough(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path")
        cache = write_cache(tmp_path, record, nar)
        async with border(place, upstreams=(cache,), policy=BOTH) as me:
            assert await me.narinfo(record) == 404
            assert (await me.get(f"/{nar_url(record)}")).status == 404
            assert me.substituter.served.refused > 0


async def test_a_peer_has_the_path_and_an_upstream_the_other_signature(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path")
        hold(place.stores.setdefault("seed", MemoryStore()), record, nar)
        await place.start("seed", "seed")
        vouching = signatures_of(tmp_path / "b", record)
        async with border(place, "seed", upstreams=(vouching,), policy=BOTH) as me:
            assert await me.narinfo(record) == 200
            right = await me.nar(record) == nar
            assert right


async def test_what_is_only_vouched_for_is_not_promised(tmp_path: Path) -> None:
    async with office() as place:
        record, _ = signed_path("path")
        vouching = signatures_of(tmp_path / "b", record, KEY)
        async with border(place, upstreams=(vouching,)) as me:
            assert await me.narinfo(record) == 404


async def test_two_contents_of_one_path_are_refused_where_that_is_configured(
    tmp_path: Path,
) -> None:
    """The one that answers first does not end the look-up."""
    alarms = Alarms(refuses=True)
    keys = KeyRing((KEY.public, SECOND.public))
    policy = Policy(keys, disputed=alarms.disputed)
    record, nar = signed_path("path")
    other, other_nar = signed_path("other")
    other = replace(other, store_path=record.store_path, signatures=())
    other = replace(other, signatures=(sign(other, SECOND),))
    heard = trio.Event()
    caches = (
        write_cache(tmp_path / "a", record, nar),
        Late(write_cache(tmp_path / "b", other, other_nar), heard),
    )
    async with office() as place:
        node = await place.start("me", "gateway")

        def saw(record: PathRecord, signatures: tuple[str, ...]) -> None:
            heard.set()
            alarms.saw(0.0, record, (one.partition(":")[0] for one in signatures))

        substituter = Substituter(
            node.store, node.swarm, caches, policy, KeyRing(()), 20, saw=saw, hears_all=True
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(substituter.run)
            assert await substituter.look_up(record.store_hash) is None
            nursery.cancel_scope.cancel()
        assert record.store_path in alarms.conflicts


UNBOUND = [("text:sha256", "sentence"), ("fixed:sha256", "file"), ("fixed:r:sha256", "itself"),
           ("fixed:r:sha1", "file")]  # fmt: skip


@pytest.mark.parametrize(("record", "nar"), ALL, ids=[r.store_path[44:] for r, _ in ALL])
async def test_content_addressed_paths_need_no_signature(
    tmp_path: Path, record: PathRecord, nar: bytes
) -> None:
    async with office() as place:
        cache = write_cache(tmp_path, record, nar)
        async with border(place, upstreams=(cache,), policy=NOBODY) as me:
            answer = await me.get(f"/{record.store_hash}.narinfo")
            assert answer.status == 200 and isinstance(answer.body, bytes)
            assert parse(answer.body).content_address == record.content_address
            assert await me.nar(record) == nar
            await until(lambda: me.node.store.record(record.store_hash) is not None)
            (tmp_path / nar_url(record)).unlink()
            assert await me.nar(record) == nar  # now from the store


def lie(kind: str, name: str) -> tuple[PathRecord, bytes, bytes]:
    """The true record and NAR; and another NAR of that length, which a liar says it is."""
    record, nar = one(kind, name)
    wrong = bytearray(nar)
    place = nar.index(b"contents") + 16
    wrong[place] ^= 1
    return record, nar, bytes(wrong)


def lying(record: PathRecord, wrong: bytes) -> PathRecord:
    return replace(record, nar_hash=NarHash(hashlib.sha256(wrong).digest()))


@pytest.mark.parametrize(("kind", "name"), UNBOUND)
async def test_a_nar_that_matches_only_its_nar_hash_is_cut(
    tmp_path: Path, kind: str, name: str
) -> None:
    """The address is right, and the NarHash is that of other bytes, which the liar has."""
    record, _, wrong = lie(kind, name)
    false = lying(record, wrong)
    async with office() as place:
        cache = write_cache(tmp_path, false, wrong)
        async with border(place, upstreams=(cache,), policy=NOBODY) as me:
            answer = await me.get(f"/{nar_url(false)}")
            received = b""
            if answer.status == 200:
                with pytest.raises(BodyBroken):
                    assert not isinstance(answer.body, bytes)
                    async for piece in answer.body:
                        received += piece
            assert len(received) < len(wrong)
            assert await me.narinfo(false) == 404, "it is not believed again"
            assert me.node.store.record(record.store_hash) is None


@pytest.mark.parametrize(("kind", "name"), UNBOUND)
async def test_a_false_nar_hash_enters_no_record(tmp_path: Path, kind: str, name: str) -> None:
    """Though the NAR matches it, and nobody reads it."""
    record, nar, wrong = lie(kind, name)
    false = lying(record, wrong)
    async with office() as place:
        liar = write_cache(tmp_path / "a", false, wrong)
        async with border(place, upstreams=(liar,), policy=NOBODY) as me:
            deliveries = me.substituter.deliveries
            assert deliveries.fill(false) is not None
            await until(lambda: not deliveries.running())
            assert me.node.store.record(record.store_hash) is None
        honest = write_cache(tmp_path / "b", record, nar)
        async with border(place, upstreams=(honest,), policy=NOBODY) as me:
            deliveries = me.substituter.deliveries
            assert deliveries.fill(record) is not None
            await until(lambda: not deliveries.running())
            assert me.node.store.record(record.store_hash) is not None


async def test_a_lie_about_the_size_costs_the_honest_upstream_nothing(tmp_path: Path) -> None:
    """It would be blamed for a NAR that is longer than was said."""
    record, nar = one("fixed:r:sha256", "small")
    false = replace(record, nar_size=record.nar_size - 8)
    async with office() as place:
        honest = Guarded(write_cache(tmp_path, record, nar))
        async with border(place, upstreams=(honest,), policy=NOBODY) as me:  # type: ignore[arg-type]
            assert me.substituter.deliveries.fill(false) is not None
            await until(lambda: not me.substituter.deliveries.running())
            assert await me.nar(record) == nar


async def test_what_no_address_can_prove_costs_an_honest_upstream_nothing(tmp_path: Path) -> None:
    """Its bytes are right, and only a signature could say so."""
    other, other_nar = one("fixed:r:sha256", "small")
    for record, nar in ONE_ID:
        write_cache(tmp_path, record, nar)
    async with office() as place:
        honest = Guarded(write_cache(tmp_path, other, other_nar))
        async with border(place, upstreams=(honest,), policy=NOBODY) as me:  # type: ignore[arg-type]
            deliveries = me.substituter.deliveries
            for record, _ in ONE_ID:
                assert deliveries.fill(record) is not None
                await until(lambda: not deliveries.running())
                assert me.node.store.record(record.store_hash) is None
            assert await me.nar(other) == other_nar


@pytest.mark.parametrize(("kind", "name"), UNBOUND)
async def test_what_is_held_under_a_false_nar_hash_is_not_served(kind: str, name: str) -> None:
    record, _, wrong = lie(kind, name)
    false = lying(record, wrong)
    async with office() as place:
        hold(place.stores.setdefault("me", MemoryStore()), false, wrong)
        async with border(place, policy=NOBODY) as me:
            assert (await me.get(f"/{nar_url(false)}")).status == 404
            assert await me.narinfo(false) == 404


async def test_after_a_lie_the_true_one_is_served(tmp_path: Path) -> None:
    record, nar, wrong = lie("fixed:sha256", "file")
    false = lying(record, wrong)
    caches = (
        write_cache(tmp_path / "liar", false, wrong),
        write_cache(tmp_path / "honest", record, nar),
    )
    async with office() as place, border(place, upstreams=caches, policy=NOBODY) as me:
        now, proofs = trio.current_time(), me.substituter.deliveries.proofs
        proofs.disproved(now, false)
        assert await me.narinfo(record) == 200
        assert await me.nar(record) == nar
        assert proofs.is_disproved(now + 1, false)
        assert not proofs.is_disproved(now + DISPROVED_SECONDS, false)


async def test_what_was_disproved_is_not_believed_again(tmp_path: Path) -> None:
    record, _, wrong = lie("fixed:sha256", "file")
    false = lying(record, wrong)
    cache = write_cache(tmp_path, false, wrong)
    async with office() as place, border(place, upstreams=(cache,), policy=NOBODY) as me:
        me.substituter.deliveries.proofs.disproved(trio.current_time(), false)
        assert await me.narinfo(false) == 404


async def test_a_signature_is_enough_without_the_content(tmp_path: Path) -> None:
    """What a trusted key signed is what Nix would take: its word counts, not the address."""
    record, _, wrong = lie("fixed:sha256", "file")
    false = lying(record, wrong)
    false = replace(false, signatures=(sign(false, KEY),))
    async with office() as place:
        cache = write_cache(tmp_path, false, wrong)
        async with border(place, upstreams=(cache,)) as me:
            assert await me.nar(false) == wrong


def test_a_signatures_only_narinfo_names_no_nar(tmp_path: Path) -> None:
    record, _ = signed_path("path", size=1000)
    publish(record, SECOND, tmp_path)
    info = parse((tmp_path / f"{record.store_hash}.narinfo").read_bytes())
    assert info.url == SIGNATURES_ONLY_URL
    assert format(record, ()).count(b"URL: nar/") == 1
    assert base64.b64decode(info.signatures[0].partition(":")[2])
