"""A body that goes from source to source: the same bytes, and blame where it belongs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from chunker.digest import Bytes, ManifestId, NarHash
from chunker.errors import StoreFull
from chunker.record import PathRecord
from chunker.store import MemoryStore
from gateway.delivery import Deliveries
from gateway.filling import Filling
from gateway.pump import BodyBroken
from gateway.signing import KeyRing
from gateway.sources import FetchedSource, FilledSource, SourcedBody, SourceLost, Tried
from peer.errors import NotHere
from peer.fetch import Fetch
from peer.growing import Growing
from peer.identity import Identity
from peer.messages import Growth
from tests.gateway.test_substituter import KEY, border, signed_path, write_cache
from tests.peer.office import Office, office
from tests.peer.owner import Owner, follow, members
from tests.peer.test_swarm import lie_about

BLOCKS = [hashlib.shake_128(bytes([number])).digest(1000) for number in range(10)]
NAR = b"".join(BLOCKS)
RECORD = replace(
    signed_path("path", KEY, 10)[0],
    nar_hash=NarHash(hashlib.sha256(NAR).digest()),
    nar_size=len(NAR),
)


class Scripted:
    """Gives the blocks before `stops`, and keeps books."""

    def __init__(self, name: str, blocks: list[bytes] = BLOCKS, stops: int = 99) -> None:
        self.manifest = ManifestId(name.encode().ljust(32))
        self.asked: list[int] = []
        self.verified_from: list[int] = []
        self.blamed = self.left = 0
        self._blocks = blocks
        self._stops = stops

    async def piece(self, index: int, offset: int) -> Bytes:
        await trio.lowlevel.checkpoint()
        self.asked.append(index)
        if index >= self._stops:
            raise SourceLost("it stopped")
        assert offset == 1000 * index
        return self._blocks[index]

    async def verified(self, first: int) -> ManifestId | None:
        self.verified_from.append(first)
        return ManifestId(b"final".ljust(32))

    def blame(self) -> None:
        self.blamed += 1

    async def leave(self) -> None:
        self.left += 1
        await trio.lowlevel.checkpoint()


class Next(Deliveries):
    """Has these sources, one after the other."""

    def __init__(self, place: Office, node: object, *sources: Scripted) -> None:
        super().__init__(MemoryStore(), node, (), KeyRing(()))  # type: ignore[arg-type]
        self.sources = list(sources)

    async def source(self, record: PathRecord, tried: Tried) -> Scripted | None:  # type: ignore
        await trio.lowlevel.checkpoint()
        return self.sources.pop(0) if self.sources else None


async def read(
    *sources: Scripted, start: int = 0, end: int = len(NAR)
) -> tuple[bytes, Next, BodyBroken | None]:
    async with office() as place:
        (node,) = await members(place, "one")
        deliveries = Next(place, node.swarm, *sources[1:])
        body = SourcedBody(deliveries, RECORD, sources[0], Tried())
        received, broken = b"", None
        pieces = body(start, end)
        try:
            async for piece in pieces:
                received += piece
        except BodyBroken as error:
            broken = error
        await pieces.aclose()  # type: ignore[attr-defined]
        assert [source.left for source in sources[: len(sources) - len(deliveries.sources)]] == [
            1
        ] * (len(sources) - len(deliveries.sources))
        return received, deliveries, broken


@pytest.mark.parametrize("stops", [0, 1, 5, 9])
async def test_a_source_that_is_lost_anywhere_changes_no_byte(stops: int) -> None:
    one, two = Scripted("one", stops=stops), Scripted("two")
    received, _, broken = await read(one, two)
    assert received == NAR and broken is None
    assert two.asked == list(range(stops, 10))
    assert one.verified_from == [] and two.verified_from == [stops]


async def test_three_sources_in_a_row() -> None:
    sources = Scripted("one", stops=2), Scripted("two", stops=7), Scripted("three")
    received, _, broken = await read(*sources)
    assert received == NAR and broken is None
    assert sources[2].verified_from == [7]


async def test_where_no_other_source_is_left_the_body_is_cut() -> None:
    received, _, broken = await read(Scripted("one", stops=5))
    assert received == NAR[:5000] and broken is not None


@pytest.mark.parametrize("wrong", [0, 4, 9])
async def test_a_lie_anywhere_is_cut_before_the_last_block_and_blamed(wrong: int) -> None:
    lie = [*BLOCKS[:wrong], bytes(1000), *BLOCKS[wrong + 1 :]]
    liar = Scripted("liar", lie)
    received, deliveries, broken = await read(liar)
    assert len(received) == 9000 and broken is not None and "not what was signed" in str(broken)
    assert liar.blamed == 1 and liar.verified_from == []
    assert deliveries.is_wrong(RECORD.nar_hash)


async def test_who_took_over_in_the_middle_is_not_blamed_for_the_beginning() -> None:
    liar, honest = Scripted("liar", [bytes(1000), *BLOCKS[1:]], stops=5), Scripted("honest")
    received, _, broken = await read(liar, honest)
    assert broken is not None and len(received) == 9000
    assert honest.blamed == liar.blamed == 0


@pytest.mark.parametrize(("start", "end"), [(0, 1), (999, 1001), (4000, 10_000), (9_999, 10_000)])
async def test_a_range_is_of_a_body_that_is_read_and_checked_from_the_beginning(
    start: int, end: int
) -> None:
    source = Scripted("one")
    received, _, broken = await read(source, start=start, end=end)
    assert received == NAR[start:end] and broken is None
    assert source.asked == list(range(10)) and source.verified_from == [0]


async def test_a_range_changes_no_source_before_its_start() -> None:
    """What the client has of before came from the first; nobody would check that against this."""
    received, _, broken = await read(Scripted("one", stops=3), Scripted("two"), start=5000)
    assert received == b"" and broken is not None
    received, _, broken = await read(Scripted("one", stops=7), Scripted("two"), start=5000)
    assert received == NAR[5000:] and broken is None


async def test_a_client_that_is_gone_before_the_first_byte_or_in_the_middle() -> None:
    for taken in (0, 1):
        async with office() as place:
            (node,) = await members(place, "one")
            source = Scripted("one")
            body = SourcedBody(Next(place, node.swarm), RECORD, source, Tried())
            pieces = body(0, len(NAR))
            for _ in range(taken):
                await anext(pieces)
            for _ in range(2):
                await pieces.aclose()  # type: ignore[attr-defined]
            assert source.left == 1 and len(source.asked) == taken


async def test_a_cancelled_change_of_sources_leaves_both() -> None:
    for steps in range(1, 12):
        async with office() as place:
            (node,) = await members(place, "one")
            sources = Scripted("one", stops=0), Scripted("two")
            deliveries = Next(place, node.swarm, sources[1])
            pieces = SourcedBody(deliveries, RECORD, sources[0], Tried())(0, len(NAR))
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def cancel(scope: trio.CancelScope, steps: int) -> None:
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(cancel, scope, steps)
                    await anext(pieces)
                    await trio.sleep_forever()
            await pieces.aclose()  # type: ignore[attr-defined]
            taken = [sources[0]] if deliveries.sources else list(sources)
            assert all(source.left <= 1 for source in sources)
            assert taken[-1].left == 1


async def test_what_was_read_in_part_counts_only_after_it_was_checked_alone() -> None:
    """A liar takes over for the tail, which is right: its manifest is not marked as verified, and
    the liar is found out."""
    async with office() as place:
        record, nar = signed_path("path", size=12_000_000)
        lie = nar[:5000] + bytes(100) + nar[5100:]
        one, two = await members(place, "one", "two")
        liar = Owner(one, record, lie)
        fetch = await follow(two, liar)
        liar.finish()
        for index in range(len(liar.manifest.blocks)):
            await fetch.block(index)
        source = FetchedSource(fetch, 8.0)
        with pytest.raises(NotHere, match="tells lies"):
            await source.verified(1)
        assert not two.store.is_verified(liar.final)
        assert two.swarm.questions.is_blamed(one.peer, fetch.id)


async def test_a_whole_manifest_too_is_checked_alone_if_it_took_over() -> None:
    async with office() as place:
        record, _ = signed_path("path", size=12_000_000)
        lie = lie_about(place.stores.setdefault("liar", MemoryStore()), record)
        await place.start("liar", "seed")
        async with border(place, "liar") as me:
            fetch = await Fetch.open(me.node.swarm, record)
            assert fetch is not None and fetch.id == lie.manifest
            source = FetchedSource(fetch, 8.0)
            for index in range(len(fetch.manifest.blocks)):
                await fetch.block(index)
            with pytest.raises(NotHere, match="is a lie"):
                await source.verified(3)
            assert not me.node.store.is_verified(fetch.id)
            assert me.node.swarm.questions.is_blamed(place.peer("liar"), fetch.id)
            await source.leave()
            assert me.node.swarm.fetches == {}


class FullStore(MemoryStore):
    """Takes blocks and cannot make them durable."""

    def flush(self) -> None:
        raise StoreFull("no room left for the store")


async def test_what_the_disk_did_not_take_is_offered_to_nobody(tmp_path: Path) -> None:
    """A reader is not behind the disk, so it has the whole; others are told that it failed."""
    record, nar = signed_path("path", size=3_000_000)
    cache = write_cache(tmp_path, record, nar)
    growing = Growing(record, Identity(bytes(32)).peer_id)
    filling = Filling(FullStore(), record, (cache,), growing, lambda _: None)
    completed: list[Filling] = []
    source, got = FilledSource(filling), bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(filling.run, completed.append)
        index = 0
        while len(got) < len(nar):
            got += await source.piece(index, len(got))
            index += 1
    right = got == nar
    assert right and filling.store_failed and not completed
    assert growing.state is Growth.FAILED
