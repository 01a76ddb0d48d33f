"""One path and what its sources say of it, without any of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from chunker.record import SIGNATURES_MAX, PathRecord
from gateway.lookup import Search, admitted_by
from gateway.narinfo import fingerprint
from gateway.signing import KeyRing, SecretKey
from gateway.trust import Admitted
from tests.gateway.test_substituter import FOREIGN, KEY, signed_path

SECOND = SecretKey("second-1", b"s" * 32)
RING = KeyRing((KEY.public,))
RECORD, _ = signed_path("path", size=10)


def signed(*keys: SecretKey, record: PathRecord = RECORD) -> PathRecord:
    text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    return replace(record, signatures=tuple(key.sign(text) for key in keys))


def admits(record: PathRecord, sources: frozenset[str]) -> Admitted | None:
    return admitted_by(record, [RING])


def two_of_two(record: PathRecord, sources: frozenset[str]) -> Admitted | None:
    admitted = admitted_by(record, [KeyRing((KEY.public, SECOND.public))])
    return admitted if admitted is not None and len(admitted.signatures) == 2 else None


def asked(*sources: str, admits_by: object = admits) -> Search:
    search = Search(RECORD.store_hash, admits_by)  # type: ignore[arg-type]
    for source in sources:
        search.ask(source)
    return search


def test_a_fast_answer_that_nobody_trusted_signed_never_wins() -> None:
    search = asked("fast", "good")
    assert not search.said("fast", signed(FOREIGN))
    search.done("fast")
    assert search.found is None and not search.is_settled
    assert search.said("good", signed(KEY))
    assert search.is_settled and not search.is_over
    assert search.found is not None and search.found.signatures == signed(KEY).signatures


@pytest.mark.parametrize("order", list(permutations((KEY, SECOND, FOREIGN))))
def test_signatures_of_one_content_are_united_whoever_comes_first(
    order: tuple[SecretKey, ...],
) -> None:
    search = asked("a", "b", "c", admits_by=two_of_two)
    for source, key in zip("abc", order, strict=True):
        search.said(source, signed(key))
        search.done(source)
    assert search.found is not None
    assert set(search.found.signatures) == set(signed(KEY, SECOND).signatures)


def test_signatures_of_another_content_are_not() -> None:
    other = signed(SECOND, record=replace(RECORD, nar_size=RECORD.nar_size + 1))
    search = asked("a", "b", admits_by=two_of_two)
    assert not search.said("a", signed(KEY)) and not search.said("b", other)
    search.done("a")
    search.done("b")
    assert search.is_absent and len(search.refused()) == 2


def test_trusted_builders_that_differ_are_told_apart() -> None:
    other = signed(KEY, record=replace(RECORD, nar_size=RECORD.nar_size + 1))
    search = asked("a", "b")
    assert search.said("a", signed(KEY)) and not search.said("b", other)
    assert search.found is not None and search.found.record.nar_size == RECORD.nar_size
    assert [rival.record.nar_size for rival in search.rivals()] == [other.nar_size]


def test_junk_signatures_do_not_push_the_trusted_one_out() -> None:
    text = fingerprint(
        RECORD.store_path, RECORD.nar_hash, RECORD.nar_size, RECORD.references
    )  # fmt: skip
    junk = tuple(SecretKey(f"junk-{n}", b"j" * 32).sign(text) for n in range(SIGNATURES_MAX))
    search = asked("evil", "good")
    search.said("evil", replace(RECORD, signatures=junk))
    assert search.said("good", signed(KEY))
    assert search.found is not None
    assert search.found.signatures == signed(KEY).signatures
    assert len(search.found.record.signatures) == SIGNATURES_MAX


def test_a_wrong_content_address_hides_no_right_one() -> None:
    def by_address(record: PathRecord, sources: frozenset[str]) -> Admitted | None:
        return admits(record, sources) if record.content_address == "right" else None

    search = asked("evil", "good", admits_by=by_address)
    assert not search.said("evil", replace(signed(KEY), content_address="wrong"))
    assert search.said("good", replace(signed(KEY), content_address="right"))
    assert search.found is not None and search.found.record.content_address == "right"


def test_keys_of_an_upstream_count_for_what_it_says() -> None:
    def with_own(record: PathRecord, sources: frozenset[str]) -> Admitted | None:
        own = [KeyRing((FOREIGN.public,))] if "project" in sources else []
        return admitted_by(record, [RING, *own])

    search = asked("other", "project", admits_by=with_own)
    assert not search.said("other", signed(FOREIGN))
    assert search.said("project", signed(FOREIGN))


@pytest.mark.parametrize(
    ("answers", "absent"),
    [("nn", True), ("nu", True), ("nf", False), ("ff", False), ("n", False)],
)
def test_absent_is_what_all_said(answers: str, absent: bool) -> None:
    """n: no; u: what nobody trusted signed; f: failed. One source has not said anything."""
    search = asked("0", "1")
    for source, answer in enumerate(answers):
        if answer == "u":
            search.said(str(source), signed(FOREIGN))
        search.done(str(source), failed=answer == "f")
    assert search.is_absent is absent
    assert search.is_settled is search.is_over is (len(answers) == 2)


def test_who_is_not_awaited_may_still_come_in_time() -> None:
    search = asked("no")
    search.ask("trial", awaited=False)
    search.done("no")
    assert search.is_settled and not search.is_over and not search.is_absent
    assert search.said("trial", signed(KEY))
    search.done("trial")
    assert search.is_over and search.found is not None
