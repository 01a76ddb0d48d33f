"""Behind a member that fetches: what grows there is had from there and from fellows."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace

import pytest
import trio

from chunker.digest import BlockId
from chunker.errors import NarMismatch
from peer import following as following_module
from peer.errors import NotHere
from peer.following import Following
from peer.growing import Growing
from peer.messages import Growth
from tests.peer.office import make_path, office, until
from tests.peer.owner import BIG, Owner, follow, leave, members, pair, read, read_all


async def finishes(owner: Owner, fetch: Following) -> bool:
    """Its upstream has brought the rest, and the follower has read all of it."""
    owner.finish()
    return await read_all(fetch, len(owner.nar)) == owner.nar


async def test_one_fetches_and_the_others_follow_from_the_first_block_on() -> None:
    async with office() as place:
        one, two, three = await members(place, "one", "two", "three")
        record, nar = make_path("path", BIG)
        owner = Owner(one, record, nar)
        fetches = [await follow(two, owner), await follow(three, owner)]
        owner.grow(5)
        heads = [await read(fetch, range(5)) for fetch in fetches]
        assert heads[0] == heads[1] == nar[: len(heads[0])]
        assert not two.store.is_verified(owner.final)

        owner.finish()
        for node, fetch in zip((two, three), fetches, strict=True):
            assert await read_all(fetch, len(nar)) == nar
            await fetch.mark_verified()
            await leave(fetch)
            assert node.store.is_verified(owner.final)
            held = node.store.record(record.store_hash)
            assert held is not None and held.manifest == owner.final
            assert not node.swarm.fetches
        assert owner.asked == 2


async def test_blocks_come_from_fellows_too() -> None:
    async with office() as place:
        names = ("one", "two", "three", "four")
        one, *fellows = await members(place, *names)
        record, nar = make_path("path", BIG)
        owner = Owner(one, record, nar)
        fetches = [await follow(node, owner) for node in fellows]
        for blocks in range(1, len(owner.manifest.blocks)):
            owner.grow(blocks)
            await trio.lowlevel.checkpoint()
        owner.finish()
        for fetch in fetches:
            assert await read_all(fetch, len(nar)) == nar
        from_owner = sum(node.swarm.counters.peers[one.peer].blocks for node in fellows)
        assert from_owner < 2 * len(owner.manifest.blocks)
        for node in fellows:
            others = [f.peer for f in fellows if f is not node]
            assert sum(node.swarm.counters.peers[peer].blocks for peer in others) > 0


async def test_who_comes_late_has_it_all() -> None:
    async with office() as place:
        owner, two = await pair(place)
        owner.begin()
        owner.grow(60)
        fetch = await follow(two, owner)
        assert await read(fetch, range(60)) == owner.nar[: fetch.growing.bytes_known]
        assert await finishes(owner, fetch)


async def test_a_reader_that_left_may_come_back_in_the_same_session() -> None:
    """The second Watch is answered from the beginning; the answers to the first do no harm."""
    async with office() as place:
        owner, two = await pair(place)
        for stop in (20, 40):
            fetch = await follow(two, owner)
            owner.grow(stop)
            assert await read(fetch, range(stop)) == owner.nar[: fetch.growing.bytes_known]
            await leave(fetch)
        fetch = await follow(two, owner)
        assert await finishes(owner, fetch)
        assert two.swarm.counters.bans == 0 and owner.peer in two.swarm.sessions()
        assert two.swarm.office.load(owner.growing.id) is fetch.growing


async def test_a_session_that_opens_anew_does_not_make_a_liar_of_the_owner() -> None:
    async with office() as place:
        owner, two = await pair(place)
        fetch = await follow(two, owner)
        owner.finish()
        await until(lambda: fetch.growing.state is Growth.WHOLE)
        await two.swarm._heard(owner.peer, owner.growing.segment(0))
        assert owner.peer in two.swarm.sessions()
        assert await read_all(fetch, len(owner.nar)) == owner.nar


async def test_a_segment_that_is_no_part_of_the_nar_costs_its_owner_the_session() -> None:
    async with office() as place:
        owner, two = await pair(place)
        fetch = await follow(two, owner)
        owner.growing.extend(owner.manifest.blocks[:1], [7])
        owner.tell()
        await until(lambda: bool(fetch.failed))
        assert "went away" in fetch.failed
        assert not fetch.growing.blocks


async def test_the_last_word_of_an_owner_must_be_what_grew() -> None:
    """Its final manifest names the same blocks, and puts the hashes elsewhere."""
    async with office() as place:
        one, two = await members(place, "one", "two")
        record, nar = make_path("path", BIG)
        record = replace(record, references=(f"/nix/store/{'0' * 32}-x",))
        owner = Owner(one, record, nar)
        fetch = await follow(two, owner)
        owner.finish()
        assert await read_all(fetch, len(nar)) == nar
        fetch.growing.rewrites.offsets.append(len(nar) - 40)
        fetch.growing.rewrites.indexes.append(0)
        assert await fetch._from_owner() is None
        del fetch.growing.rewrites.offsets[-1], fetch.growing.rewrites.indexes[-1]
        assert await fetch._from_owner() is not None


async def test_two_followings_of_one_owner_do_not_end_each_other() -> None:
    """One failed and its reader has not left; the next reader begins anew."""
    async with office() as place:
        owner, two = await pair(place)
        old = await follow(two, owner)
        old.fail("as a test would have it")
        new = await follow(two, owner)
        assert new is not old
        await leave(old)
        assert two.swarm.fetches == {owner.growing.id: new}
        assert await finishes(owner, new)


async def test_where_the_owner_is_gone_the_manifest_is_made_from_the_nar() -> None:
    async with office() as place:
        owner, two = await pair(place)
        fetch = await follow(two, owner)
        assert await finishes(owner, fetch)
        place.network.cut(owner.peer)
        await until(lambda: not two.swarm.sessions())
        await fetch.mark_verified()
        assert two.store.is_verified(owner.final)
        held = two.store.record(owner.record.store_hash)
        assert held is not None and held.manifest == owner.final


async def test_what_was_read_only_in_part_is_checked_before_it_counts() -> None:
    """The tail was right, the head is a lie: nothing is marked as verified."""
    async with office() as place:
        one, two = await members(place, "one", "two")
        record, nar = make_path("path", BIG)
        lie = nar[:5000] + bytes(100) + nar[5100:]
        owner = Owner(one, record, lie)
        fetch = await follow(two, owner)
        owner.finish()
        assert await read_all(fetch, len(nar)) == lie
        with pytest.raises(NotHere, match="tells lies") as caught:
            await fetch.check()
        assert isinstance(caught.value.__cause__, NarMismatch)
        assert not two.store.is_verified(owner.final)
        assert two.store.record(record.store_hash) is None
        assert two.swarm.questions.is_blamed(one.peer, fetch.id)


async def test_nothing_is_promised_before_the_owner_has_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following_module, "FIRST_WORD_SECONDS_MAX", 0.2)
    async with office() as place:
        owner, two = await pair(place)
        owner.node.swarm.office.publish(owner.growing)
        assert await two.swarm.office.follow(owner.record, owner.peer, False) is None
        assert not two.swarm.fetches
        owner.fail()
        assert await two.swarm.office.follow(owner.record, owner.peer, False) is None

        monkeypatch.setattr(following_module, "FIRST_WORD_SECONDS_MAX", 20.0)
        again = Owner(owner.node, owner.record, owner.nar)
        owner.node.swarm.office.publish(again.growing)
        found = []
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                found.append(await two.swarm.office.follow(owner.record, owner.peer, False))

            nursery.start_soon(wait)
            met = owner.node.swarm.inbound.met
            await until(lambda: any(again.growing.id in session.watches for session in met()))
            again.growing.started = True
            again.tell()
        assert found[0] is not None


async def test_an_owner_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following_module, "OWNER_SECONDS_MAX", 0.3)
    monkeypatch.setattr(following_module, "STARVED_SECONDS_MAX", 3600.0)
    async with office() as place:
        owner, two = await pair(place)
        fetch = await follow(two, owner)
        owner.grow(2)
        await fetch.block(1)
        with trio.fail_after(10), pytest.raises(NotHere, match="brings nothing"):
            await fetch.block(2)


async def test_nobody_starves_behind_an_owner_that_only_says_that_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following_module, "STARVED_SECONDS_MAX", 0.3)
    monkeypatch.setattr(following_module, "OWNER_SECONDS_MAX", 3600.0)
    async with office() as place:
        one, two = await members(place, "one", "two")
        record, nar = make_path("path", BIG)
        fetch = await follow(two, Owner(one, record, nar))
        with pytest.raises(NotHere, match="brings nothing"):
            await fetch.block(0)


async def test_a_slow_owner_is_not_taken_for_one_that_has_nothing() -> None:
    """A block that was told of and does not come at once has a holder: the owner."""
    async with office() as place:
        owner, two = await pair(place)
        fetch = await follow(two, owner)
        owner.grow(3)
        await until(lambda: len(fetch.growing.blocks) == 3)
        assert not fetch._is_stuck


async def test_what_is_given_up_while_a_segment_is_looked_at_grows_no_other() -> None:
    async with office() as place:
        owner, two = await pair(place)
        old = await follow(two, owner)
        owner.grow(8)
        await until(lambda: len(old.growing.blocks) == 8)
        heard = []
        asked, answers, has = trio.Event(), threading.Event(), two.store.has

        def slowly(ids: Iterable[BlockId]) -> list[bool]:
            trio.from_thread.run_sync(asked.set)
            answers.wait()
            return has(ids)

        async with trio.open_nursery() as nursery:

            async def hear() -> None:
                growing = Growing(owner.record, owner.peer)
                growing.extend(owner.manifest.blocks[:20], owner.manifest.lengths[:20])
                growing.rewrites = owner.manifest.rewrites
                heard.append(await two.swarm.office.heard(owner.peer, growing.segment(8)))

            two.store.has = slowly  # type: ignore[method-assign]
            nursery.start_soon(hear)
            await asked.wait()
            two.store.has = has  # type: ignore[method-assign]
            await leave(old)
            new = await follow(two, owner)
            answers.set()
        assert heard == [[]]
        assert await finishes(owner, new)
