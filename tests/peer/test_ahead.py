"""Records that came before they were asked for: once, for a while, and no more than a share."""

from __future__ import annotations

from dataclasses import replace

from peer.ahead import KEEP_SECONDS, OFFERS_BYTES_MAX, PATHS_MAX, PATHS_PER_PEER_MAX, Ahead
from peer.identity import PeerId
from peer.messages import FIND_HASHES_MAX
from tests.peer.office import make_path

A, B = PeerId("a"), PeerId("b")
RECORD = make_path("path", 1)[0]
NAME = RECORD.store_hash


def test_an_offer_waits_for_its_question_and_expires() -> None:
    ahead = Ahead()
    assert ahead.wants(0, A, [NAME]) == [NAME]
    assert ahead.offer(1, NAME) is None
    ahead.got(A, RECORD)
    assert ahead.offer(KEEP_SECONDS - 1, NAME) == (A, RECORD)
    assert ahead.offer(KEEP_SECONDS, NAME) is None


def test_a_path_is_asked_for_once_in_a_while_and_of_one_peer() -> None:
    ahead = Ahead()
    assert ahead.wants(0, A, [NAME, "other", NAME]) == [NAME, "other"]
    assert ahead.wants(1, A, [NAME]) == []
    assert ahead.wants(1, B, [NAME, "third"]) == ["third"]
    assert ahead.wants(KEEP_SECONDS, B, [NAME]) == [NAME]


def test_only_what_was_asked_of_a_peer_is_taken_from_it() -> None:
    ahead = Ahead()
    ahead.got(A, RECORD)
    assert ahead.wants(0, A, [NAME]) == [NAME]
    ahead.got(B, RECORD)
    assert ahead.offer(1, NAME) is None


def test_no_peer_takes_more_than_its_share() -> None:
    ahead = Ahead()
    names = [f"{number:032}" for number in range(2 * PATHS_MAX)]
    assert len(ahead.wants(0, A, names)) == FIND_HASHES_MAX
    for _ in range(PATHS_MAX):
        ahead.wants(0, A, names)
    assert ahead._per_peer[A] == PATHS_PER_PEER_MAX
    for number in range(10 * PATHS_MAX // FIND_HASHES_MAX):
        ahead.wants(0, PeerId(f"other-{number % 10}"), reversed(names))
    assert len(ahead._paths) == PATHS_MAX
    assert len(ahead.wants(KEEP_SECONDS, A, names)) == FIND_HASHES_MAX
    assert ahead._per_peer == {A: FIND_HASHES_MAX}


def test_large_records_are_bounded_by_their_bytes() -> None:
    ahead = Ahead()
    reference = RECORD.store_path
    kept = 0
    for number in range(200):
        record = make_path(f"large-{number}", 1)[0]
        record = replace(record, references=(reference,) * 10_000)
        ahead.wants(0, A, [record.store_hash])
        ahead.got(A, record)
        kept += ahead.offer(1, record.store_hash) is not None
    assert 0 < kept * 10_000 * len(reference) <= OFFERS_BYTES_MAX
    assert ahead._bytes <= OFFERS_BYTES_MAX
    ahead.offer(KEEP_SECONDS, NAME)
    assert ahead._bytes == 0
