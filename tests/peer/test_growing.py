"""A growing manifest, told in segments, told again, and told wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chunker.cut import BLOCK_BYTES_MIN
from chunker.digest import block_id
from peer.errors import RemoteError
from peer.growing import Growing
from peer.identity import PeerId
from peer.messages import Grown, Growth
from tests.peer.office import make_path

OWNER = PeerId("owner")
IDS = [block_id(bytes([n])) for n in range(5)]


def owned(known: int) -> Growing:
    record, _ = make_path("path", 10)
    growing = Growing(replace(record, nar_size=5 * BLOCK_BYTES_MIN), OWNER)
    extend(growing, known)
    return growing


def extend(growing: Growing, known: int) -> None:
    ids = IDS[len(growing.blocks) : known]
    for number in range(len(growing.blocks), known):
        growing.rewrites.offsets.append(number * BLOCK_BYTES_MIN + 100)
        growing.rewrites.indexes.append(0)
    growing.extend(ids, [BLOCK_BYTES_MIN] * len(ids))


def told(growing: Growing, first: int) -> Grown:
    return growing.segment(first)


def test_a_new_session_says_what_was_said_and_more() -> None:
    ours, theirs = owned(2), owned(0)
    assert theirs.apply(told(ours, 0)) == range(2)
    extend(ours, 4)
    assert theirs.apply(told(ours, 0)) == range(2, 4)
    assert theirs.blocks == IDS[:4] and list(theirs.lengths) == [BLOCK_BYTES_MIN] * 4
    assert theirs.rewrites.encode() == ours.rewrites.encode()


def test_the_end_is_heard_although_every_block_was_known() -> None:
    ours, theirs = owned(5), owned(0)
    theirs.apply(told(ours, 0))
    ours.state = Growth.WHOLE
    assert theirs.apply(told(ours, 0)) == range(5, 5)
    assert theirs.state is Growth.WHOLE
    assert theirs.apply(told(ours, 0)) == range(0)


def test_another_story_a_gap_and_more_than_all_are_refused() -> None:
    ours, theirs = owned(4), owned(2)
    lie = replace(told(ours, 0), blocks=(IDS[1], *IDS[1:4]))
    with pytest.raises(RemoteError, match="something else"):
        theirs.apply(lie)
    with pytest.raises(RemoteError, match="out of order"):
        theirs.apply(told(ours, 3))
    whole = owned(5)
    whole.state = Growth.WHOLE
    more = replace(told(whole, 4), first=5)
    with pytest.raises(RemoteError, match="after the end"):
        whole.apply(more)
    assert len(theirs.blocks) == 2
