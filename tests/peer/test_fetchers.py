"""Whose turn it is to ask the upstream."""

from __future__ import annotations

import hashlib
from collections import Counter

from chunker.digest import NarHash
from peer.fetchers import FAILURES_KEPT_MAX, PASSED_OVER_SECONDS, Fetchers
from peer.identity import PeerId

NARS = [NarHash(hashlib.sha256(number.to_bytes(4, "big")).digest()) for number in range(4000)]
MEMBERS = [PeerId(f"member-{number}") for number in range(8)]
ALIKE = dict.fromkeys(MEMBERS, 1024)


def owners(shares: dict[PeerId, int]) -> list[PeerId]:
    fetchers = Fetchers()
    return [fetchers.rank(0.0, nar, shares)[0] for nar in NARS]


def test_all_rank_alike_in_whatever_order_they_know_each_other() -> None:
    backwards = dict(reversed(ALIKE.items()))
    one, other = Fetchers(), Fetchers()
    for nar in NARS[:200]:
        assert one.rank(0.0, nar, ALIKE) == other.rank(9.0, nar, backwards)


def test_who_leaves_moves_only_its_own_share() -> None:
    gone = MEMBERS[3]
    before, after = owners(ALIKE), owners({p: s for p, s in ALIKE.items() if p != gone})
    assert any(owner == gone for owner in before)
    for old, new in zip(before, after, strict=True):
        assert new == old if old != gone else new != gone


def test_the_next_in_rank_is_who_would_be_first_without_the_first() -> None:
    fetchers = Fetchers()
    for nar in NARS[:200]:
        first, second, *_ = fetchers.rank(0.0, nar, ALIKE)
        assert fetchers.rank(0.0, nar, {p: s for p, s in ALIKE.items() if p != first})[0] == second


def test_twice_the_share_means_twice_the_nars() -> None:
    counts = Counter(owners({**ALIKE, MEMBERS[0]: 4 * 1024}))
    others = [counts[member] for member in MEMBERS[1:]]
    assert 3.4 < counts[MEMBERS[0]] / (sum(others) / len(others)) < 4.6
    assert max(others) < 1.5 * min(others)


def test_who_has_no_share_never_fetches() -> None:
    assert MEMBERS[0] not in Fetchers().rank(0.0, NARS[0], {**ALIKE, MEMBERS[0]: 0})
    assert Fetchers().rank(0.0, NARS[0], {MEMBERS[0]: 0}) == []


def test_who_failed_comes_last_for_a_while_and_is_better_than_nobody() -> None:
    fetchers = Fetchers()
    first, *others = fetchers.rank(0.0, NARS[0], ALIKE)
    fetchers.failed(10.0, first)
    assert fetchers.rank(11.0, NARS[0], ALIKE) == [*others, first]
    assert fetchers.rank(11.0, NARS[0], {first: 1}) == [first]
    assert fetchers.rank(10.0 + PASSED_OVER_SECONDS, NARS[0], ALIKE) == [first, *others]


def test_failures_are_bounded() -> None:
    fetchers = Fetchers()
    for number in range(3 * FAILURES_KEPT_MAX):
        fetchers.failed(0.0, PeerId(f"p{number}"))
    assert len(fetchers._failed) <= FAILURES_KEPT_MAX
