"""The shell of the acquaintances and the books, with real swarms in memory."""

from __future__ import annotations

import pytest
import trio

from chunker.store import MemoryStore
from peer.fetch import Fetch
from peer.identity import Address
from peer.messages import Message, Sent
from peer.surroundings import Change
from tests.peer.office import hold, make_path, office, until

BIG = 6_000_000


async def test_of_more_than_fit_those_that_are_of_use_stay() -> None:
    async with office() as place:
        me = await place.start("me", "peer")
        me.swarm.dialling.acquaintances._limit = 2
        first = await place.start("first", "gateway", "me")
        second = await place.start("second", "gateway", "me")
        await until(lambda: len(me.swarm.sessions()) == 2)
        assert first.peer in me.swarm.sessions() and second.peer in me.swarm.sessions()
        me.swarm.dialling.acquaintances.used(trio.current_time(), first.peer)
        me.swarm.dialling.acquaintances.used(trio.current_time(), second.peer)
        third = place.nodes["third"] = await start_unmet(place, "third", "me")
        await until(lambda: third.peer not in me.swarm.dialling.hosts())
        assert set(me.swarm.dialling.hosts()) == {first.peer, second.peer}
        assert third.swarm.sessions() == ()


async def start_unmet(place, name, *peers):  # type: ignore[no-untyped-def]
    """A node whose dials may fail."""
    from tests.peer.office import Node

    node = Node(place, name, "gateway", peers)
    await place._nursery.start(node.swarm.run)
    await node.swarm.dialling.settled()
    return node


async def test_after_sleep_dead_connections_are_left_and_everybody_is_dialled_again() -> None:
    async with office() as place:
        one = await place.start("one", "seed")
        me = await place.start("me", "gateway", "one")
        before = me.swarm._asking[one.peer]
        me.swarm.dialling.woke(Change(slept=True, lost=frozenset()))
        await until(lambda: me.swarm._asking.get(one.peer) not in (None, before))


async def test_a_hint_makes_us_dial_and_our_own_address_does_not() -> None:
    async with office() as place:
        one = await place.start("one", "seed")
        me = await place.start("me", "gateway")
        me.swarm.discovered(Address(me.peer, "127.0.0.1", 1))
        me.swarm.discovered(Address(one.peer, "127.0.0.1", 1))
        await until(lambda: me.swarm.sessions() == (one.peer,))


async def test_the_books_tell_who_gave_what_and_what_is_of_no_use() -> None:
    async with office() as place:
        record, nar = make_path("path", BIG)
        record = hold(place.stores.setdefault("one", MemoryStore()), record, nar)
        one = await place.start("one", "seed")
        me = await place.start("me", "gateway", "one")
        sent: list[Message] = []
        asking = me.swarm._asking[one.peer]
        handler = asking._handler

        async def listen(peer, message):  # type: ignore[no-untyped-def]
            sent.append(message)
            await handler(peer, message)

        asking._handler = listen
        fetch = await Fetch.open(me.swarm, record)
        assert fetch is not None
        transfer = me.swarm.traffic.transfers[fetch.id]
        assert (transfer.size, transfer.store_path) == (len(nar), record.store_path)
        await fetch.complete()
        blocks = [message for message in sent if isinstance(message, Sent)]
        payload = sum(len(block.encoded.payload) for block in blocks)
        traffic = me.swarm.traffic
        assert traffic.swarm_bytes == payload > 0 and traffic.duplicate_bytes == 0
        assert traffic.accounts[one.peer].received.total == payload
        assert transfer.done == len(nar) == transfer.sources[one.peer] == traffic.kept_bytes
        assert fetch.id not in traffic.transfers

        await me.swarm._heard(one.peer, blocks[0])
        assert traffic.duplicate_bytes == len(blocks[0].encoded.payload)
        assert traffic.swarm_bytes == payload + traffic.duplicate_bytes
        await until(lambda: one.swarm.traffic.account(me.peer).sent.total == payload)


@pytest.mark.parametrize("rounds", [3])
async def test_what_was_sent_is_counted_over_several_sessions(rounds: int) -> None:
    async with office() as place:
        one = await place.start("one", "seed")
        total = 0
        for number in range(rounds):
            record, nar = make_path(f"path{number}", 500_000)
            record = hold(one.store, record, nar)
            one.catalogue.add(record)
            me = await place.start(f"me{number}", "gateway", "one")
            fetch = await Fetch.open(me.swarm, record)
            assert fetch is not None
            await fetch.complete()
            place.network.cut(me.peer)
            total += me.swarm.traffic.swarm_bytes
        accounts = one.swarm.traffic.accounts
        await until(lambda: sum(one.sent.total for one in accounts.values()) == total)
