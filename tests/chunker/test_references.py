"""Normalising takes out every store hash and restoring puts them back, whatever the split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunker.references import Normaliser, Rewrites, read_varint, restore, write_varint

A, B = b"a" * 16 + b"0" * 16, b"b" * 32


def normalise(data: bytes, needles: list[bytes], step: int = 1 << 20) -> tuple[bytes, Rewrites]:
    normaliser, out = Normaliser(needles), b""
    for at in range(0, len(data), step):
        out += normaliser.feed(data[at : at + step])
    return out + normaliser.finish(), normaliser.rewrites


pieces = st.lists(st.sampled_from([A, B, A[:20], B[5:], b"x", b"/nix/store/", b"\0", b"b"]))


@given(pieces, st.integers(1, 80))
@settings(max_examples=300)
def test_restoring_gives_the_bytes_back(parts: list[bytes], step: int) -> None:
    data, needles = b"".join(parts), [A, B]
    plain, rewrites = normalise(data, needles)
    assert (plain, rewrites) == normalise(data, needles, step)
    assert len(plain) == len(data)
    assert A not in plain and B not in plain
    assert restore(plain, 0, rewrites, needles) == data


@given(pieces, st.integers(1, 50))
@settings(max_examples=200)
def test_any_piece_is_restored_by_itself(parts: list[bytes], step: int) -> None:
    data, needles = b"".join(parts), [A, B]
    plain, rewrites = normalise(data, needles)
    for at in range(0, len(data), step):
        assert restore(plain[at : at + step], at, rewrites, needles) == data[at : at + step]


def test_occurrences_are_leftmost_and_do_not_overlap() -> None:
    plain, rewrites = normalise(b"b" * 70, [A, B])
    assert list(rewrites.offsets) == [0, 32]
    assert plain == bytes(64) + b"b" * 6


def test_two_builds_that_differ_in_hashes_become_equal() -> None:
    other = b"c" * 32
    text = b"exec /nix/store/%s-tool/bin/tool \0%s\0"
    assert normalise(text % (A, A), [A])[0] == normalise(text % (other, other), [other])[0]


def test_rewrites_round_trip_and_refuse_other_encodings() -> None:
    _, rewrites = normalise(b"x" * 300 + A + b"y" + B + A, [A, B])
    encoded = rewrites.encode()
    assert Rewrites.decode(encoded) == rewrites
    for bad in (encoded[:-1], encoded + b"\x80", b"\x80\x00\x00", b"\xff" * 10):
        with pytest.raises(ValueError):
            Rewrites.decode(bad)


@given(st.integers(0, (1 << 63) - 1))
def test_varints(number: int) -> None:
    out = bytearray()
    write_varint(out, number)
    assert read_varint(bytes(out), 0) == (number, len(out))
