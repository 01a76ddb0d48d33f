"""Listings as Nix makes them, also where names hold store hashes; and file maps that lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chunker.errors import NarError
from chunker.ingest import Ingest
from chunker.manifest import FileMapWriter, Manifest
from chunker.nar import Entry, Kind, write_tree
from chunker.store import MemoryStore
from gateway.listing import listing, try_listing

GOLDEN = Path(__file__).parents[1] / "golden"
NEEDLE = b"0123456789abcdfghijklmnpqrsvwxyz"


def ingested(nar: bytes, needles: Sequence[bytes] = ()) -> tuple[MemoryStore, Manifest]:
    store = MemoryStore()
    ingest = Ingest(store, needles)
    ingest.feed(nar)
    return store, ingest.finish_unchecked()[1]


def listed(nar: bytes, needles: Sequence[bytes] = ()) -> dict[str, object]:
    told = json.loads(listing(*ingested(nar, needles), needles))
    assert told["version"] == 1 and told.keys() == {"version", "root"}
    root: dict[str, object] = told["root"]
    return root


def tree(top: Path) -> Path:
    top.mkdir()
    (top / "bin").mkdir()
    (top / "bin" / "tool").write_bytes(b"#!" + NEEDLE + bytes(400_000))
    (top / "bin" / "tool").chmod(0o755)
    (top / "empty").write_bytes(b"")
    (top / "void").mkdir()
    (top / NEEDLE.decode()).write_bytes(b"x")
    (top / "link").symlink_to(f"/nix/store/{NEEDLE.decode()}-other/lib")
    (top / 'quote"\\ü\x7f\n').write_bytes(b"y" * 9)
    return top


def test_as_nix_lists_its_own_nar() -> None:
    """tree.ls: `nix nar ls --json --recursive tree.nar /` of Nix 2.8."""
    nar = (GOLDEN / "tree.nar").read_bytes()
    assert listed(nar) == json.loads((GOLDEN / "tree.ls").read_text())


def test_names_and_targets_have_their_hashes_back(tmp_path: Path) -> None:
    nar = b"".join(write_tree(tree(tmp_path / "top")))
    root = listed(nar, (NEEDLE,))
    assert root == listed(nar)
    entries = root["entries"]
    assert isinstance(entries, dict)
    assert entries["link"] == {
        "type": "symlink", "target": f"/nix/store/{NEEDLE.decode()}-other/lib"
    }  # fmt: skip
    tool = entries["bin"]["entries"]["tool"]
    assert tool["executable"] is True and tool["size"] == 34 + 400_000
    assert nar[tool["narOffset"] :].startswith(b"#!" + NEEDLE)
    assert entries["empty"]["size"] == 0 and "executable" not in entries["empty"]
    assert entries["void"] == {"type": "directory", "entries": {}}
    assert set(entries) > {NEEDLE.decode(), 'quote"\\ü\x7f\n'}


@pytest.mark.parametrize("name", [b"\xff", "ü".encode("latin-1")])
def test_what_json_cannot_hold_has_no_listing(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "top").mkdir()
    (Path(str(tmp_path / "top")) / name.decode("utf-8", "surrogateescape")).write_bytes(b"")
    store, manifest = ingested(b"".join(write_tree(tmp_path / "top")))
    with pytest.raises(NarError):
        listing(store, manifest, ())


@pytest.mark.parametrize("number", range(1, 9))
def test_a_file_map_that_lies_is_not_told(tmp_path: Path, number: int) -> None:
    """Each entry in turn is told otherwise: the NAR's own bytes decide."""
    store, manifest = ingested(b"".join(write_tree(tree(tmp_path / "top"))))
    entries = list(manifest.file_map)
    lies = {
        Kind.DIRECTORY: {"name": b"other"},
        Kind.REGULAR: {"kind": Kind.EXECUTABLE},
        Kind.EXECUTABLE: {"kind": Kind.REGULAR},
        Kind.SYMLINK: {"target": b"/etc/passwd"},
    }
    entry = entries[min(number, len(entries) - 1)]
    changed = replace(entry, **lies[entry.kind])  # type: ignore[arg-type]
    assert try_listing(store, _mapped(manifest, entries), ())[0] is not None
    entries[entries.index(entry)] = changed
    told, reason = try_listing(store, _mapped(manifest, entries), ())
    assert told is None and "file map" in reason


def test_a_lie_of_the_same_length_is_not_told_either(tmp_path: Path) -> None:
    store, manifest = ingested(b"".join(write_tree(tree(tmp_path / "top"))))
    entries = [
        replace(entry, name=b"tooI") if entry.name == b"tool" else entry
        for entry in manifest.file_map
    ]
    told, reason = try_listing(store, _mapped(manifest, entries), ())
    assert told is None and "file map" in reason


def _mapped(manifest: Manifest, entries: list[Entry]) -> Manifest:
    writer = FileMapWriter()
    for entry in entries:
        writer.add(entry)
    return replace(manifest, file_map=writer.finish())
