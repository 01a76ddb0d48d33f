"""`/<store hash>.ls`: what lies in a NAR and where, as Nix writes it (src/libutil/nar-listing.cc).

    {"root": {"entries": {"bin": {...}}, "type": "directory"}, "version": 1}
    a file: type regular, size, narOffset, executable (only where true); a link: symlink, target

Nobody signs a listing, and a manifest's file map may come from a peer: NarHash says nothing about
it. So the framing that it stands for is compared, byte for byte, with the NAR that was verified
here; a file map that does not agree is not told. A name or target that is not UTF-8 has no place in
JSON: Nix's own writer fails at it, and here is none either. Who wants it reads the NAR.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from chunker.digest import Bytes
from chunker.errors import ChunkerError, NarError
from chunker.manifest import Manifest
from chunker.nar import CLOSE, MAGIC, OPEN, Entry, Kind, string
from chunker.rebuild import check_needles, piece
from chunker.references import Rewrites, restore
from chunker.store import BlockStore

Run = tuple[int, bytes]
"""Framing at an offset of the NAR."""


class Layout:
    """One pass over a file map: the framing of its NAR, and the tree with offsets. Raises NarError
    for names that no listing can hold."""

    def __init__(self, manifest: Manifest, needles: Sequence[bytes]) -> None:
        self.runs: list[Run] = []
        self.tree: dict[str, Any] = {}
        self._rewrites: Rewrites = manifest.rewrites
        self._needles = needles
        self._offset = 0
        self._run = bytearray()
        self._put(string(MAGIC))
        open_directories: list[dict[str, Any]] = []
        for entry in manifest.file_map:
            while len(open_directories) > entry.depth:
                self._close(len(open_directories) > 1)
                open_directories.pop()
            node = self._node(entry)
            if open_directories:
                open_directories[-1]["entries"][self._name] = node
            else:
                self.tree = node
            if entry.kind is Kind.DIRECTORY:
                open_directories.append(node)
            elif entry.depth:
                self._put(CLOSE)
        for depth in range(len(open_directories), 0, -1):
            self._close(depth > 1)
        self._end_run()
        self.size = self._offset

    def _close(self, inside: bool) -> None:
        """A directory, and the entry that it is."""
        self._put(CLOSE + CLOSE if inside else CLOSE)

    def _node(self, entry: Entry) -> dict[str, Any]:
        if entry.depth:
            self._put(string(b"entry") + string(b"(") + string(b"name"))
            self._name = self._text(entry.name)
            self._put(string(b"node"))
        self._put(OPEN)
        if entry.kind is Kind.DIRECTORY:
            self._put(string(b"directory"))
            return {"type": "directory", "entries": {}}
        if entry.kind is Kind.SYMLINK:
            self._put(string(b"symlink") + string(b"target"))
            target = self._text(entry.target)
            self._put(CLOSE)
            return {"type": "symlink", "target": target}
        self._put(string(b"regular"))
        node: dict[str, Any] = {"type": "regular", "size": entry.size}
        if entry.kind is Kind.EXECUTABLE:
            node["executable"] = True
            self._put(string(b"executable") + string(b""))
        self._put(string(b"contents") + entry.size.to_bytes(8, "little"))
        node["narOffset"] = self._offset
        self._end_run()
        self._offset += entry.size
        self._put(bytes(-entry.size % 8) + CLOSE)
        return node

    def _text(self, normalised: bytes) -> str:
        """A name or target with its store hashes back; they lie behind its length."""
        data = bytes(restore(normalised, self._offset + 8, self._rewrites, self._needles))
        self._put(string(data))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise NarError(f"{data!r:.300} is not UTF-8") from error

    def _put(self, data: bytes) -> None:
        self._run += data
        self._offset += len(data)

    def _end_run(self) -> None:
        self.runs.append((self._offset - len(self._run), bytes(self._run)))
        self._run.clear()


def listing(store: BlockStore, manifest: Manifest, needles: Sequence[bytes]) -> bytes:
    """The JSON, for a manifest whose NAR was verified here and whose blocks are here. Raises
    ChunkerError: NarError where there can be none, or where the file map is not the NAR's."""
    check_needles(manifest, needles)
    layout = Layout(manifest, needles)
    if layout.size != manifest.nar_size:
        raise NarError("the file map is not that of the NAR: another size")
    _check(store, manifest, needles, layout.runs)
    told = {"version": 1, "root": layout.tree}
    text = json.dumps(told, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


def _check(
    store: BlockStore, manifest: Manifest, needles: Sequence[bytes], runs: Sequence[Run]
) -> None:
    """Reads only blocks in which framing lies."""
    for index, ours in _by_block(manifest, runs):
        start = manifest.offsets[index]
        data: Bytes = piece(manifest, needles, index, store.get(manifest.blocks[index]))
        for offset, run in ours:
            if data[offset - start : offset - start + len(run)] != run:
                raise NarError(f"the file map is not that of the NAR, near byte {offset}")


def _by_block(manifest: Manifest, runs: Sequence[Run]) -> Iterator[tuple[int, list[Run]]]:
    """Runs in order, cut at the borders of blocks."""
    first = 0
    for index, start in enumerate(manifest.offsets):
        end = start + manifest.lengths[index]
        ours: list[Run] = []
        at = first
        while at < len(runs) and runs[at][0] < end:
            offset, run = runs[at]
            cut = run[max(0, start - offset) : end - offset]
            if cut:
                ours.append((max(offset, start), cut))
            if offset + len(run) > end:
                break
            at += 1
        first = at
        if ours:
            yield index, ours


def try_listing(
    store: BlockStore, manifest: Manifest, needles: Sequence[bytes]
) -> tuple[bytes | None, str]:
    """(the JSON or None, why there is none)."""
    try:
        return listing(store, manifest, needles), ""
    except ChunkerError as error:
        return None, str(error)
