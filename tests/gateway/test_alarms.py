"""When two builders disagree: what is news, what is remembered, what is refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from chunker.digest import NarHash
from chunker.record import PathRecord
from gateway.alarm_bell import FILE_NAME, AlarmBell
from gateway.alarms import (
    CONFLICTS_MAX,
    CONTENTS_PER_PATH_MAX,
    PATHS_SEEN_MAX,
    Alarms,
    decode,
    encode,
)
from tests.gateway.test_content_address import one
from tests.gateway.test_policy import BUILDER, CACHE, path, sign

TRUSTED = ("cache-1", "builder-2")


def content(record: PathRecord, byte: int) -> PathRecord:
    return replace(record, nar_hash=NarHash(bytes([byte]) * 32))


def numbered(number: int) -> PathRecord:
    return replace(path(), store_path=f"/nix/store/{number:032}-x")


def test_two_keys_with_two_contents_are_a_conflict_once() -> None:
    alarms = Alarms()
    assert alarms.saw(10.5, content(path(), 1), ["a-1"]) is None
    assert alarms.saw(11.5, content(path(), 1), ["b-1"]) is None
    conflict = alarms.saw(12.5, content(path(), 2), ["c-1"])
    assert conflict is not None and conflict.since_seconds == 12
    assert "a-1 and b-1 signed sha256:" in conflict.text and "; c-1 signed" in conflict.text
    assert alarms.saw(13.5, content(path(), 2), ["c-1"]) is None
    later = alarms.saw(14.5, content(path(), 2), ["d-1"])
    assert later is not None and later.since_seconds == 12
    assert list(alarms.conflicts.values()) == [later]


def test_one_key_that_built_anew_is_no_conflict_of_two() -> None:
    alarms = Alarms()
    for byte in (1, 2, 3):
        assert alarms.saw(0, content(path(), byte), ["a-1"]) is None
    assert not alarms.conflicts


def test_who_signs_both_does_not_hide_it() -> None:
    alarms = Alarms()
    alarms.saw(0, content(path(), 1), ["honest-1"])
    assert alarms.saw(0, content(path(), 1), ["liar-1"]) is None
    assert alarms.saw(0, content(path(), 2), ["liar-1"]) is not None


def test_what_nobody_trusted_signed_and_what_is_its_content_raise_none() -> None:
    alarms = Alarms()
    alarms.saw(0, content(path(), 1), ["a-1"])
    assert alarms.saw(0, content(path(), 2), []) is None
    addressed, _ = one("fixed:sha256", "file")
    alarms.saw(0, content(addressed, 1), ["a-1"])
    assert alarms.saw(0, content(addressed, 2), ["b-1"]) is None


def test_it_is_refused_only_where_that_is_configured() -> None:
    for refuses in (False, True):
        alarms = Alarms(refuses=refuses)
        alarms.saw(0, content(path(), 1), ["a-1"])
        assert not alarms.disputed(path().store_path)
        alarms.saw(0, content(path(), 2), ["b-1"])
        assert bool(alarms.disputed(path().store_path)) is refuses
        assert not alarms.disputed(numbered(7).store_path)


def test_what_is_remembered_is_bounded() -> None:
    alarms = Alarms()
    for byte in range(CONTENTS_PER_PATH_MAX + 5):
        alarms.saw(0, content(path(), byte), [f"k-{byte}"])
    assert len(alarms.conflicts[path().store_path].contents) == CONTENTS_PER_PATH_MAX
    for number in range(CONFLICTS_MAX + 5):
        alarms.saw(0, content(numbered(number), 1), ["a-1"])
        alarms.saw(0, content(numbered(number), 2), ["b-1"])
    assert len(alarms.conflicts) == CONFLICTS_MAX
    assert numbered(CONFLICTS_MAX + 4).store_path in alarms.conflicts
    for number in range(PATHS_SEEN_MAX + 5):
        alarms.saw(0, numbered(number), ["a-1"])
    assert len(alarms._seen) == PATHS_SEEN_MAX


def test_what_is_written_down_is_read_again_for_keys_still_trusted() -> None:
    alarms = Alarms()
    alarms.saw(5, content(path(), 1), ["a-1", "b-1"])
    alarms.saw(6, content(path(), 2), ["c-1"])
    text = encode(alarms.conflicts.values())
    assert decode(text, {"a-1", "b-1", "c-1"}) == list(alarms.conflicts.values())
    (still,) = decode(text, {"a-1", "c-1"})
    assert [keys for _, keys in still.contents] == [("a-1",), ("c-1",)]
    assert decode(text, {"a-1", "b-1"}) == [] == decode("[]", {"a-1"})
    again = Alarms(decode(text, {"a-1", "c-1"}), refuses=True)
    assert again.disputed(path().store_path)
    assert again.saw(9, content(path(), 2), ["c-1"]) is None


@pytest.mark.parametrize(
    "text", ["{", "{}", "1", "[1]", "[{}]", '[{"store_path": 1, "contents": 2}]',
             '[{"store_path": "/x", "since_seconds": 1, "contents": []}]']
)  # fmt: skip
def test_a_spoiled_file_is_an_error_and_nothing_else(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text, TRUSTED)


def test_the_bell_survives_a_restart_and_a_spoiled_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def bell() -> AlarmBell:
        return AlarmBell(tmp_path, TRUSTED, lambda: 77.0, refuses=True)

    first, second = content(path(), 1), content(path(), 2)
    before = bell()
    before.saw(first, [sign(first, CACHE)])
    assert not (tmp_path / FILE_NAME).exists()
    with caplog.at_level(logging.ERROR):
        before.saw(second, [sign(second, BUILDER)])
    assert "ALARM" in caplog.text and path().store_path in caplog.text
    after = bell()
    assert after.disputed(path().store_path) and after.report() == before.report()
    (report,) = after.report()
    assert report["store_path"] == path().store_path and report["since_seconds"] == 77
    (tmp_path / FILE_NAME).write_text("[{]")
    assert bell().report() == []
    assert "passed over" in caplog.text
