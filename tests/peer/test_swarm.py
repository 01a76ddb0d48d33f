"""The shell with real machines: several peers, loss, lies, and what a stranger can learn."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
import trio

from chunker.digest import manifest_id
from chunker.errors import BlockCorrupt
from chunker.ingest import Ingest
from chunker.manifest import encode_manifest
from chunker.rebuild import rebuild
from chunker.record import PathRecord
from chunker.store import MemoryStore
from peer.answering import PLEASES_MAX
from peer.errors import NotHere
from peer.fetch import Fetch, candidates
from peer.identity import Address, PeerId
from peer.inbound import SESSIONS_PER_PEER_MAX
from peer.messages import Have, Message, Please
from tests.peer.office import Node, Office, hold, make_path, office, until

BIG = 12_000_000
"""More blocks than one peer is asked for at once."""


async def fetch_all(node: Node, record: PathRecord) -> Fetch | None:
    fetch = await Fetch.open(node.swarm, record)
    if fetch is not None:
        await fetch.complete()
    return fetch


def nar_at(node: Node, fetch: Fetch) -> bytes:
    return b"".join(rebuild(fetch.manifest, fetch.record.needles, node.store))


async def two_seeds(place: Office, size: int = BIG) -> tuple[Node, Node, Node, PathRecord, bytes]:
    record, nar = make_path("path", size)
    for name in ("one", "two"):
        record = hold(place.stores.setdefault(name, MemoryStore()), record, nar)
    one, two = await place.start("one", "seed"), await place.start("two", "seed")
    me = await place.start("me", "gateway", "one", "two")
    return me, one, two, record, nar


async def test_a_nar_comes_from_several_peers_at_once_and_each_block_once() -> None:
    async with office() as place:
        me, one, two, record, nar = await two_seeds(place)
        fetch = await fetch_all(me, record)
        assert fetch is not None and nar_at(me, fetch) == nar
        assert me.store.is_verified(fetch.id)
        tallies = me.swarm.counters.peers
        assert tallies[one.peer].blocks > 0 and tallies[two.peer].blocks > 0
        assert tallies[one.peer].blocks + tallies[two.peer].blocks == len(fetch.manifest.blocks)


async def test_losing_a_peer_in_mid_transfer_is_not_noticed() -> None:
    async with office() as place:
        me, one, two, record, nar = await two_seeds(place)
        fetch = await Fetch.open(me.swarm, record)
        assert fetch is not None
        await fetch.block(0)
        place.network.cut(one.peer)
        await fetch.complete()
        assert nar_at(me, fetch) == nar
        assert me.swarm.sessions() == (two.peer,)


async def test_losing_every_peer_is_said_and_the_blocks_that_came_stay() -> None:
    async with office() as place:
        me, one, two, record, _ = await two_seeds(place)
        fetch = await Fetch.open(me.swarm, record)
        assert fetch is not None
        await fetch.block(0)
        place.network.cut(one.peer)
        place.network.cut(two.peer)
        with pytest.raises(NotHere, match="no source has block"):
            await fetch.complete()
        assert len(me.store.blocks) > 0
        assert not me.store.is_verified(fetch.id)


async def test_a_peer_that_comes_back_goes_on_helping() -> None:
    async with office() as place:
        me, one, two, record, nar = await two_seeds(place)
        place.network.cut(one.peer)
        place.network.cut(two.peer)
        await until(lambda: not me.swarm.sessions())
        place.network.restore(two.peer)
        await until(lambda: bool(me.swarm.sessions()))
        fetch = await fetch_all(me, record)
        assert fetch is not None and nar_at(me, fetch) == nar


class RottenStore(MemoryStore):
    """Sends what it likes: `read` and `get` skip every check."""

    def get(self, wanted):  # type: ignore[no-untyped-def]
        block = super().get(wanted)
        bad = bytes([block.data[0] ^ 1]) + block.data[1:]
        encoded = replace(self.blocks[wanted], codec=0, length=len(bad), payload=bad)
        return replace(block, data=bad, encoded=encoded)


async def test_a_liar_is_banned_and_nothing_of_it_is_kept() -> None:
    async with office() as place:
        place.stores["one"] = RottenStore()
        me, one, two, record, nar = await two_seeds(place)
        fetch = await fetch_all(me, record)
        assert fetch is not None and nar_at(me, fetch) == nar
        assert me.swarm.counters.bans == 1
        assert me.swarm.counters.peers[one.peer].blocks == 0
        assert me.swarm.sessions() == (two.peer,)


async def test_a_rotten_block_is_refused_and_not_blamed_on_its_holder() -> None:
    async with office() as place:
        me, one, two, record, nar = await two_seeds(place)
        held = one.store.blocks
        for wanted in list(held)[::3]:
            held[wanted] = replace(held[wanted], payload=b"rot")
        fetch = await fetch_all(me, record)
        assert fetch is not None and nar_at(me, fetch) == nar
        assert me.swarm.counters.bans == 0
        with pytest.raises(BlockCorrupt):
            for wanted in two.store.blocks:
                two.store.blocks[wanted] = replace(two.store.blocks[wanted], payload=b"rot")
                two.store.get(wanted)


async def test_a_lying_manifest_is_found_out_and_its_source_blamed() -> None:
    async with office() as place:
        record, nar = make_path("path", BIG)
        liar = place.stores.setdefault("liar", MemoryStore())
        _, other = make_path("other", BIG)
        ingest = Ingest(liar, record.needles)
        ingest.feed(other)
        _, manifest = ingest.finish_unchecked()
        lie = encode_manifest(replace(manifest, nar_hash=record.nar_hash))
        liar.put_manifest(manifest_id(lie), lie, verified=True)
        liar.put_record(replace(record, manifest=manifest_id(lie)))
        honest = hold(place.stores.setdefault("honest", MemoryStore()), record, nar)
        await place.start("liar", "seed")
        me = await place.start("me", "gateway", "liar")
        with pytest.raises(NotHere, match="is a lie"):
            await fetch_all(me, record)
        assert await Fetch.open(me.swarm, record) is None
        assert not me.store.is_verified(manifest_id(lie))

        await place.start("honest", "seed")
        again = await place.start("again", "gateway", "liar", "honest")
        for _ in range(2):
            fetch = await Fetch.open(again.swarm, record)
            assert fetch is not None
            try:
                await fetch.complete()
            except NotHere:
                continue
            assert fetch.id == honest.manifest and nar_at(again, fetch) == nar
            return
        raise AssertionError("the honest manifest was never tried")


async def test_a_lan_cache_fills_itself_from_its_seed_while_it_serves() -> None:
    async with office() as place:
        record, nar = make_path("path", BIG)
        record = hold(place.stores.setdefault("seed", MemoryStore()), record, nar)
        seed = await place.start("seed", "seed")
        lan = await place.start("lan", "peer", "seed")
        me = await place.start("me", "gateway", "lan")
        assert await me.swarm.questions.find(record.store_hash, 2) == []
        offers = await me.swarm.questions.please(record.store_hash, 5, [])
        assert [peer for peer, _ in offers] == [lan.peer]
        fetch = await Fetch.open(me.swarm, record, offers)
        assert fetch is not None
        await fetch.complete()
        assert nar_at(me, fetch) == nar
        assert seed.peer not in me.swarm.counters.peers
        await until(lambda: lan.store.is_verified(record.manifest))


def lie_about(store: MemoryStore, record: PathRecord) -> PathRecord:
    """A manifest of other bytes under the record's NarHash, as a liar would keep it."""
    ingest = Ingest(store, record.needles)
    ingest.feed(make_path("other", BIG)[1])
    lie = encode_manifest(replace(ingest.finish_unchecked()[1], nar_hash=record.nar_hash))
    store.put_manifest(manifest_id(lie), lie, verified=True)
    record = replace(record, manifest=manifest_id(lie))
    store.put_record(record)
    return record


async def test_a_lan_cache_keeps_what_is_whole_whatever_its_source_says() -> None:
    async with office() as place:
        record, nar = make_path("path", BIG)
        lie_about(place.stores.setdefault("liar", MemoryStore()), record)
        held = hold(place.stores.setdefault("lan", MemoryStore()), record, nar)
        await place.start("liar", "seed")
        lan = await place.start("lan", "peer", "liar")
        me = await place.start("me", "gateway", "lan")
        offers = await me.swarm.questions.please(record.store_hash, 5, [])
        assert [offer.manifest for _, offer in offers] == [held.manifest]
        assert lan.store.record(record.store_hash) == held


async def test_a_lan_cache_that_was_lied_to_asks_another_source() -> None:
    async with office() as place:
        record, nar = make_path("path", BIG)
        lie = lie_about(place.stores.setdefault("liar", MemoryStore()), record)
        await place.start("liar", "seed")
        lan = await place.start("lan", "peer", "liar")
        me = await place.start("me", "gateway", "lan")
        offers = await me.swarm.questions.please(record.store_hash, 5, [])
        assert [offer.manifest for _, offer in offers] == [lie.manifest]
        lan.swarm.watched(place.peer("gateway"), lie)
        await until(lambda: lan.swarm.questions.ranked(lie, [(place.peer("liar"), lie)]) == [])
        await until(lambda: not lan.swarm.fetches)
        honest = hold(place.stores.setdefault("honest", MemoryStore()), record, nar)
        await place.start("honest", "seed")
        lan.swarm.discovered(Address(place.peer("honest"), "127.0.0.1", 1))
        await until(lambda: place.peer("honest") in lan.swarm.sessions())
        offers = await me.swarm.questions.please(record.store_hash, 5, [])
        assert [offer.manifest for _, offer in offers] == [honest.manifest]


async def test_of_an_offer_only_the_manifest_counts() -> None:
    """A peer's record with other signatures does not replace those that we know to be good."""
    async with office() as place:
        me, one, two, record, _ = await two_seeds(place)
        for node in (one, two):
            held = node.store.record(record.store_hash)
            assert held is not None
            node.store.put_record(replace(held, signatures=("evil-1:QUJD",)))
        assert await fetch_all(me, record) is not None
        kept = me.store.record(record.store_hash)
        assert kept is not None and kept.signatures == record.signatures


async def test_a_peer_that_cannot_be_reached_costs_time_and_not_the_answer() -> None:
    async with office() as place:
        me, _, _, record, _ = await two_seeds(place)
        me.swarm.dialling.undecided.add(place.peer("never"))
        found = await me.swarm.questions.find(record.store_hash, 0.4)
        assert len(found) == 2
        assert await me.swarm.questions.find(make_path("absent", 10)[0].store_hash, 0.4) == []


async def test_two_who_open_at_once_share_one_fetch() -> None:
    async with office() as place:
        me, _, _, record, nar = await two_seeds(place)
        opened: list[Fetch | None] = []

        async def open_one() -> None:
            opened.append(await Fetch.open(me.swarm, record))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(open_one)
        assert opened[0] is not None and opened == [opened[0]] * 5
        await opened[0].complete()
        assert nar_at(me, opened[0]) == nar


async def test_a_bitmap_longer_than_the_nar_costs_nothing() -> None:
    async with office() as place:
        me, one, _, record, _ = await two_seeds(place)
        fetch = await Fetch.open(me.swarm, record)
        assert fetch is not None
        tracemalloc.start()
        try:
            await me.swarm._heard(one.peer, Have(fetch.id, False, b"\xff" * (1 << 20)))
            assert tracemalloc.get_traced_memory()[1] < 4_000_000
        finally:
            tracemalloc.stop()
        await fetch.complete()


async def test_one_peer_has_few_sessions() -> None:
    async with office() as place:
        one = await place.start("one", "seed")
        me = await place.start("me", "gateway")
        streams = [
            await me.swarm._transport.open(Address(one.peer, "127.0.0.1", 1)) for _ in range(10)
        ]
        ended = 0
        for stream in streams:
            with trio.move_on_after(0.2):
                ended += await stream.receive_some(1) == b""
        assert ended == 10 - SESSIONS_PER_PEER_MAX


async def test_a_flood_of_please_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with office() as place:
        lan = await place.start("lan", "peer")
        me = await place.start("me", "gateway", "lan")

        async def never(asker: PeerId, store_hash: str) -> None:
            await trio.sleep_forever()

        lan.swarm.look_for = never  # type: ignore[method-assign]
        refused: list[Message] = []

        async def heard(peer: PeerId, message: Message) -> None:
            refused.append(message)

        asking = next(iter(me.swarm._asking.values()))
        asking._handler = heard
        for request in range(400):
            asking.tell(Please(request, "0" * 32))
        await until(lambda: len(refused) == 400 - PLEASES_MAX)


async def test_a_fetch_under_way_is_joined_not_doubled() -> None:
    async with office() as place:
        me, _, _, record, _ = await two_seeds(place)
        first = await Fetch.open(me.swarm, record)
        second = await Fetch.open(me.swarm, record)
        assert first is second is not None
        await first.complete()


async def test_who_joins_a_fetch_asks_those_who_offer_it_what_they_hold() -> None:
    """When it began, two said that it had nothing."""
    async with office() as place:
        record, nar = make_path("path", BIG)
        record = hold(place.stores.setdefault("one", MemoryStore()), record, nar)
        one, two = await place.start("one", "seed"), await place.start("two", "gateway")
        me = await place.start("me", "gateway", "one", "two")
        fetch = await Fetch.open(me.swarm, record, [(one.peer, record)])
        assert fetch is not None
        fetch.readers += 1
        place.network.cut(one.peer)
        await until(lambda: me.swarm.sessions() == (two.peer,))
        two.catalogue.add(hold(two.store, record, nar))
        assert await Fetch.open(me.swarm, record, [(two.peer, record)]) is fetch
        await fetch.complete()
        assert nar_at(me, fetch) == nar


async def test_private_and_absent_answer_alike() -> None:
    """Every question about a path that is not for the asker gets what an unknown path gets."""
    async with office() as place:
        record, nar = make_path("private", BIG)
        record = hold(place.stores.setdefault("holder", MemoryStore()), record, nar)
        place.allowed = lambda asker, _: asker == place.peer("friend")
        await place.start("holder", "peer")
        friend = await place.start("friend", "gateway", "holder")
        stranger = await place.start("stranger", "gateway", "holder")
        assert len(await friend.swarm.questions.find(record.store_hash, 2)) == 1
        absent = make_path("absent", 10)[0]
        for path in (record, absent):
            assert await stranger.swarm.questions.find(path.store_hash, 2) == []
            assert await stranger.swarm.questions.please(path.store_hash, 2, []) == []
        asking = next(iter(stranger.swarm._asking.values()))
        for path in (record, replace(absent, manifest=manifest_id(b"none"))):
            with pytest.raises(NotHere, match="does not have"):
                await asking.manifest(path.manifest)


def test_candidates_a_trusted_manifest_first_then_the_majority() -> None:
    record, _ = make_path("path", 100)
    a, b, c = PeerId("a"), PeerId("b"), PeerId("c")
    first, second = (replace(record, manifest=manifest_id(bytes([n]))) for n in range(2))
    offers = [(a, first), (b, second), (c, second)]
    assert [item[1] for item in candidates(record, offers, set())] == [[b, c], [a]]
    assert [item[1] for item in candidates(record, offers, {first.manifest})] == [[a], [b, c]]
    foreign = replace(first, nar_size=record.nar_size + 1)
    assert candidates(record, [(a, foreign)], set()) == []
    assert candidates(record, [(a, replace(first, references=(record.store_path,)))], set()) == []
