"""The fields of messages, read strictly: what a peer sent becomes a value, or ValueError."""

from __future__ import annotations

from typing import Any

from chunker.digest import DIGEST_BYTES, STORE_HASH_CHARS, ManifestId

from .certificates import BLOB_BYTES_MAX
from .messages import PREFIX_BYTES

BITMAP_BYTES_MAX = 1024 * 1024
TEXT_CHARS_MAX = 128


def number_of(value: Any, most: int = (1 << 53) - 1) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("not a number within its limit")
    return value


def exactly(value: Any, size: int) -> bytes:
    if type(value) is not bytes or len(value) != size:
        raise ValueError(f"not {size} bytes")
    return value


def text_of(value: Any, chars_max: int = TEXT_CHARS_MAX) -> str:
    if type(value) is not str or len(value) > chars_max or not value.isprintable():
        raise ValueError("not a short printable text")
    return value


def flag_of(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("not a boolean")
    return value


def many_of(value: Any, most: int) -> list[Any]:
    if type(value) is not list or len(value) > most:
        raise ValueError(f"not a list of at most {most}")
    return value


def manifest_of(value: Any) -> ManifestId:
    return ManifestId(exactly(value, DIGEST_BYTES))


def store_hash_of(value: Any) -> str:
    text = text_of(value)
    if len(text) != STORE_HASH_CHARS or not text.isalnum():
        raise ValueError("not a store hash")
    return text


def indexes_of(value: Any, most: int) -> tuple[int, ...]:
    return tuple(number_of(index, BITMAP_BYTES_MAX * 8 - 1) for index in many_of(value, most))


def prefixes_of(body: bytes) -> bytes:
    if len(body) % PREFIX_BYTES:
        raise ValueError("not a whole number of prefixes")
    return body


def blobs_of(value: Any, most: int) -> tuple[bytes, ...]:
    for blob in many_of(value, most):
        if type(blob) is not bytes or not 0 < len(blob) <= BLOB_BYTES_MAX:
            raise ValueError("not a signed blob within its limit")
    return tuple(value)
