"""Manifests: one byte string per value, and nothing but ManifestError for any other bytes."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunker.digest import ManifestId, NarHash, manifest_id
from chunker.errors import ManifestError
from chunker.manifest import FileMap, decode_manifest, encode_manifest, signature_text
from tests.golden.samples import lengths, sample_bytes, sample_manifest

NAME, MANIFEST = sample_manifest(sample_bytes(400_000))
ENCODED = encode_manifest(MANIFEST)


def test_round_trip_and_name() -> None:
    decoded = decode_manifest(ENCODED)
    assert decoded == MANIFEST
    assert manifest_id(ENCODED) == NAME
    assert [entry.size for entry in decoded.file_map] == [400_000]


def test_signature_text_names_path_nar_and_manifest() -> None:
    path = "/nix/store/zcq178g5vxv56lkyfabq2z4jgfvx06zg-x"
    text = signature_text(path, NarHash(bytes(32)), ManifestId(b"\1" * 32))
    assert text == f"narswarm-manifest-1;{path};sha256:{'0' * 52};{'01' * 32}".encode()


def packed(**changes: object) -> bytes:
    fields = msgpack.unpackb(ENCODED)
    names = (
        "version", "nar_hash", "nar_size", "rule", "needles", "ids", "lengths", "rewrites", "files",
    )  # fmt: skip
    for name, value in changes.items():
        fields[names.index(name)] = value
    encoded: bytes = msgpack.packb(fields, use_bin_type=True)
    return encoded


BAD = {
    "other version": packed(version=2),
    "unknown cut rule": packed(rule="fastcdc-64k"),
    "size does not add up": packed(nar_size=MANIFEST.nar_size + 1),
    "size zero": packed(nar_size=0),
    "size is true": packed(nar_size=True),
    "short NarHash": packed(nar_hash=b"x" * 31),
    "NarHash is text": packed(nar_hash="x" * 32),
    "an id too many": packed(ids=b"".join(MANIFEST.blocks) + bytes(32)),
    "an id cut": packed(ids=b"".join(MANIFEST.blocks)[:-1]),
    "lengths cut": packed(lengths=MANIFEST.lengths.tobytes()[:-1]),
    "no blocks": packed(lengths=b"", ids=b"", nar_size=1),
    "block of zero": packed(
        lengths=lengths(*MANIFEST.lengths, 0).tobytes(),
        ids=b"".join(MANIFEST.blocks) + bytes(32),
    ),
    "block above the maximum": packed(
        lengths=lengths(600_000).tobytes(), ids=bytes(32), nar_size=600_000
    ),
    "short block in the middle": packed(
        lengths=lengths(100, 40_000).tobytes(), ids=bytes(64), nar_size=40_100
    ),
    "rewrite beyond the end": packed(rewrites=b"\xff\xff\xff\x01\x00"),
    "rewrites cut": packed(rewrites=b"\x05"),
    "file map empty": packed(files=b""),
    "file map of unknown type": packed(files=b"\x09\x00\x00"),
    "file map cut": packed(files=b"\x00"),
    "file map larger than the NAR": packed(files=b"\x00\x00\x00\xff\xff\xff\x7f"),
    "file map without a root": packed(files=b"\x00\x01\x01a\x00"),
    "file map with a slash": packed(files=b"\x03\x00\x00\x00\x01\x03a/b\x00"),
    "file below a file": packed(files=b"\x00\x00\x00\x01\x00\x01\x01a\x01"),
    "bytes after it": ENCODED + b"\0",
    "cut": ENCODED[:-1],
    "a map": msgpack.packb({}),
    "empty": b"",
    "not canonical": ENCODED[:1] + b"\xcc\x01" + ENCODED[2:],
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_refuses(name: str) -> None:
    with pytest.raises(ManifestError):
        decode_manifest(BAD[name])


def test_refuses_more_than_16_mib() -> None:
    with pytest.raises(ManifestError, match="bytes"):
        decode_manifest(bytes(16 * 1024 * 1024 + 1))
    with pytest.raises(ManifestError, match="is the most"):
        encode_manifest(replace(MANIFEST, file_map=FileMap(bytes(17 * 1024 * 1024))))


@given(st.integers(0, len(ENCODED) - 1), st.integers(1, 255))
@settings(max_examples=400)
def test_a_flipped_byte_is_another_valid_manifest_or_an_error(at: int, change: int) -> None:
    data = bytearray(ENCODED)
    data[at] ^= change
    try:
        decoded = decode_manifest(bytes(data))
    except ManifestError:
        return
    assert encode_manifest(decoded) == data != ENCODED


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_garbage(data: bytes) -> None:
    with pytest.raises(ManifestError):
        decode_manifest(data)
