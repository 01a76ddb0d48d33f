"""The path record: the signed fields of a narinfo, its signatures, and where its manifest is.

Canonical msgpack array, strict decoder: one byte string per value and one value per byte string.
Nothing here is trusted; `gateway.trust` decides that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgpack

from .digest import DIGEST_BYTES, ManifestId, NarHash
from .errors import RecordError

RECORD_VERSION = 1
RECORD_BYTES_MAX = 1024 * 1024
SIGNATURES_MAX = 16
SIGNATURE_CHARS_MAX = 512
STORE_DIRECTORY = "/nix/store"
_PATH = re.compile(r"/nix/store/[0-9abcdfghijklmnpqrsvwxyz]{32}-[0-9A-Za-z+\-._?=]{1,211}")


@dataclass(frozen=True, slots=True)
class PathRecord:
    """`references` are full store paths, sorted, distinct; signatures read `name:base64`."""

    store_path: str
    nar_hash: NarHash
    nar_size: int
    references: tuple[str, ...]
    signatures: tuple[str, ...]
    content_address: str
    """Nix's CA field, or an empty string."""
    manifest: ManifestId
    manifest_signatures: tuple[str, ...] = ()

    @property
    def store_hash(self) -> str:
        """The 32 base32 characters after /nix/store/."""
        return store_hash(self.store_path)

    @property
    def needles(self) -> tuple[bytes, ...]:
        """Sorted, distinct hash parts of the references and of the path itself, ASCII."""
        return needles_of(self.store_path, self.references)


def store_hash(store_path: str) -> str:
    return store_path[len(STORE_DIRECTORY) + 1 :][:32]


def needles_of(store_path: str, references: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(sorted({store_hash(path).encode() for path in (store_path, *references)}))


def is_store_path(text: str) -> bool:
    """A path directly in /nix/store with a legal name (src/libstore/path.cc)."""
    return _PATH.fullmatch(text) is not None


def encode_record(record: PathRecord) -> bytes:
    packed: bytes = msgpack.packb(
        [
            RECORD_VERSION,
            record.store_path,
            record.nar_hash,
            record.nar_size,
            list(record.references),
            list(record.signatures),
            record.content_address,
            record.manifest,
            list(record.manifest_signatures),
        ],
        use_bin_type=True,
    )
    return packed


def decode_record(data: bytes) -> PathRecord:
    """Raises RecordError for anything but the canonical encoding of a valid record."""
    if len(data) > RECORD_BYTES_MAX:
        raise RecordError(f"a path record of {len(data)} bytes")
    try:
        fields = msgpack.unpackb(data, raw=False, use_list=True)
    except Exception as error:
        raise RecordError(f"not msgpack: {error}") from error
    if not isinstance(fields, list) or len(fields) != 9 or fields[0] != RECORD_VERSION:
        raise RecordError("not a path record of version 1")
    record = PathRecord(
        store_path=_path(fields[1]),
        nar_hash=NarHash(_digest(fields[2])),
        nar_size=_size(fields[3]),
        references=tuple(_path(path) for path in _list(fields[4], 1_000_000)),
        signatures=tuple(_signature(text) for text in _list(fields[5], SIGNATURES_MAX)),
        content_address=_text(fields[6], SIGNATURE_CHARS_MAX),
        manifest=ManifestId(_digest(fields[7])),
        manifest_signatures=tuple(_signature(text) for text in _list(fields[8], SIGNATURES_MAX)),
    )
    if list(record.references) != sorted(set(record.references)):
        raise RecordError("references are not sorted and distinct")
    if encode_record(record) != data:
        raise RecordError("not the canonical encoding")
    return record


def _list(value: object, count_max: int) -> list[object]:
    if not isinstance(value, list) or len(value) > count_max:
        raise RecordError("a list is missing or too long")
    return value


def _text(value: object, chars_max: int) -> str:
    if not isinstance(value, str) or len(value) > chars_max or not value.isprintable():
        raise RecordError("a text field is missing, too long or not printable")
    return value


def _signature(value: object) -> str:
    text = _text(value, SIGNATURE_CHARS_MAX)
    if ":" not in text or " " in text:
        raise RecordError("a signature is not name:base64")
    return text


def _path(value: object) -> str:
    if not isinstance(value, str) or not is_store_path(value):
        raise RecordError(f"{value!r:.80} is not a store path")
    return value


def _digest(value: object) -> bytes:
    if not isinstance(value, bytes) or len(value) != DIGEST_BYTES:
        raise RecordError("a digest is not 32 bytes")
    return value


def _size(value: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 63:
        raise RecordError("NarSize is not a positive 63-bit integer")
    return value
