"""Small files that were put here: found again, also after a restart, and never too many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway import shelf as shelf_module
from gateway.shelf import Shelf


async def test_what_was_put_is_there_also_after_a_restart(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    await shelf.put("log/a", b"first")
    await shelf.put("log/a", b"second")
    long = "realisations/" + "x" * 300
    await shelf.put(long, b"longer than a file name")
    for opened in (shelf, Shelf(tmp_path / "shelf")):
        assert await opened.get("log/a") == b"second"
        assert await opened.get(long) == b"longer than a file name"
        assert await opened.get("log/b") is None
    assert (tmp_path / "shelf").stat().st_mode & 0o777 == 0o700


async def test_the_oldest_go_where_it_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(tmp_path / "bytes", bytes_max=1000)
    for name in ("a", "b", "a", "c"):
        await shelf.put(name, bytes(400))
    assert [await shelf.get(name) is not None for name in "abc"] == [True, False, True]
    assert len(os.listdir(tmp_path / "bytes")) == 2
    monkeypatch.setattr(shelf_module, "FILES_MAX", 2)
    shelf = Shelf(tmp_path / "files")
    for name in "abc":
        await shelf.put(name, b"")
    assert [await shelf.get(name) is not None for name in "abc"] == [False, True, True]


async def test_a_half_written_file_is_nothing(tmp_path: Path) -> None:
    await Shelf(tmp_path).put("a", b"whole")
    (tmp_path / "unfinished").write_bytes(b"ha")
    shelf = Shelf(tmp_path)
    assert await shelf.get("a") == b"whole" and len(os.listdir(tmp_path)) == 1


async def test_a_file_that_is_gone_is_not_here(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    await shelf.put("a", b"whole")
    for name in os.listdir(tmp_path):
        os.unlink(tmp_path / name)
    assert await shelf.get("a") is None
