"""A manifest that grows: any split gives the owner's, and nonsense says so."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunker.cut import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN
from chunker.digest import BlockId, ManifestId
from chunker.ingest import Ingest
from chunker.manifest import Manifest
from chunker.record import PathRecord
from chunker.references import Rewrites
from chunker.store import MemoryStore
from peer import growing as growing_module
from peer.errors import RemoteError
from peer.growing import SEGMENT_REWRITES_MAX, Growing, blocks_max, growing_id
from peer.identity import PeerId
from peer.messages import SEGMENT_BLOCKS_MAX, Grown, Growth
from peer.wire import GROWN_BYTES_MAX, Decoder, encode
from tests.golden.samples import file_nar
from tests.peer.office import make_path

OWNER, OTHER = PeerId("OWNER"), PeerId("OTHER")
FINAL = ManifestId(b"f" * 32)


def path_with_hashes() -> tuple[PathRecord, Manifest]:
    """Its own hash stands in it every few thousand bytes, also across borders of blocks."""
    record, _ = make_path("path", 10)
    contents = b"".join(
        hashlib.shake_128(number.to_bytes(4, "big")).digest(2800) + record.needles[0]
        for number in range(1000)
    )
    nar = file_nar(contents)
    ingest = Ingest(MemoryStore(), record.needles)
    ingest.feed(nar)
    _, manifest = ingest.finish_unchecked()
    return replace(record, nar_hash=manifest.nar_hash, nar_size=len(nar)), manifest


RECORD, MANIFEST = path_with_hashes()
BLOCKS, LENGTHS = list(MANIFEST.blocks), list(MANIFEST.lengths)
SOME = BlockId(b"b" * 32)


def owner_at(blocks: int) -> Growing:
    """As the owner has it when so many blocks are cut; rewrites are found ahead of the cuts."""
    growing = Growing(RECORD, OWNER)
    growing.extend(BLOCKS[:blocks], LENGTHS[:blocks])
    growing.rewrites = MANIFEST.rewrites
    if blocks == len(BLOCKS):
        growing.state, growing.final = Growth.WHOLE, FINAL
    return growing


def assert_same(follower: Growing, blocks: int) -> None:
    known = sum(LENGTHS[:blocks])
    assert follower.blocks == BLOCKS[:blocks] and list(follower.lengths) == LENGTHS[:blocks]
    count = sum(offset < known for offset in MANIFEST.rewrites.offsets)
    assert follower.rewrites.offsets == MANIFEST.rewrites.offsets[:count]
    assert follower.rewrites.indexes == MANIFEST.rewrites.indexes[:count]


def test_the_sample_has_what_it_takes() -> None:
    assert len(BLOCKS) > 8 and len(MANIFEST.rewrites) > 900


@given(st.lists(st.integers(0, len(BLOCKS)), max_size=12))
def test_any_split_into_segments_gives_the_owners_manifest(stops: list[int]) -> None:
    follower = Growing(RECORD, OWNER)
    for stop in [*sorted(stops), len(BLOCKS)]:
        if follower.state is Growth.WHOLE:
            break
        segment = next(iter(Decoder().feed(encode(owner_at(stop).segment(len(follower.blocks))))))
        assert isinstance(segment, Grown)
        assert follower.apply(segment) == range(segment.first, stop)
        assert_same(follower, stop)
    assert follower.state is Growth.WHOLE and follower.final == FINAL
    assert list(follower.offsets) == list(MANIFEST.offsets)


@given(st.lists(st.tuples(st.integers(0, len(BLOCKS)), st.integers(0, len(BLOCKS)))))
def test_segments_of_several_watches_in_any_order_do_no_harm(cuts: list[tuple[int, int]]) -> None:
    """Who watches anew is told from the beginning, while answers to the older watch still come."""
    follower = Growing(RECORD, OWNER)
    for first, stop in cuts:
        known = len(follower.blocks)
        new = follower.apply(owner_at(stop).segment(min(first, stop)))
        assert new.start == known and new.stop == len(follower.blocks)
        assert_same(follower, len(follower.blocks))
    follower.apply(owner_at(len(BLOCKS)).segment(len(follower.blocks)))
    assert_same(follower, len(BLOCKS))


def test_a_segment_holds_what_one_message_may() -> None:
    record = replace(RECORD, nar_size=1 << 40)
    growing = Growing(record, OWNER)
    growing.extend([SOME] * 600, [BLOCK_BYTES_MAX] * 600)
    every = range(0, 600 * BLOCK_BYTES_MAX, 64)
    growing.rewrites = Rewrites(array("Q", every), array("I", bytes(4 * len(every))))
    follower, segments = Growing(record, OWNER), 0
    while len(follower.blocks) < 600:
        segment = growing.segment(len(follower.blocks))
        assert len(segment.blocks) <= SEGMENT_BLOCKS_MAX
        assert len(Rewrites.decode(segment.rewrites)) <= SEGMENT_REWRITES_MAX
        assert len(segment.rewrites) + 36 * len(segment.blocks) <= GROWN_BYTES_MAX
        follower.apply(segment)
        segments += 1
    assert segments > 600 / SEGMENT_BLOCKS_MAX
    assert follower.rewrites.offsets == growing.rewrites.offsets


def test_its_name_is_of_the_nar_and_its_owner() -> None:
    assert growing_id(RECORD, OWNER) == Growing(RECORD, OWNER).id
    assert growing_id(RECORD, OWNER) != growing_id(RECORD, OTHER)
    assert growing_id(replace(RECORD, references=(make_path("x", 1)[0].store_path,)), OWNER) != (
        growing_id(RECORD, OWNER)
    )


def told(
    first: int = 0, count: int = 1, state: Growth = Growth.GROWING, **changes: object
) -> Grown:
    made = Grown(growing_id(RECORD, OWNER), first, (SOME,) * count,
                 (BLOCK_BYTES_MIN,) * count, b"", state, b"")  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def rewrites(*places: tuple[int, int]) -> bytes:
    return Rewrites(
        array("Q", [at for at, _ in places]), array("I", [n for _, n in places])
    ).encode()


@pytest.mark.parametrize(
    "segment",
    [
        told(lengths=(0,)),
        told(lengths=(BLOCK_BYTES_MAX + 1,)),
        told(lengths=(BLOCK_BYTES_MIN - 1,)),
        told(count=200, lengths=(BLOCK_BYTES_MAX,) * 200),
        told(state=Growth.WHOLE),
        told(rewrites=b"\x80"),
        told(rewrites=b"\x80\x00\x00"),
        told(rewrites=rewrites((0, 1))),
        told(rewrites=rewrites((BLOCK_BYTES_MIN, 0))),
        told(rewrites=rewrites((1 << 50, 0))),
    ],
)
def test_nonsense_is_the_owners_fault(segment: Grown) -> None:
    follower = Growing(RECORD, OWNER)
    with pytest.raises(RemoteError):
        follower.apply(segment)
    assert not follower.blocks and not len(follower.rewrites)


def test_another_beginning_than_before_is_the_owners_fault() -> None:
    follower = Growing(RECORD, OWNER)
    follower.apply(owner_at(3).segment(0))
    with pytest.raises(RemoteError):
        follower.apply(told(count=5))
    assert_same(follower, 3)


def test_a_rewrite_does_not_begin_within_another() -> None:
    follower = Growing(RECORD, OWNER)
    follower.apply(told(rewrites=rewrites((BLOCK_BYTES_MIN - 1, 0))))
    with pytest.raises(RemoteError):
        follower.apply(told(first=1, rewrites=rewrites((0, 0))))


def test_all_that_is_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_module, "MANIFEST_BYTES_MAX", 300)
    follower = Growing(RECORD, OWNER)
    with pytest.raises(RemoteError):
        for first in range(20):
            follower.apply(told(first))
    assert len(follower.blocks) <= 300 / 36


@settings(max_examples=300)
@given(
    st.lists(
        st.builds(
            Grown,
            st.just(growing_id(RECORD, OWNER)),
            st.integers(0, 8),
            st.lists(st.just(SOME), max_size=4).map(tuple),
            st.lists(
                st.integers(0, (1 << 32) - 1) | st.just(BLOCK_BYTES_MIN), min_size=4, max_size=4
            ).map(tuple),
            st.binary(max_size=12),
            st.sampled_from(Growth),
            st.sampled_from([b"", bytes(32)]),
        ),
        max_size=6,
    )
)
def test_any_segments_are_taken_or_raise_remote_error(segments: list[Grown]) -> None:
    follower = Growing(RECORD, OWNER)
    for segment in segments:
        segment = replace(segment, lengths=segment.lengths[: len(segment.blocks)])
        try:
            follower.apply(segment)
        except RemoteError:
            return
        assert len(follower.blocks) == len(follower.lengths) == len(follower.offsets)
        assert len(follower.blocks) <= blocks_max(RECORD.nar_size)
        assert follower.bytes_known <= RECORD.nar_size
