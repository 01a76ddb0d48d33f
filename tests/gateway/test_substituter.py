"""What Nix is told, over a store, peers in memory and upstreams in directories."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from chunker.digest import NarHash, manifest_id
from chunker.ingest import Ingest
from chunker.manifest import encode_manifest
from chunker.record import PathRecord
from chunker.store import MemoryStore
from gateway import substituter as substituter_module
from gateway.delivery import WRONG_SECONDS
from gateway.errors import UpstreamError
from gateway.narinfo import Narinfo, fingerprint, format, nar_url, parse
from gateway.policy import Policy, any_of
from gateway.requests import Request
from gateway.responses import Response
from gateway.server import BodyBroken
from gateway.shelf import Shelf
from gateway.signing import KeyRing, PublicKey, SecretKey
from gateway.substituter import Substituter
from gateway.upstream import FileCache
from peer.asking import Asking
from peer.identity import Address
from peer.messages import Message
from tests.peer.office import Node, Office, hold, make_path, office, until

KEY = SecretKey("office-1", b"k" * 32)
FOREIGN = SecretKey("foreign-1", b"f" * 32)
SIZE = 2_000_000


def signed_path(name: str, key: SecretKey = KEY, size: int = SIZE) -> tuple[PathRecord, bytes]:
    record, nar = make_path(name, size)
    text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    return replace(record, signatures=(key.sign(text),)), nar


def write_cache(directory: Path, record: PathRecord, nar: bytes) -> FileCache:
    (directory / "nar").mkdir(parents=True, exist_ok=True)
    (directory / nar_url(record)).write_bytes(nar)
    (directory / f"{record.store_hash}.narinfo").write_bytes(format(record, record.signatures))
    return FileCache(f"file://{directory}", directory)


class Border:
    """A node with a substituter in front of it."""

    def __init__(
        self,
        node: Node,
        upstreams: tuple[FileCache, ...],
        publish: tuple[PublicKey, ...] = (),
        policy: Policy | None = None,
        policies_of: Mapping[str, Policy] | None = None,
        shelf: Shelf | None = None,
    ) -> None:
        self.node = node
        policy = any_of(KeyRing((KEY.public,))) if policy is None else policy
        self.substituter = Substituter(
            node.store, node.swarm, upstreams, policy, KeyRing(publish), 20,
            policies_of=policies_of, shelf=shelf,
        )  # fmt: skip

    async def get(self, target: str, range: str = "", method: str = "GET") -> Response:
        headers = {"range": range} if range else {}
        return await self.substituter.answer(Request(method, target, headers))

    async def narinfo(self, record: PathRecord) -> int:
        return (await self.get(f"/{record.store_hash}.narinfo")).status

    async def nar(self, record: PathRecord, range: str = "") -> bytes:
        return await body(await self.get(f"/{nar_url(record)}", range))


async def body(response: Response) -> bytes:
    if isinstance(response.body, bytes):
        return response.body
    if isinstance(response.body, AsyncIterator):
        return b"".join([bytes(piece) async for piece in response.body])
    buffer, read = bytearray(100_000), b""
    while pieces := response.body.read(buffer):
        read += b"".join(pieces)
    return read


@asynccontextmanager
async def border(
    place: Office,
    *peers: str,
    upstreams: tuple[FileCache, ...] = (),
    publish: tuple[PublicKey, ...] = (),
    policy: Policy | None = None,
    policies_of: Mapping[str, Policy] | None = None,
    shelf: Shelf | None = None,
) -> AsyncIterator[Border]:
    node = await place.start("me", "gateway", *peers)
    found = Border(node, upstreams, publish, policy, policies_of, shelf)
    async with trio.open_nursery() as nursery:
        await nursery.start(found.substituter.run)
        yield found
        nursery.cancel_scope.cancel()


async def test_cache_info() -> None:
    async with office() as place, border(place) as me:
        answer = await me.get("/nix-cache-info")
        assert answer.body == b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 20\n"


@pytest.mark.parametrize(
    "target",
    ["/", "/x", "/../etc/passwd", "/nar/x.nar", "/nix-cache-info/", "//nix-cache-info",
     "/log/x.drv", "/realisations/x.doi", f"/{'0' * 32}.narinfo?x", f"/{'e' * 32}.narinfo",
     f"/{'0' * 31}.narinfo", f"/nar/{'0' * 32}-{'z' * 52}.nar"],
)  # fmt: skip
async def test_everything_else_is_404(target: str) -> None:
    async with office() as place, border(place) as me:
        assert (await me.get(target)).status == 404


async def test_a_stored_path_whole_in_ranges_and_its_head() -> None:
    async with office() as place:
        record, nar = signed_path("path")
        hold(place.stores.setdefault("me", MemoryStore()), record, nar)
        async with border(place) as me:
            answer = await me.get(f"/{record.store_hash}.narinfo")
            assert isinstance(answer.body, bytes)
            info = parse(answer.body)
            assert (info.store_path, info.url) == (record.store_path, nar_url(record))
            assert await me.nar(record) == nar
            answer = await me.get(f"/{nar_url(record)}", "bytes=1000-")
            assert answer.status == 206 and answer.length == len(nar) - 1000
            assert ("Content-Range", f"bytes 1000-{len(nar) - 1}/{len(nar)}") in answer.headers
            assert await body(answer) == nar[1000:]
            assert await me.nar(record, "bytes=5-9") == nar[5:10]
            answer = await me.get(f"/{nar_url(record)}", f"bytes={len(nar)}-")
            assert answer.status == 416
            head = await me.get(f"/{nar_url(record)}", method="HEAD")
            assert (head.status, head.length, head.body) == (200, len(nar), b"")
            assert ("Accept-Ranges", "bytes") in head.headers


@pytest.mark.parametrize("start", [0, 1, 32_768, 1_048_576, 1_500_000, 1_999_999])
async def test_any_range_of_a_stored_nar(start: int) -> None:
    async with office() as place:
        record, nar = signed_path("path")
        hold(place.stores.setdefault("me", MemoryStore()), record, nar)
        async with border(place) as me:
            for end in (start, start + 1, start + 200_000, len(nar) - 1):
                assert await me.nar(record, f"bytes={start}-{end}") == nar[start : end + 1]


async def test_a_nar_url_with_another_hash_is_404() -> None:
    async with office() as place:
        record, nar = signed_path("path")
        hold(place.stores.setdefault("me", MemoryStore()), record, nar)
        async with border(place) as me:
            other = replace(record, nar_hash=NarHash(bytes(32)))
            assert (await me.get(f"/{nar_url(other)}")).status == 404


async def test_unsigned_and_foreign_are_404_wherever_they_come_from(tmp_path: Path) -> None:
    async with office() as place:
        foreign, nar = signed_path("foreign", FOREIGN)
        unsigned, other = make_path("unsigned", SIZE)
        for record, data in ((foreign, nar), (unsigned, other)):
            hold(place.stores.setdefault("me", MemoryStore()), record, data)
            hold(place.stores.setdefault("seed", MemoryStore()), record, data)
        cache = write_cache(tmp_path, foreign, nar)
        await place.start("seed", "seed")
        async with border(place, "seed", upstreams=(cache,)) as me:
            for record in (foreign, unsigned):
                assert await me.narinfo(record) == 404
                assert (await me.get(f"/{nar_url(record)}")).status == 404
            assert me.substituter.served.refused > 0


async def test_a_path_from_a_peer_is_stored_and_then_served_alone() -> None:
    async with office() as place:
        record, nar = signed_path("path")
        hold(place.stores.setdefault("seed", MemoryStore()), record, nar)
        seed = await place.start("seed", "seed")
        async with border(place, "seed") as me:
            assert await me.narinfo(record) == 200
            assert await me.nar(record) == nar
            place.network.cut(seed.peer)
            assert await me.nar(record) == nar
            assert me.node.swarm.fetches == {}


async def test_an_upstream_is_served_stored_and_then_not_needed(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=12_000_000)
        cache = write_cache(tmp_path, record, nar)
        async with border(place, upstreams=(cache,)) as me:
            assert await me.narinfo(record) == 200
            assert await me.nar(record) == nar
            (tmp_path / nar_url(record)).unlink()
            await until(lambda: me.node.store.record(record.store_hash) is not None)
            assert await me.nar(record) == nar
            assert me.substituter.deliveries.upstream_bytes == len(nar)


async def test_two_readers_of_an_upstream_cost_one_download(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=12_000_000)
        cache = write_cache(tmp_path, record, nar)
        async with border(place, upstreams=(cache,)) as me:
            answers = [await me.get(f"/{nar_url(record)}") for _ in range(2)]
            assert [await body(answer) for answer in answers] == [nar, nar]
            await until(lambda: me.substituter.deliveries.upstream_bytes > 0)
            assert me.substituter.deliveries.upstream_bytes == len(nar)


async def test_an_upstream_that_lies_is_cut_before_the_last_block(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path")
        wrong = nar[:-1000] + bytes(968) + nar[-32:]
        cache = write_cache(tmp_path, record, wrong)
        async with border(place, upstreams=(cache,)) as me:
            answer = await me.get(f"/{nar_url(record)}")
            received = b""
            with pytest.raises(BodyBroken):
                assert not isinstance(answer.body, bytes)
                async for piece in answer.body:
                    received += piece
            assert len(received) < len(nar) - 1000
            assert me.node.store.record(record.store_hash) is None


async def test_the_second_upstream_helps_when_the_first_breaks(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=12_000_000)
        broken = write_cache(tmp_path / "a", record, nar[:9_000_000])
        good = write_cache(tmp_path / "b", record, nar)
        async with border(place, upstreams=(broken, good)) as me:
            assert await me.nar(record) == nar


async def test_an_upstream_finishes_what_lost_peers_began(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=12_000_000)
        hold(place.stores.setdefault("seed", MemoryStore()), record, nar)
        cache = write_cache(tmp_path, record, nar)
        seed = await place.start("seed", "seed")
        async with border(place, "seed", upstreams=(cache,)) as me:
            answer = await me.get(f"/{nar_url(record)}")
            assert not isinstance(answer.body, bytes)
            received = await anext(answer.body)
            place.network.cut(seed.peer)
            async for piece in answer.body:
                received += piece
            assert received == nar


async def test_a_lying_manifest_serves_no_ranges_for_a_while() -> None:
    """Nix would join the right tail to the wrong head."""
    async with office() as place:
        record, nar = signed_path("path")
        liar = place.stores.setdefault("liar", MemoryStore())
        ingest = Ingest(liar, record.needles)
        ingest.feed(make_path("other", SIZE)[1])
        lie = encode_manifest(replace(ingest.finish_unchecked()[1], nar_hash=record.nar_hash))
        liar.put_manifest(manifest_id(lie), lie, verified=True)
        liar.put_record(replace(record, manifest=manifest_id(lie)))
        await place.start("liar", "seed")
        async with border(place, "liar") as me:
            answer = await me.get(f"/{nar_url(record)}")
            received = b""
            with pytest.raises(BodyBroken, match="not what was signed"):
                assert not isinstance(answer.body, bytes)
                async for piece in answer.body:
                    received += piece
            assert 0 < len(received) < len(nar)
            assert me.substituter.deliveries.is_wrong(record.nar_hash)
            assert WRONG_SECONDS > 60
            target = f"/{nar_url(record)}"
            assert (await me.get(target, f"bytes={len(received)}-")).status == 404
            assert not me.node.store.is_verified(manifest_id(lie))


async def test_a_range_comes_only_from_the_manifest_that_began() -> None:
    """The client went away with a wrong head before anybody could know; an honest peer comes."""
    async with office() as place:
        record, nar = signed_path("path", size=12_000_000)
        liar = place.stores.setdefault("liar", MemoryStore())
        ingest = Ingest(liar, record.needles)
        ingest.feed(make_path("other", 12_000_000)[1])
        lie = encode_manifest(replace(ingest.finish_unchecked()[1], nar_hash=record.nar_hash))
        liar.put_manifest(manifest_id(lie), lie, verified=True)
        liar.put_record(replace(record, manifest=manifest_id(lie)))
        hold(place.stores.setdefault("honest", MemoryStore()), record, nar)
        wicked = await place.start("liar", "seed")
        async with border(place, "liar") as me:
            target = f"/{nar_url(record)}"
            answer = await me.get(target)
            assert not isinstance(answer.body, bytes)
            head = await anext(answer.body)
            await answer.body.aclose()  # type: ignore[attr-defined]
            assert head != nar[: len(head)]
            place.network.cut(wicked.peer)
            await place.start("honest", "seed")
            me.node.swarm.discovered(Address(place.peer("honest"), "127.0.0.1", 1))
            await until(lambda: place.peer("honest") in me.node.swarm.sessions())
            assert (await me.get(target, f"bytes={len(head)}-")).status == 404
            assert await me.nar(record) == nar
            assert await me.nar(record, f"bytes={len(head)}-") == nar[len(head) :]


async def test_a_cut_upstream_delivery_is_resumed_from_the_store(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=12_000_000)
        cache = write_cache(tmp_path, record, nar)
        async with border(place, upstreams=(cache,)) as me:
            answer = await me.get(f"/{nar_url(record)}")
            assert not isinstance(answer.body, bytes)
            head = await anext(answer.body)
            await answer.body.aclose()  # type: ignore[attr-defined]
            await until(lambda: me.node.store.record(record.store_hash) is not None)
            assert head + await me.nar(record, f"bytes={len(head)}-") == nar


class Undecided(FileCache):
    """Never answers."""

    async def narinfo(self, store_hash: str) -> None:
        await trio.sleep_forever()


class Down(FileCache):
    async def narinfo(self, store_hash: str) -> None:
        raise UpstreamError("down")


async def test_unknown_is_not_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """404 at once when all said no; while one is undecided only after its time, and counted."""
    monkeypatch.setattr(substituter_module, "LOOKUP_SECONDS_MAX", 0.2)
    async with office() as place:
        record, _ = signed_path("path")
        no, down = FileCache("no", tmp_path), Down("down", tmp_path)
        async with border(place, upstreams=(no, down)) as me:
            assert await me.narinfo(record) == 404
            assert me.substituter.served.undecided == 0
    async with office() as place:
        record, _ = signed_path("path")
        async with border(place, upstreams=(Undecided("slow", tmp_path),)) as me:
            assert await me.narinfo(record) == 404
            assert me.substituter.served.undecided == 1


class Slow(FileCache):
    """Knows the path, but takes its time."""

    async def narinfo(self, store_hash: str) -> Narinfo | None:
        await trio.sleep(0.3)
        return await super().narinfo(store_hash)


async def test_a_late_yes_beats_every_early_no(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path")
        write_cache(tmp_path / "slow", record, nar)
        no = FileCache("no", tmp_path)
        await place.start("seed", "seed")
        async with border(place, "seed", upstreams=(no, Slow("slow", tmp_path / "slow"))) as me:
            assert await me.narinfo(record) == 200


async def test_a_fast_answer_that_nobody_trusted_signed_never_wins(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path")
        bad = replace(record, signatures=(FOREIGN.sign(b"x"),))
        fast = write_cache(tmp_path / "fast", bad, nar)
        good = write_cache(tmp_path / "good", record, nar)
        async with border(place, upstreams=(fast, good)) as me:
            assert await me.narinfo(record) == 200


async def test_keys_of_an_upstream_count_for_what_it_says_alone(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", FOREIGN)
        project = write_cache(tmp_path / "project", record, nar)
        other = write_cache(tmp_path / "other", record, nar)
        policies_of = {project.url: any_of(KeyRing((FOREIGN.public,)))}
        async with border(place, upstreams=(other,), policies_of=policies_of) as me:
            assert await me.narinfo(record) == 404
        place.network.cut(place.peer("me"))
        place.network.restore(place.peer("me"))
        async with border(place, upstreams=(other, project), policies_of=policies_of) as me:
            assert await me.narinfo(record) == 200
            assert await me.nar(record) == nar


async def test_404_before_the_first_byte_when_it_cannot_be_finished(tmp_path: Path) -> None:
    """A record without its blocks: nobody has the NAR."""
    async with office() as place:
        record, nar = signed_path("path")
        store = place.stores.setdefault("me", MemoryStore())
        held = hold(store, record, nar)
        store.forget(sorted(store.blocks)[0])
        async with border(place) as me:
            assert await me.narinfo(held) == 200
            assert (await me.get(f"/{nar_url(held)}")).status == 404


async def test_strangers_are_asked_only_for_what_a_publish_key_signed(tmp_path: Path) -> None:
    """Whoever holds a path learns from the question that we want it."""
    async with office() as place:
        record, nar = signed_path("path")
        hold(place.stores.setdefault("stranger", MemoryStore()), record, nar)
        stranger = await place.start("stranger", "peer")
        asked: list[str] = []
        answer = stranger.catalogue.look_up
        stranger.catalogue.look_up = lambda *q: asked.append("find") or answer(*q)  # type: ignore
        place.known = lambda peer: peer != stranger.peer
        cache = write_cache(tmp_path, record, nar)
        async with border(place, "stranger", upstreams=(cache,)) as me:
            assert await me.narinfo(record) == 200
            assert await me.nar(record) == nar
            assert asked == []
            await until(lambda: me.substituter.deliveries.upstream_bytes == len(nar))
        place.stores.pop("me")
        place.network.cut(place.peer("me"))
        place.network.restore(place.peer("me"))
        async with border(place, "stranger", upstreams=(cache,), publish=(KEY.public,)) as me:
            assert await me.narinfo(record) == 200
            assert asked == []
            assert await me.nar(record) == nar
            assert asked and me.substituter.deliveries.upstream_bytes == 0


async def test_a_reference_is_answered_without_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    async with office() as place:
        child, nar = signed_path("child", size=10)
        hold(place.stores.setdefault("holder", MemoryStore()), child, nar)
        parent, nar = make_path("parent", 10)
        parent = replace(parent, references=(child.store_path,))
        text = fingerprint(parent.store_path, parent.nar_hash, parent.nar_size, parent.references)
        parent = replace(parent, signatures=(KEY.sign(text),))
        hold(place.stores["holder"], parent, nar)
        await place.start("holder", "gateway")
        async with border(place, "holder") as me:
            assert await me.narinfo(parent) == 200
            ahead = me.node.swarm.questions._ahead
            await until(lambda: ahead.offer(trio.current_time(), child.store_hash) is not None)
            asked: list[Message] = []
            monkeypatch.setattr(Asking, "tell", lambda self, message: asked.append(message))
            assert await me.narinfo(child) == 200
            assert asked == []
