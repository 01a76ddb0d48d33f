"""Frames: any split gives the same messages; foreign bytes give WireError and nothing else."""

from __future__ import annotations

import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunker.block import Codec, Encoded
from chunker.digest import BlockId, ManifestId
from peer.errors import WireError
from peer.messages import (
    Cancel,
    Find,
    Found,
    GetManifest,
    GetSummary,
    Grown,
    Growth,
    Have,
    HaveMore,
    Hello,
    ManifestPart,
    Message,
    Please,
    Refuse,
    Revoked,
    Sent,
    Show,
    SummaryDelta,
    SummaryPart,
    Urgency,
    Want,
    Watch,
)
from peer.wire import _READERS, HEADER_BYTES_MAX, Decoder, encode

M = ManifestId(b"m" * 32)
MESSAGES: list[Message] = [
    Hello(1, "seed", b"s" * 32, "narswarm/0.1", (b"t" * 16,) * 8),
    Show((b"certificate", b"c" * 1024), ("/ip4/10.0.0.1/tcp/4555/p2p/x",)),
    Show((), ()),
    Revoked((b"revocation",) * 128),
    Find(1, (b"a" * 32, b"b" * 32)),
    Found(1, 2, ((0, b"record"), (1, b"another"))),
    Found(2, 1, ()),
    Please(3, "zcq178g5vxv56lkyfabq2z4jgfvx06zg"),
    GetManifest(4, M, 0),
    ManifestPart(4, 10, b"0123456789"),
    Watch(5, M),
    Have(M, True, b"\xff\x01"),
    HaveMore(M, (1, 2, 700)),
    Want(6, M, (0, 5, 63)),
    Sent(6, 5, Encoded(Codec.ZSTD, 9, b"payload")),
    Want(6, M, (1,), Urgency.SPARE),
    Cancel(6),
    Cancel(6, (5, 63)),
    Grown(M, 4, (BlockId(b"b" * 32),) * 2, (40_000, 9), b"\x20\x00", Growth.WHOLE, b"f" * 32),
    Grown(M, 6, (), (), b"", Growth.FAILED, b""),
    Please(8, "zcq178g5vxv56lkyfabq2z4jgfvx06zg", b"record"),
    Refuse(6, "not-here", (5,)),
    GetSummary(7),
    SummaryPart(7, 0, True, b"a" * 8 + b"b" * 8),
    SummaryDelta(7, 1, b"c" * 8, b"a" * 8),
]
STREAM = b"".join(map(encode, MESSAGES))


def read(data: bytes) -> list[Message]:
    return list(Decoder().feed(data))


def frame(kind: int, header: object, body: bytes = b"") -> bytes:
    packed = header if isinstance(header, bytes) else msgpack.packb(header)
    return struct.pack("!II", kind << 24 | len(packed), len(body)) + packed + body


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Message) -> None:
    assert read(encode(message)) == [message]


@pytest.mark.parametrize("step", [1, 2, 5, 13, 100, 10_000])
def test_any_split(step: int) -> None:
    decoder, found = Decoder(), []
    for at in range(0, len(STREAM), step):
        found += decoder.feed(STREAM[at : at + step])
    assert found == MESSAGES


BAD = {
    "unknown type": frame(99, [1]),
    "header too long": struct.pack("!II", 1 << 24 | (HEADER_BYTES_MAX + 1), 0),
    "half a prefix": frame(21, [1, 0, True], b"1234567"),
    "half an added prefix": frame(22, [1, 0, 4], b"12345678"),
    "more added than is there": frame(22, [1, 0, 16], b"12345678"),
    "body where none may be": frame(12, [1], b"x"),
    "block of 513 KiB": struct.pack("!II", 11 << 24 | 5, 513 * 1024),
    "4 GiB of records": struct.pack("!II", 3 << 24 | 5, 0xFFFFFFFF),
    "header is a map": frame(12, {1: 2}),
    "header is a number": frame(12, 7),
    "header is not msgpack": frame(12, b"\xc1\xc1"),
    "header cut": frame(12, b"\x92\x01"),
    "too few fields": frame(10, [1]),
    "too many fields": frame(12, [1, 2]),
    "negative number": frame(12, [-1]),
    "number of 64 bits": frame(12, [1 << 60]),
    "true is not a number": frame(12, [True]),
    "short manifest id": frame(7, [1, b"x" * 31]),
    "257 questions": frame(2, [1, [b"q" * 32] * 257]),
    "a short question": frame(2, [1, [b"q" * 31]]),
    "65 wants": frame(10, [1, b"m" * 32, list(range(65))]),
    "4097 haves": frame(9, [b"m" * 32, list(range(4097))]),
    "store hash with a slash": frame(4, [1, "../../../../../../../etc/passwd0"]),
    "short salt": frame(1, [1, "seed", b"s" * 31, "x", []]),
    "nine tags": frame(1, [1, "seed", b"s" * 32, "x", [b"t" * 16] * 9]),
    "a short tag": frame(1, [1, "seed", b"s" * 32, "x", [b"t" * 15]]),
    "nine certificates": frame(24, [[b"c"] * 9, []]),
    "a certificate of 1025 bytes": frame(24, [[b"c" * 1025], []]),
    "an empty certificate": frame(24, [[b""], []]),
    "nine addresses": frame(24, [[], ["a"] * 9]),
    "129 revocations": frame(25, [[b"r"] * 129]),
    "a revocation that is text": frame(25, [["r"]]),
    "unknown codec": frame(11, [1, 0, 7, 5], b"12345"),
    "records do not fill the body": frame(3, [1, 1, [[0, 4]]], b"12345"),
    "records beyond the body": frame(3, [1, 1, [[0, 9]]], b"12345"),
    "text with control characters": frame(13, [1, "\x1b[2J", []]),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_refuses(name: str) -> None:
    with pytest.raises(WireError):
        read(BAD[name])


def test_nested_headers_cost_no_memory() -> None:
    """A msgpack bomb: 64 KiB of nested arrays; its like at 256 KiB cost 33 MB."""
    bomb = frame(12, b"\x91" * (HEADER_BYTES_MAX - 1) + b"\x01")
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            read(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@given(st.integers(0, len(STREAM) - 1), st.integers(1, 255))
@settings(max_examples=500)
def test_a_flipped_byte_gives_messages_or_its_own_error(at: int, change: int) -> None:
    data = bytearray(STREAM)
    data[at] ^= change
    try:
        read(bytes(data))
    except WireError:
        pass


@given(st.sampled_from(sorted(_READERS)), st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1 << 33) | st.binary(max_size=40)
    | st.text(max_size=8), lambda inner: st.lists(inner, max_size=6), max_leaves=12,
), st.binary(max_size=50))  # fmt: skip
@settings(max_examples=500)
def test_any_header_gives_a_message_or_its_own_error(
    kind: int, header: object, body: bytes
) -> None:
    try:
        read(frame(kind, header, body))
    except WireError:
        pass
