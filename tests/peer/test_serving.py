"""What one served peer may ask for, and in which order it gets it."""

from __future__ import annotations

from chunker.digest import ManifestId
from peer.messages import Cancel, Refuse, Want
from peer.serving import QUEUED_WANTS_MAX, Due, Serving

M = ManifestId(b"m" * 32)


def test_in_order_and_once() -> None:
    serving = Serving()
    assert serving.want(Want(1, M, (3, 1)), True, 10) == []
    assert serving.want(Want(2, M, (0,)), True, 10) == []
    assert [serving.next_block() for _ in range(4)] == [
        Due(1, M, 3), Due(1, M, 1), Due(2, M, 0), None,
    ]  # fmt: skip


def test_what_may_not_be_seen_or_is_not_there_is_refused_alike() -> None:
    serving = Serving()
    refusal = [Refuse(1, "not-here", ())]
    assert serving.want(Want(1, M, (3,)), False, 10) == refusal
    assert serving.want(Want(1, M, (10,)), True, 10) == refusal
    assert len(serving) == 0


def test_a_flood_is_refused_instead_of_queued() -> None:
    serving, refused = Serving(), 0
    for request in range(100):
        refused += len(serving.want(Want(request, M, tuple(range(64))), True, 64))
    assert len(serving) <= QUEUED_WANTS_MAX
    assert refused == 100 - QUEUED_WANTS_MAX // 64


def test_cancel_takes_only_its_own() -> None:
    serving = Serving()
    serving.want(Want(1, M, (1, 2)), True, 10)
    serving.want(Want(2, M, (3,)), True, 10)
    serving.cancel(Cancel(1))
    assert serving.next_block() == Due(2, M, 3)
    serving.cancel(Cancel(99))
    assert serving.next_block() is None
