"""Where NARs come from when several gateways want them, and what is said when nobody has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from chunker.digest import ManifestId
from chunker.record import PathRecord
from chunker.store import MemoryStore
from gateway import delivery as delivery_module
from gateway.delivery import FILLINGS_MAX, RATE_CHANGE_MIN, SHARED_BYTES_MIN, Deliveries
from gateway.errors import UpstreamError
from gateway.narinfo import Narinfo, nar_url
from gateway.responses import Response
from gateway.signing import KeyRing
from gateway.sources import Tried
from peer.fetch import Fetch
from peer.growing import growing_id
from peer.identity import Address, PeerId
from peer.questions import Questions
from tests.gateway.test_substituter import Border, body, signed_path
from tests.gateway.upstreams import Floor, Tap, floor
from tests.peer.office import Node, Office, hold, office, until

BIG = 12_000_000
Upstreams = dict[str, tuple[Tap, ...]]


def taps(tmp_path: Path, record: PathRecord, nar: bytes, *names: str) -> dict[str, Tap]:
    return {name: Tap(tmp_path / name, record, nar) for name in names}


async def opened(border: Border, record: PathRecord, range: str = "") -> Response:
    assert await border.narinfo(record) == 200
    return await border.get(f"/{nar_url(record)}", range)


async def head_of(answer: Response, size: int) -> bytes:
    received = b""
    assert isinstance(answer.body, AsyncIterator)
    while len(received) < size:
        received += await anext(answer.body)
    return received


async def close(answer: Response) -> None:
    await answer.body.aclose()  # type: ignore[union-attr]


def nothing_left(place: Floor) -> bool:
    return all(
        not gateway.node.swarm.fetches and not gateway.substituter.deliveries._fillings
        for gateway in place.gateways.values()
    )


async def test_many_gateways_at_once_cost_one_download(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        caches = taps(tmp_path, record, nar, "one", "two", "three", "four")
        async with floor(place, {name: (cache,) for name, cache in caches.items()}) as all_of:
            found: dict[str, bytes] = {}

            async def read(name: str) -> None:
                found[name] = await body(await opened(all_of[name], record))

            async with trio.open_nursery() as nursery:
                for name in [*caches, *caches]:
                    nursery.start_soon(read, name)
            assert found == dict.fromkeys(caches, nar)
            assert sum(cache.begun for cache in caches.values()) == 1
            assert caches[all_of.turns(record)[0]].begun == 1
            await until(lambda: nothing_left(all_of))
            for gateway in all_of.gateways.values():
                assert await gateway.nar(record) == nar


async def test_when_the_owner_is_lost_only_the_next_in_rank_takes_over(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        caches = taps(tmp_path, record, nar, "one", "two", "three", "four")
        async with floor(place, {name: (cache,) for name, cache in caches.items()}) as all_of:
            first, second, *others = all_of.turns(record)
            caches[first].let(4_000_000)
            answers = {name: await opened(all_of[name], record) for name in (second, *others)}
            heads = {name: await head_of(a, 2_000_000) for name, a in answers.items()}
            place.network.cut(all_of.peer(first))
            found: dict[str, bytes] = {}

            async def finish(name: str) -> None:
                found[name] = heads[name] + await body(answers[name])

            async with trio.open_nursery() as nursery:
                for name in answers:
                    nursery.start_soon(finish, name)
            assert found == dict.fromkeys((second, *others), nar)
            assert {name: cache.begun for name, cache in caches.items()} == {
                first: 1, second: 1, **dict.fromkeys(others, 0)
            }  # fmt: skip


async def test_an_owner_whose_upstream_breaks_off_fails_nobody(tmp_path: Path) -> None:
    """Its own reader goes on too, behind another."""
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        caches = taps(tmp_path, record, nar, "one", "two", "three")
        async with floor(place, {name: (cache,) for name, cache in caches.items()}) as all_of:
            first, *others = all_of.turns(record)
            caches[first].let(4_000_000)
            answers = {name: await opened(all_of[name], record) for name in (first, *others)}
            heads = {name: await head_of(a, 2_000_000) for name, a in answers.items()}
            caches[first].break_off()
            for name, answer in answers.items():
                assert heads[name] + await body(answer) == nar
            assert [caches[name].begun for name in others] == [1, 0]
            await until(lambda: nothing_left(all_of))
            name = growing_id(record, all_of.peer(first))
            for gateway in all_of.gateways.values():
                assert name not in gateway.node.catalogue._under_way


async def test_what_became_whole_here_meanwhile_is_not_fetched_again(tmp_path: Path) -> None:
    """Another asked us for it, after the first owner was lost and before our reader noticed."""
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        caches = taps(tmp_path, record, nar, "one", "two")
        async with floor(place, {name: (cache,) for name, cache in caches.items()}) as all_of:
            first, second = all_of.turns(record)
            caches[first].let(4_000_000)
            answer = await opened(all_of[second], record)
            head = await head_of(answer, 1_000_000)
            deliveries = all_of.deliveries(second)
            assert await deliveries.fetch_for(record) is not None
            await until(lambda: not deliveries.running())
            caches[first].break_off()
            assert head + await body(answer) == nar
            assert caches[second].begun == 1


async def seeded(place: Office, record: PathRecord, nar: bytes) -> tuple[PeerId, PathRecord]:
    """A seed that holds it, which nobody has met yet."""
    held = hold(place.stores.setdefault("seed", MemoryStore()), record, nar)
    return (await place.start("seed", "seed")).peer, held


async def fetch_from(seed: PeerId, node: Node, held: PathRecord) -> Fetch:
    node.swarm.discovered(Address(seed, "127.0.0.1", 1))
    await until(lambda: seed in node.swarm.sessions())
    fetch = await Fetch.open(node.swarm, held, [(seed, held)])
    assert fetch is not None
    return fetch


async def test_fellows_that_lack_what_we_lack_are_no_other_source(tmp_path: Path) -> None:
    """They still offer what all of them lost; each wait for it would be in vain."""
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        caches = taps(tmp_path, record, nar, "one", "two")
        async with floor(place, {name: (cache,) for name, cache in caches.items()}) as all_of:
            one, two = all_of["one"].node, all_of["two"].node
            seed, held = await seeded(place, record, nar)
            fetch = await fetch_from(seed, one, held)
            deliveries, exchange = all_of.deliveries("one"), one.swarm.exchange
            tried = Tried()
            source = await deliveries.source(record, tried)
            assert source is not None and source.manifest == fetch.id
            await fetch_from(seed, two, held)
            place.network.cut(seed)
            await until(lambda: exchange.fills(two.peer, fetch.id))
            other = await deliveries.source(record, tried)
            assert other is not None and other.manifest != fetch.id
            await other.leave()
            await source.leave()


async def test_who_became_whole_tells_those_who_look_for_it_under_that_name(
    tmp_path: Path,
) -> None:
    """Two fetched what a third held, and lost it; one of them turns to its upstream."""
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        cache = Tap(tmp_path / "one", record, nar)
        async with floor(place, {"one": (cache,), "two": ()}) as all_of:
            one, two = all_of["one"].node, all_of["two"].node
            seed, held = await seeded(place, record, nar)
            watched, waiting = [await fetch_from(seed, node, held) for node in (one, two)]
            await until(lambda: one.peer in waiting.sources)
            place.network.cut(seed)
            await watched.close()
            all_of.deliveries("one").fill(record)
            await waiting.complete()
            assert two.store.is_verified(waiting.id)


async def test_followers_of_a_lost_owner_are_asked_for_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What grew behind it has none; asking each in turn would keep the reader waiting."""
    asked: list[ManifestId] = []
    honest = Questions.get_manifest

    async def counting(self: Questions, record: PathRecord, peers: Sequence[PeerId]) -> Any:
        asked.append(record.manifest)
        return await honest(self, record, peers)

    monkeypatch.setattr(Questions, "get_manifest", counting)
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        caches = taps(tmp_path, record, nar, "one", "two", "three")
        async with floor(place, {name: (cache,) for name, cache in caches.items()}) as all_of:
            first, *others = all_of.turns(record)
            caches[first].let(4_000_000)
            answers = [await opened(all_of[name], record) for name in others]
            heads = [await head_of(answer, 1_000_000) for answer in answers]
            place.network.cut(all_of.peer(first))
            for head, answer in zip(heads, answers, strict=True):
                assert head + await body(answer) == nar
    assert growing_id(record, all_of.peer(first)) not in asked


async def test_an_owner_goes_on_when_nobody_reads_and_keeps_the_whole(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        caches = taps(tmp_path, record, nar, "one", "two")
        async with floor(place, {name: (cache,) for name, cache in caches.items()}) as all_of:
            owner, other = all_of.turns(record)
            caches[owner].let(4_000_000)
            answer = await opened(all_of[other], record)
            await head_of(answer, 1_000_000)
            await close(answer)
            assert all_of[other].node.swarm.fetches == {}
            caches[owner].let(BIG)
            await until(lambda: all_of[owner].node.store.record(record.store_hash) is not None)
            assert await all_of[other].nar(record) == nar
            assert caches[owner].begun == 1 and caches[other].begun == 0


async def test_404_at_once_where_nobody_has_it(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        caches = taps(tmp_path, record, nar, "one", "two", "three")
        for cache in caches.values():
            cache.has = False
        async with floor(place, {name: (cache,) for name, cache in caches.items()}) as all_of:
            for name in caches:
                began = trio.current_time()
                assert (await opened(all_of[name], record)).status == 404
                assert trio.current_time() - began < delivery_module.FIRST_BYTE_SECONDS_MAX
            assert nothing_left(all_of)
            for gateway in all_of.gateways.values():
                assert gateway.node.catalogue._under_way == {}


async def test_no_200_before_our_own_download_has_a_byte(tmp_path: Path) -> None:
    """A second reader comes while the first one's upstream is still being asked."""
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        cache = Tap(tmp_path, record, nar)
        asked, answer = trio.Event(), trio.Event()

        @asynccontextmanager
        async def silent(info: Narinfo) -> AsyncIterator[AsyncIterator[bytes]]:
            asked.set()
            await answer.wait()
            raise UpstreamError("it does not have it after all")
            yield

        async with floor(place, {"one": (cache,)}) as all_of:
            assert await all_of["one"].narinfo(record) == 200
            cache.nar = silent  # type: ignore[method-assign]
            statuses: list[int] = []

            async def read() -> None:
                statuses.append((await opened(all_of["one"], record)).status)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await asked.wait()
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                assert statuses == []
                answer.set()
            assert statuses == [404, 404]


@pytest.mark.parametrize("size", [SHARED_BYTES_MIN // 2, BIG])
async def test_who_has_no_upstream_or_a_bad_one_gets_it_through_others(
    tmp_path: Path, size: int
) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=size)
        caches = taps(tmp_path, record, nar, "good", "bad")
        caches["bad"].has = False
        upstreams: Upstreams = {"good": (caches["good"],), "bad": (caches["bad"],), "none": ()}
        async with floor(place, upstreams) as all_of:
            assert await body(await opened(all_of["bad"], record)) == nar
            # It has no narinfo of its own; here it knows the path from before.
            all_of["none"].node.store.put_record(record)
            all_of["none"].node.catalogue.add(record)
            assert await body(await opened(all_of["none"], record)) == nar
            assert caches["good"].begun == 1


async def test_a_reader_that_goes_away_before_its_first_byte_leaves_nothing(
    tmp_path: Path,
) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        caches = taps(tmp_path, record, nar, "one", "two")
        async with floor(place, {name: (cache,) for name, cache in caches.items()}) as all_of:
            owner, other = all_of.turns(record)
            caches[owner].let(1_000_000)
            answer = await opened(all_of[other], record)
            assert all_of[other].node.swarm.fetches
            await close(answer)
            assert all_of[other].node.swarm.fetches == {}
            caches[owner].let(BIG)


async def test_a_range_goes_on_only_behind_whom_the_head_came_from(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        caches = taps(tmp_path, record, nar, "one", "two", "three")
        async with floor(place, {name: (cache,) for name, cache in caches.items()}) as all_of:
            first, second, third = all_of.turns(record)
            caches[first].let(4_000_000)
            answer = await opened(all_of[third], record)
            head = await head_of(answer, 1_000_000)
            await close(answer)
            assert all_of[third].node.swarm.fetches == {}

            again = await opened(all_of[third], record, f"bytes={len(head)}-")
            assert again.status == 206
            more = await head_of(again, 1)
            assert head + more == nar[: len(head) + len(more)]
            await close(again)

            place.network.cut(all_of.peer(first))
            await until(lambda: all_of.peer(first) not in all_of[third].node.swarm.sessions())
            refused = await opened(all_of[third], record, f"bytes={len(head)}-")
            assert refused.status == 404
            assert all_of[third].node.swarm.fetches == {}
            assert await all_of[third].nar(record) == nar
            assert await all_of[third].nar(record, f"bytes={len(head)}-") == nar[len(head) :]
            assert caches[third].begun == 0 and caches[second].begun == 1


async def test_two_paths_with_one_nar_and_other_references_are_two_downloads(
    tmp_path: Path,
) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        twin = replace(signed_path("twin", size=BIG)[0], nar_hash=record.nar_hash)
        cache = Tap(tmp_path, record, nar)
        cache.let(0)
        async with floor(place, {"one": (cache,)}) as all_of:
            deliveries = all_of.deliveries("one")
            one, other = deliveries.fill(record), deliveries.fill(twin)
            assert one is not None and other is not None
            assert deliveries.fill(record) is one is not other
            assert other.growing.record.store_path == twin.store_path
            cache.let(BIG)


async def test_others_begin_no_more_downloads_than_we_can_bear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FILLINGS_MAX < 1000
    monkeypatch.setattr(delivery_module, "FILLINGS_MAX", 2)
    async with office() as place:
        record, nar = signed_path("path", size=BIG)
        cache = Tap(tmp_path, record, nar)
        async with floor(place, {"one": (cache,)}) as all_of:
            deliveries = all_of.deliveries("one")
            for number in range(2):
                deliveries.fill(signed_path(f"other-{number}", size=BIG)[0])
            assert await deliveries.fetch_for(record) is None
            await until(lambda: not deliveries._fillings)
            assert await deliveries.fetch_for(record) is not None


async def test_small_changes_of_the_rate_are_not_told(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=10)
        async with floor(place, {"one": (Tap(tmp_path, record, nar),)}) as all_of:
            deliveries, swarm = all_of.deliveries("one"), all_of["one"].node.swarm
            share = swarm.hello.fetches
            for factor in (1.1, 0.6, RATE_CHANGE_MIN / 2.1, 0.5):
                deliveries._offer_to_fetch(share * 1024 * factor)
                assert swarm.hello.fetches == share
            deliveries._offer_to_fetch(share * 1024 * 8)
            assert swarm.hello.fetches == 8 * share


async def test_an_office_cache_takes_four_times_the_share(tmp_path: Path) -> None:
    async with office() as place:
        record, nar = signed_path("path", size=10)
        shares = {}
        for role in ("gateway", "peer"):
            node = await place.start(role, role)
            deliveries = Deliveries(
                node.store, node.swarm, (Tap(tmp_path, record, nar),), KeyRing(())
            )
            assert node.swarm.office.fetch_for == deliveries.fetch_for
            shares[role] = node.swarm.hello.fetches
        assert shares["peer"] == 4 * shares["gateway"] > 0
        none = await place.start("none", "gateway")
        Deliveries(none.store, none.swarm, (), KeyRing(()))
        assert none.swarm.hello.fetches == 0 and none.swarm.office.fetch_for is None
