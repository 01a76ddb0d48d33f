"""What an office cache says of paths that only its upstreams have."""

from __future__ import annotations

from pathlib import Path

import pytest

from chunker.record import PathRecord
from gateway import narinfos as narinfos_module
from gateway.narinfos import Narinfos
from gateway.offer import is_signed
from gateway.seeding import NO_MANIFEST
from gateway.signing import KeyRing
from gateway.upstream import FileCache
from tests.gateway.test_substituter import FOREIGN, KEY, Down, Undecided, signed_path, write_cache


def admits(record: PathRecord) -> bool:
    return is_signed(record, KeyRing((KEY.public,)))


async def test_the_first_that_a_trusted_key_signed_and_only_once(tmp_path: Path) -> None:
    record, nar = signed_path("path", size=10)
    foreign, _ = signed_path("path", FOREIGN, size=10)
    caches = (
        Down("down", tmp_path),
        Undecided("slow", tmp_path),
        write_cache(tmp_path / "foreign", foreign, nar),
        write_cache(tmp_path / "good", record, nar),
    )
    narinfos = Narinfos(caches, admits)
    found = await narinfos.look_up(record.store_hash)
    assert found is not None and found.signatures == record.signatures
    assert found.nar_hash == record.nar_hash and found.manifest == NO_MANIFEST
    (tmp_path / "good" / f"{record.store_hash}.narinfo").unlink()
    assert await narinfos.look_up(record.store_hash) == found


async def test_nobody_has_it_or_nobody_says_so_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narinfos_module, "LOOK_UP_SECONDS_MAX", 0.1)
    caches = (FileCache("no", tmp_path), Undecided("slow", tmp_path), Down("down", tmp_path))
    assert await Narinfos(caches, admits).look_up("0" * 32) is None
    assert await Narinfos((), admits).look_up("0" * 32) is None


async def test_what_no_trusted_key_signed_is_told_to_nobody(tmp_path: Path) -> None:
    foreign, nar = signed_path("path", FOREIGN, size=10)
    cache = write_cache(tmp_path, foreign, nar)
    assert await Narinfos((cache,), admits).look_up(foreign.store_hash) is None


async def test_what_is_remembered_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narinfos_module, "RECORDS_HELD_MAX", 3)
    paths = [signed_path(f"path-{number}", size=10) for number in range(8)]
    caches = tuple(write_cache(tmp_path, record, nar) for record, nar in paths)
    narinfos = Narinfos(caches[:1], admits)
    for record, _ in paths:
        assert await narinfos.look_up(record.store_hash) is not None
    assert len(narinfos._held) <= 3
