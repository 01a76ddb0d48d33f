"""Path records: canonical bytes, strict decoder."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunker.digest import ManifestId, NarHash
from chunker.errors import RecordError
from chunker.record import PathRecord, decode_record, encode_record, is_store_path

NAME = "zcq178g5vxv56lkyfabq2z4jgfvx06zg-root"
RECORD = PathRecord(
    f"/nix/store/{NAME}",
    NarHash(b"h" * 32),
    1234,
    ("/nix/store/0rqy849vwr418yra085l8qlnpnl6859m-x", f"/nix/store/{NAME}"),
    ("key-1:AAAA",),
    "",
    ManifestId(b"m" * 32),
    ("key-1:BBBB",),
)


def test_round_trip_and_needles() -> None:
    assert decode_record(encode_record(RECORD)) == RECORD
    assert RECORD.needles == (
        b"0rqy849vwr418yra085l8qlnpnl6859m", b"zcq178g5vxv56lkyfabq2z4jgfvx06zg",
    )  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        "/nix/store/zcq178g5vxv56lkyfabq2z4jgfvx06zg-",
        "/nix/store/zcq178g5vxv56lkyfabq2z4jgfvx06zg",
        "/nix/store/ecq178g5vxv56lkyfabq2z4jgfvx06zg-e-is-no-digit",
        "/nix/store/../etc/passwd",
        "/nix/store/zcq178g5vxv56lkyfabq2z4jgfvx06zg-a/b",
        "/nix/store/zcq178g5vxv56lkyfabq2z4jgfvx06zg-a b",
        "/gnu/store/zcq178g5vxv56lkyfabq2z4jgfvx06zg-a",
        "/nix/store/zcq178g5vxv56lkyfabq2z4jgfvx06zg-" + "n" * 212,
    ],
)
def test_is_not_a_store_path(path: str) -> None:
    assert not is_store_path(path)
    with pytest.raises(RecordError):
        decode_record(encode_record(replace(RECORD, store_path=path)))


@pytest.mark.parametrize(
    "bad",
    [
        replace(RECORD, nar_size=0),
        replace(RECORD, nar_size=-1),
        replace(RECORD, nar_hash=NarHash(b"x" * 31)),
        replace(RECORD, references=RECORD.references[::-1]),
        replace(RECORD, references=RECORD.references[:1] * 2),
        replace(RECORD, signatures=("no colon",)),
        replace(RECORD, signatures=("a:b",) * 17),
        replace(RECORD, signatures=("a:" + "b" * 600,)),
        replace(RECORD, signatures=("a:b\nStorePath: x",)),
        replace(RECORD, content_address="x\ny"),
    ],
)
def test_refuses(bad: PathRecord) -> None:
    with pytest.raises(RecordError):
        decode_record(encode_record(bad))


def test_refuses_other_encodings() -> None:
    encoded = encode_record(RECORD)
    fields = msgpack.unpackb(encoded)
    for bad in (encoded + b"\0", encoded[:-1], b"", msgpack.packb(fields[:-1]), bytes(2 << 20)):
        with pytest.raises(RecordError):
            decode_record(bad)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_garbage(data: bytes) -> None:
    with pytest.raises(RecordError):
        decode_record(data)
