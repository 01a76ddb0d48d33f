"""Who asks the upstream for all, and who follows: several members, loss, lies and strangers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
import trio
import trio.lowlevel

from chunker.record import PathRecord, encode_record
from peer import following as following_module
from peer import office as office_module
from peer.certificates import PoolId
from peer.growing import Growing, growing_id
from peer.messages import Grown, Growth, Please, Refuse, Sent, Show, Watch
from peer.serving import Due
from tests.peer.office import make_path, office, until
from tests.peer.owner import BIG, Owner, follow, leave, members, pair, read


async def test_all_rank_alike_and_hear_when_a_share_changes() -> None:
    async with office() as place:
        nodes = await members(place, "one", "two", "three")
        record, _ = make_path("path", BIG)

        def ranks() -> list[list[str]]:
            return [list(node.swarm.office.rank(record)) for node in nodes]

        assert ranks() == [[], [], []]
        for rate, node in zip((1024, 1024, 4096), nodes, strict=True):
            node.swarm.office.offers_to_fetch(rate)
        await until(lambda: len({tuple(rank) for rank in ranks()}) == 1 and len(ranks()[0]) == 3)
        nodes[0].swarm.office.offers_to_fetch(0)
        await until(lambda: all(nodes[0].peer not in rank for rank in ranks()))


async def test_a_member_far_away_fetches_for_itself() -> None:
    """And for who has no upstream, wherever that is."""
    async with office() as place:
        place.network.sites[place.peer("home")] = "home"
        one, two, home = await members(place, "one", "two", "home")
        record, nar = make_path("path", BIG)
        owner = Owner(one, record, nar)
        for node in (one, two, home):
            node.swarm.office.offers_to_fetch(1024)
        here = {one.peer, two.peer}
        await until(lambda: set(one.swarm.office.rank(record)) == here)
        await until(lambda: set(two.swarm.office.rank(record)) == here)
        assert home.swarm.office.rank(record) == [home.peer]
        assert two.swarm.office.owner_of(owner.growing.record, True) == one.peer
        assert home.swarm.office.owner_of(owner.growing.record, True) is None
        home.swarm.office.offers_to_fetch(0)
        assert set(home.swarm.office.rank(record)) == here
        assert home.swarm.office.owner_of(owner.growing.record, True) == one.peer


async def test_who_was_near_once_stays_it() -> None:
    """A busy line takes long for every round trip."""
    async with office() as place:
        one, two = await members(place, "one", "two")
        (asking,) = one.swarm.sessions_open()
        assert asking.is_near
        place.network.sites[two.peer] = "seems far"
        assert asking.is_near


async def test_who_watches_us_is_watched_back() -> None:
    """The later one finds us through the owner alone, and has what we lack."""
    async with office() as place:
        one, two, three = await members(place, "one", "two", "three")
        record, nar = make_path("path", BIG)
        owner = Owner(one, record, nar)
        early = await follow(two, owner)
        assert three.peer not in early.sources
        await follow(three, owner)
        await until(lambda: three.peer in early.sources)
        assert (
            owner.growing.id
            in next(a for a in three.swarm.inbound.met() if a.peer == two.peer).watches
        )


async def test_an_owner_that_is_lost_is_passed_over_and_its_followers_go_on_elsewhere() -> None:
    async with office() as place:
        one, two, three = await members(place, "one", "two", "three")
        record, nar = make_path("path", BIG)
        first, second = Owner(one, record, nar), Owner(three, record, nar)
        fetch = await follow(two, first)
        first.grow(30)
        head = await read(fetch, range(30))
        place.network.cut(one.peer)
        with pytest.raises(Exception, match="went away"):
            await fetch.block(30)
        fetch.lost()
        await until(lambda: two.swarm.office.rank(record) == [three.peer])
        other = await follow(two, second)
        await leave(fetch)
        second.finish()
        assert head + await read(other, range(30, len(second.manifest.blocks))) == nar
        got = two.swarm.counters.peers[three.peer].blocks
        assert got <= len(second.manifest.blocks) - 30


async def test_an_owner_that_says_no_or_nothing_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(office_module, "FIRST_BYTE_SECONDS_MAX", -0.8)
    async with office() as place:
        one, two, three = await members(place, "one", "two", "three")
        record, _ = make_path("path", BIG)
        for node in (one, three):
            node.swarm.office.offers_to_fetch(1024)
        await until(lambda: len(two.swarm.office.rank(record)) == 2)

        async def never(record: PathRecord) -> PathRecord | None:
            await trio.sleep_forever()

        one.swarm.office.fetch_for = never
        for _ in range(2):
            owner = two.swarm.office.rank(record)[0]
            assert await two.swarm.office.ask(owner, record, False) is None
            assert two.swarm.office.rank(record)[-1] == owner


async def test_who_lied_about_a_nar_is_not_followed_again() -> None:
    async with office() as place:
        one, two, three = await members(place, "one", "two", "three")
        record, nar = make_path("path", BIG)
        liar = Owner(one, record, make_path("other", BIG)[1][: len(nar)])
        fetch = await follow(two, liar)
        fellow = await follow(three, liar)
        fetch.blame()
        assert await two.swarm.office.ask(one.peer, record, False) is None
        assert two.swarm.office.owner_of(liar.growing.record, True) is None
        assert three.swarm.office.owner_of(liar.growing.record, True) == one.peer
        assert not two.swarm.questions.is_blamed(three.peer, fellow.id)


async def test_what_failed_or_was_given_up_is_offered_no_more() -> None:
    async with office() as place:
        one, two, three = await members(place, "one", "two", "three")
        record, nar = make_path("path", BIG)
        owner = Owner(one, record, nar)
        fetch = await follow(two, owner)
        owner.grow(3)
        asked = three.swarm.sessions_open()
        await until(lambda: all(asking.may_hold(record.store_hash) for asking in asked))
        found = await three.swarm.questions.find(record.store_hash, 2)
        assert {peer for peer, _ in found} == {one.peer, two.peer}
        owner.fail()
        await until(lambda: bool(fetch.failed))
        await leave(fetch)
        assert await three.swarm.questions.find(record.store_hash, 2) == []
        assert two.swarm.office.load(owner.growing.id) is None
        assert two.catalogue._under_way == one.catalogue._under_way == {}


async def test_what_is_kept_of_growing_manifests_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(office_module, "GROWINGS_KEPT_MAX", 3)
    async with office() as place:
        (me,) = await members(place, "me")
        made = [Growing(make_path(f"path-{n}", 100)[0], me.peer) for n in range(8)]
        for number, growing in enumerate(made):
            growing.state = Growth.GROWING if number == 0 else Growth.WHOLE
            me.swarm.office.publish(growing)
        kept = [growing for growing in made if me.swarm.office.load(growing.id) is not None]
        assert kept == [made[0], *made[6:]]
        assert len(me.catalogue._under_way) == 3
        monkeypatch.setattr(office_module, "GROWN_BLOCKS_KEPT_MAX", 10)
        made[7].extend([made[0].id] * 20, [40_000] * 20)  # type: ignore[list-item]
        me.swarm.office.publish(made[6])
        assert me.swarm.office.load(made[7].id) is None


async def test_a_stranger_is_neither_asked_nor_told() -> None:
    """It gets no growing manifest of a private path, is nobody's owner, and its Please is void."""
    async with office() as place:
        one, two, three = await members(place, "one", "two", "stranger")
        place.known = lambda peer: peer != three.peer
        place.allowed = lambda asker, record: asker != three.peer
        record, nar = make_path("path", BIG)
        owner = Owner(one, record, nar)
        three.swarm.office.offers_to_fetch(1 << 20)
        await until(
            lambda: all(a.their.fetches for a in two.swarm.sessions_open() if a.peer == three.peer)
        )
        assert three.peer not in two.swarm.office.rank(record)
        assert three.peer not in one.swarm.office.rank(record)
        foreign = replace(record, manifest=growing_id(record, three.peer))
        assert two.swarm.office.owner_of(foreign, False) is None
        assert two.swarm.office.owner_of(foreign, True) == three.peer

        await follow(two, owner)
        owner.grow(5)
        assert (
            await one.swarm.look_for(
                three.peer, Please(1, record.store_hash, encode_record(record))
            )
            is None
        )
        assert owner.asked == 1
        heard: list[object] = []
        asking = next(a for a in three.swarm.sessions_open() if a.peer == one.peer)

        async def handler(peer: object, message: object) -> None:
            heard.append(message)

        asking._handler = handler  # type: ignore[assignment]
        asking.tell(Watch(7, owner.growing.id))
        await until(lambda: bool(heard))
        owner.grow(10)
        assert not any(isinstance(message, Grown) for message in heard)
        assert await three.swarm.questions.find(record.store_hash, 1, public=True) == []


async def test_a_please_that_our_keys_do_not_admit_costs_no_upstream() -> None:
    async with office() as place:
        owner, two = await pair(place)
        one, record = owner.node, owner.record
        one.swarm.policies = replace(one.swarm.policies, admits=lambda _: False)
        assert await two.swarm.office.ask(owner.peer, record, False) is None
        assert owner.asked == 0
        one.swarm.policies = replace(one.swarm.policies, admits=lambda _: True)
        assert await two.swarm.office.ask(owner.peer, record, False) is not None


async def test_a_please_must_be_about_one_path() -> None:
    async with office() as place:
        one, two = await members(place, "one", "two")
        record, nar = make_path("path", BIG)
        Owner(one, record, nar)
        asking = two.swarm.sessions_open()[0]
        other = make_path("other", 10)[0]
        with pytest.raises(Exception, match="went away"):
            await asking.please(other.store_hash, encode_record(record))


async def test_a_want_beyond_a_manifest_that_grew_anew_is_refused() -> None:
    async with office() as place:
        (one,) = await members(place, "one")
        record, nar = make_path("path", BIG)
        owner = Owner(one, record, nar)
        owner.begin()
        owner.grow(40)
        due = Due(1, owner.growing.id, 39, 100)
        assert isinstance(one.swarm.sending._read(due), Sent)
        one.swarm.office.publish(Growing(record, one.peer))
        assert one.swarm.sending._read(due) == Refuse(1, "not-here", (39,))


async def test_who_comes_late_is_told_of_what_is_under_way() -> None:
    async with office() as place:
        (one,) = await members(place, "one")
        record, nar = make_path("path", BIG)
        Owner(one, record, nar).begin()
        late = await place.start("late", "gateway", "one")
        asking = late.swarm.sessions_open()[0]
        await until(lambda: not asking.may_hold("0" * 32))
        assert asking.may_hold(record.store_hash)


async def test_a_stranger_that_may_have_a_path_costs_us_no_upstream_for_it() -> None:
    async with office() as place:
        one, two = await members(place, "one", "two")
        place.known = lambda peer: False
        record, nar = make_path("path", BIG)
        owner = Owner(one, record, nar)
        please = Please(1, record.store_hash, encode_record(record))
        assert await one.swarm.look_for(two.peer, please) is None
        place.known = lambda peer: True
        assert await one.swarm.look_for(two.peer, please) is not None
        assert owner.asked == 1


async def test_a_cache_tells_members_what_its_upstreams_have() -> None:
    async with office() as place:
        one, two = await members(place, "one", "two")
        record, _ = make_path("path", BIG)
        asked: list[str] = []

        async def look_up(store_hash: str) -> PathRecord | None:
            asked.append(store_hash)
            return record if store_hash == record.store_hash else None

        assert await one.swarm.look_for(two.peer, Please(1, record.store_hash)) is None
        one.swarm.office.look_up = look_up
        assert await one.swarm.look_for(two.peer, Please(1, record.store_hash)) == record
        assert await one.swarm.look_for(two.peer, Please(1, "0" * 32)) is None
        place.allowed = lambda asker, path: False
        assert await one.swarm.look_for(two.peer, Please(1, record.store_hash)) is None
        place.known = lambda peer: False
        assert await one.swarm.look_for(two.peer, Please(1, record.store_hash)) is None
        assert asked == [record.store_hash, "0" * 32, record.store_hash]


async def test_a_share_that_changes_while_two_greet_each_other_is_told() -> None:
    """After our Hello, before they are met."""
    async with office() as place:
        one = await place.start("one", "gateway")
        show = one.swarm.introductions.show

        def changing(pools: Collection[PoolId]) -> Show:
            one.swarm.introductions.show = show  # type: ignore[method-assign]
            one.swarm.office.offers_to_fetch(1024)
            return show(pools)

        one.swarm.introductions.show = changing  # type: ignore[method-assign,assignment]
        two = await place.start("two", "gateway", "one")
        record, _ = make_path("path", BIG)
        await until(lambda: two.swarm.office.rank(record) == [one.peer])


async def test_nobody_waits_for_the_first_word_of_who_does_not_fetch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody told of it who had not heard yet that it failed."""
    monkeypatch.setattr(following_module, "FIRST_WORD_SECONDS_MAX", 3600.0)
    async with office() as place:
        owner, two = await pair(place)
        assert await two.swarm.office.follow(owner.record, owner.peer, False) is None
        owner.begin()
        owner.fail()
        assert await two.swarm.office.follow(owner.record, owner.peer, False) is None
        assert not two.swarm.fetches


async def test_a_refusal_of_an_older_watch_is_no_word_on_the_newer() -> None:
    async with office() as place:
        owner, two = await pair(place)
        older = two.swarm.sessions_open()[0].watching(owner.growing.id)
        fetch = await follow(two, owner)
        two.swarm.office.refused(owner.peer, older.request)
        assert not fetch.failed
