"""What one served peer may ask for, and in which order it gets it."""

from __future__ import annotations

from chunker.digest import ManifestId
from peer.messages import Cancel, Refuse, Want
from peer.serving import QUEUED_WANTS_MAX, Due, Serving

M = ManifestId(b"m" * 32)


LENGTHS = (100, 200, 300, 400)


def test_in_order_and_once() -> None:
    serving = Serving()
    assert serving.want(Want(1, M, (3, 1)), True, LENGTHS) == []
    assert serving.want(Want(2, M, (0,)), True, LENGTHS) == []
    assert [serving.next_blocks(1) for _ in range(4)] == [
        [Due(1, M, 3, 400)], [Due(1, M, 1, 200)], [Due(2, M, 0, 100)], [],
    ]  # fmt: skip


def test_several_at_once_within_the_bytes_allowed() -> None:
    serving = Serving()
    serving.want(Want(1, M, (0, 1, 2, 3)), True, LENGTHS)
    assert [due.index for due in serving.next_blocks(300)] == [0, 1]
    assert [due.index for due in serving.next_blocks(699)] == [2]
    assert [due.index for due in serving.next_blocks(0)] == [3]


def test_what_may_not_be_seen_or_is_not_there_is_refused_alike() -> None:
    serving = Serving()
    refusal = [Refuse(1, "not-here", ())]
    assert serving.want(Want(1, M, (3,)), False, LENGTHS) == refusal
    assert serving.want(Want(1, M, (10,)), True, LENGTHS) == refusal
    assert len(serving) == 0


def test_a_flood_is_refused_instead_of_queued() -> None:
    serving, refused = Serving(), 0
    for request in range(100):
        refused += len(serving.want(Want(request, M, tuple(range(64))), True, (1,) * 64))
    assert len(serving) <= QUEUED_WANTS_MAX
    assert refused == 100 - QUEUED_WANTS_MAX // 64


def test_cancel_takes_only_its_own() -> None:
    serving = Serving()
    serving.want(Want(1, M, (1, 2)), True, LENGTHS)
    serving.want(Want(2, M, (3,)), True, LENGTHS)
    serving.cancel(Cancel(1))
    assert serving.next_blocks(1) == [Due(2, M, 3, 400)]
    serving.cancel(Cancel(99))
    assert serving.next_blocks(1) == []
