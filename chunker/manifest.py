"""The manifest: how to rebuild one NAR from blocks. Canonical bytes, so that its hash names it.

    msgpack [1, NarHash, NarSize, cut rule, needles digest, block ids, lengths, rewrites, file map]

Block ids are concatenated, lengths are 32-bit little-endian, rewrites as in `references`; the file
map is one run of (kind u8, depth, name, size or target) with varints, in NAR order, of the
normalised NAR. About 40 bytes a block. The needle list is not in it: who rebuilds knows the
references from the path record, and the digest catches a disagreement. Honest peers derive the
same manifest from the same path; that is what makes a lie visible.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import msgpack

from .cut import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, CUT_RULE
from .digest import DIGEST_BYTES, BlockId, ManifestId, NarHash, nix32_encode
from .errors import ManifestError
from .nar import DEPTH_MAX, NAME_BYTES_MAX, TARGET_BYTES_MAX, Entry, Kind
from .references import NEEDLE_BYTES, Rewrites, read_varint, write_varint

MANIFEST_VERSION = 1
MANIFEST_BYTES_MAX = 16 * 1024 * 1024


class FileMap:
    """The objects of a NAR in NAR order, kept encoded: iterate to get `Entry`."""

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded

    def __iter__(self) -> Iterator[Entry]:
        at = 0
        while at < len(self.encoded):
            entry, at = _read_entry(self.encoded, at)
            yield entry

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileMap) and self.encoded == other.encoded

    def __hash__(self) -> int:
        return hash(self.encoded)


class FileMapWriter:
    def __init__(self) -> None:
        self._out = bytearray()

    def add(self, entry: Entry) -> None:
        self._out.append(entry.kind)
        write_varint(self._out, entry.depth)
        write_varint(self._out, len(entry.name))
        self._out += entry.name
        if entry.kind is Kind.SYMLINK:
            write_varint(self._out, len(entry.target))
            self._out += entry.target
        elif entry.kind is not Kind.DIRECTORY:
            write_varint(self._out, entry.size)

    def finish(self) -> FileMap:
        return FileMap(bytes(self._out))


@dataclass(frozen=True)
class Manifest:
    """`lengths` in bytes, one for each of `blocks`; they add up to `nar_size`."""

    nar_hash: NarHash
    nar_size: int
    cut_rule: str
    needles_digest: bytes
    blocks: tuple[BlockId, ...]
    lengths: array[int]
    rewrites: Rewrites
    file_map: FileMap

    @cached_property
    def offsets(self) -> list[int]:
        """Where each block starts in the NAR, in bytes."""
        return [0, *accumulate(self.lengths)][:-1]


def signature_text(store_path: str, nar_hash: NarHash, manifest: ManifestId) -> bytes:
    """What a manifest signature covers (ed25519 with Nix's own key format)."""
    text = f"narswarm-manifest-1;{store_path};sha256:{nix32_encode(nar_hash)};{manifest.hex()}"
    return text.encode()


def encode_manifest(manifest: Manifest) -> bytes:
    """Raises ManifestError where it would exceed 16 MiB."""
    encoded: bytes = msgpack.packb(
        [
            MANIFEST_VERSION,
            manifest.nar_hash,
            manifest.nar_size,
            manifest.cut_rule,
            manifest.needles_digest,
            b"".join(manifest.blocks),
            _little_endian(manifest.lengths).tobytes(),
            manifest.rewrites.encode(),
            manifest.file_map.encoded,
        ],
        use_bin_type=True,
    )
    if len(encoded) > MANIFEST_BYTES_MAX:
        raise ManifestError(f"a manifest of {len(encoded)} bytes; {MANIFEST_BYTES_MAX} is the most")
    return encoded


def decode_manifest(data: bytes) -> Manifest:
    """Raises ManifestError, and nothing else, for all but the canonical bytes of a valid one."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise ManifestError(f"a manifest of {len(data)} bytes")
    try:
        fields = msgpack.unpackb(data, raw=False)
    except Exception as error:  # msgpack raises a dozen types; all mean the same here
        raise ManifestError(f"not msgpack: {error}") from error
    if not isinstance(fields, list) or len(fields) != 9 or fields[0] != MANIFEST_VERSION:
        raise ManifestError("not a manifest of version 1")
    _, nar_hash, nar_size, rule, needles, ids, lengths, rewrites, files = fields
    if type(nar_size) is not int or not 0 < nar_size < 1 << 62:
        raise ManifestError("NarSize is not a positive number")
    if rule != CUT_RULE:
        raise ManifestError(f"the cut rule {rule!r:.60} is not known here; update narswarm")
    for digest in (nar_hash, needles):
        if type(digest) is not bytes or len(digest) != DIGEST_BYTES:
            raise ManifestError("a digest is not 32 bytes")
    if not all(type(value) is bytes for value in (ids, lengths, rewrites, files)):
        raise ManifestError("a packed field is not bytes")
    sizes = _lengths(lengths, nar_size)
    if len(ids) != DIGEST_BYTES * len(sizes):
        raise ManifestError("not one id for each length")
    blocks = tuple(BlockId(ids[at : at + DIGEST_BYTES]) for at in range(0, len(ids), DIGEST_BYTES))
    try:
        manifest = Manifest(
            NarHash(nar_hash), nar_size, rule, needles, blocks, sizes,
            Rewrites.decode(rewrites), _file_map(files, nar_size),
        )  # fmt: skip
    except ValueError as error:
        raise ManifestError(str(error)) from error
    offsets = manifest.rewrites.offsets
    if len(offsets) and offsets[-1] + NEEDLE_BYTES > nar_size:
        raise ManifestError("a rewrite beyond the end of the NAR")
    if encode_manifest(manifest) != data:
        raise ManifestError("not the canonical encoding")
    return manifest


def _lengths(data: bytes, nar_size: int) -> array[int]:
    if len(data) % 4:
        raise ManifestError("block lengths are cut")
    sizes = array("I")
    sizes.frombytes(data)
    sizes = _little_endian(sizes)
    if not sizes or max(sizes) > BLOCK_BYTES_MAX or min(sizes) == 0:
        raise ManifestError("a block length outside the cut rule")
    if len(sizes) > 1 and min(sizes[:-1]) < BLOCK_BYTES_MIN:
        raise ManifestError("a block shorter than the cut rule allows")
    if sum(sizes) != nar_size:
        raise ManifestError("the block lengths do not add up to NarSize")
    return sizes


def _little_endian(values: array[int]) -> array[int]:
    if sys.byteorder == "big":
        values = array("I", values)
        values.byteswap()
    return values


def _file_map(data: bytes, nar_size: int) -> FileMap:
    depth, directory, bytes_left = -1, True, nar_size
    file_map = FileMap(data)
    for entry in file_map:
        deepest = depth + 1 if directory else depth
        if entry.depth > min(deepest, DEPTH_MAX) or (entry.depth == 0) != (depth == -1):
            raise ValueError("a file map that is no tree")
        if (entry.depth == 0) != (entry.name == b"") or b"/" in entry.name:
            raise ValueError("a file map with an illegal name")
        bytes_left -= entry.size
        if bytes_left < 0:
            raise ValueError("a file map with more bytes than the NAR")
        depth, directory = entry.depth, entry.kind is Kind.DIRECTORY
    if depth == -1:
        raise ValueError("an empty file map")
    return file_map


def _read_entry(data: bytes, at: int) -> tuple[Entry, int]:
    if data[at] > Kind.DIRECTORY:
        raise ValueError("a file map with an unknown type")
    kind = Kind(data[at])
    depth, at = read_varint(data, at + 1)
    name, at = _read_bytes(data, at, NAME_BYTES_MAX)
    if kind is Kind.SYMLINK:
        target, at = _read_bytes(data, at, TARGET_BYTES_MAX)
        return Entry(depth, name, kind, 0, target), at
    if kind is Kind.DIRECTORY:
        return Entry(depth, name, kind), at
    size, at = read_varint(data, at)
    return Entry(depth, name, kind, size), at


def _read_bytes(data: bytes, at: int, most: int) -> tuple[bytes, int]:
    size, at = read_varint(data, at)
    if size > most or at + size > len(data):
        raise ValueError("a file map with a name that is too long or cut")
    return data[at : at + size], at + size
