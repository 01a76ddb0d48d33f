"""What is remembered of paths, and for how long."""

from __future__ import annotations

import pytest

from gateway import memory as memory_module
from gateway.memory import ABSENT_SECONDS, Known, Memory
from gateway.narinfo import format
from gateway.signing import KeyRing
from gateway.trust import admit
from tests.gateway.test_substituter import KEY, signed_path


def known(name: str) -> Known:
    return Known(admit(signed_path(name, size=10)[0], KeyRing((KEY.public,))))


def test_what_nix_gets_is_the_narinfo() -> None:
    one = known("one")
    assert one.text == format(one.admitted.record, one.admitted.signatures)


def test_the_oldest_go_when_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    ten = [known(f"path-{number}") for number in range(10)]
    monkeypatch.setattr(memory_module, "KNOWN_BYTES_MAX", sum(one.size() for one in ten[:4]))
    memory = Memory()
    for one in ten:
        memory.learn(one)
        memory.learn(one)
    names = [one.admitted.record.store_hash for one in ten]
    assert [memory.known(name) is not None for name in names] == [False] * 6 + [True] * 4
    for name in names:
        memory.forget(name)
        assert memory.known(name) is None
    assert memory._bytes == 0


def test_absence_has_its_time_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "ABSENT_PATHS_MAX", 3)
    memory = Memory()
    for number in range(5):
        memory.learn_absent(float(number), str(number))
    assert [memory.is_absent(4.0, str(number)) for number in range(5)] == [False] * 2 + [True] * 3
    assert not memory.is_absent(2.0 + ABSENT_SECONDS, "2")
    assert memory.is_absent(2.0 + ABSENT_SECONDS, "3")
