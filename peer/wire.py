"""Frames: feed bytes, get messages.

    u8 type | u24 header length | u32 body length | header (msgpack array) | body (raw)

The header is at most 64 KiB because nested msgpack is dear to decode (256 KiB cost 33 MB); records,
manifests, bitmaps and blocks travel raw in the body, whose limit depends on the type and is checked
before a byte of it is buffered. `Decoder.feed` takes any split; it raises WireError and nothing
else, and a decoder that raised is finished.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

from chunker.block import BLOCK_BYTES_MAX, Codec, Encoded
from chunker.digest import DIGEST_BYTES, STORE_HASH_CHARS, BlockId, Bytes, ManifestId

from .errors import WireError
from .messages import (
    DELTA_PREFIXES_MAX,
    FIND_HASHES_MAX,
    PREFIX_BYTES,
    SALT_BYTES,
    SEGMENT_BLOCKS_MAX,
    SUMMARY_PART_PREFIXES_MAX,
    WANT_INDEXES_MAX,
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
    Sent,
    SummaryDelta,
    SummaryPart,
    Urgency,
    Want,
    Watch,
)

HEADER_BYTES_MAX = 64 * 1024
FOUND_BYTES_MAX = 4 * 1024 * 1024
MANIFEST_PART_BYTES_MAX = 256 * 1024
MANIFEST_BYTES_MAX = 16 * 1024 * 1024
BITMAP_BYTES_MAX = 1024 * 1024
GROWN_BYTES_MAX = 512 * 1024
PLEASE_BYTES_MAX = 1024 * 1024
FETCHES_MAX = 1 << 30
TEXT_CHARS_MAX = 128
HAVE_INDEXES_MAX = 4096
SMALL_BYTES = 4096
_HEAD = struct.Struct("!II")

_BODY_BYTES_MAX = {
    3: FOUND_BYTES_MAX,
    4: PLEASE_BYTES_MAX,
    6: MANIFEST_PART_BYTES_MAX,
    8: BITMAP_BYTES_MAX,
    11: BLOCK_BYTES_MAX,
    14: GROWN_BYTES_MAX,
    21: SUMMARY_PART_PREFIXES_MAX * PREFIX_BYTES,
    22: DELTA_PREFIXES_MAX * PREFIX_BYTES,
}


def encode(message: Message) -> bytes:
    """One frame. The caller keeps counts within the limits of `messages`."""
    return b"".join(pieces(message))


def pieces(message: Message) -> tuple[bytes, Bytes]:
    """The frame in two: everything but the body, and the body as it is, uncopied."""
    kind, header, body = _split(message)
    packed = msgpack.packb(header, use_bin_type=True)
    assert len(packed) <= HEADER_BYTES_MAX
    assert len(body) <= _BODY_BYTES_MAX.get(kind, 0)
    return _HEAD.pack(kind << 24 | len(packed), len(body)) + packed, body


class Decoder:
    """Frames in, messages out."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._kind = 0
        self._header_end = 0
        self._left = 0
        self._body: list[memoryview | bytearray] = []

    def feed(self, data: bytes | memoryview) -> Iterator[Message]:
        """Yield every message completed by `data`. Raises WireError."""
        view, at = memoryview(data), 0
        while at < len(view) or self._is_whole():
            if self._is_whole():
                header = bytes(self._head[_HEAD.size :])
                body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
                self._head.clear()
                self._body.clear()
                self._header_end = 0
                yield _join(self._kind, header, bytes(body))
            elif self._header_end and len(self._head) == self._header_end:
                part = view[at : at + self._left]
                self._add(part)
                self._left -= len(part)
                at += len(part)
            else:
                part = view[at : at + (self._header_end or _HEAD.size) - len(self._head)]
                self._head += part
                at += len(part)
                if len(self._head) == _HEAD.size:
                    self._start()

    def _is_whole(self) -> bool:
        return 0 < self._header_end == len(self._head) and not self._left

    def _start(self) -> None:
        word, self._left = _HEAD.unpack(self._head)
        self._kind, header_bytes = word >> 24, word & 0xFFFFFF
        if self._kind not in _READERS:
            raise WireError(f"a message of unknown type {self._kind}")
        if header_bytes > HEADER_BYTES_MAX or self._left > _BODY_BYTES_MAX.get(self._kind, 0):
            raise WireError(f"a message of {header_bytes} + {self._left} bytes, {self._kind}")
        self._header_end = _HEAD.size + header_bytes

    def _add(self, part: memoryview) -> None:
        """Many tiny parts must not cost more than their bytes."""
        if len(part) >= SMALL_BYTES:
            self._body.append(part)
        elif self._body and isinstance(tail := self._body[-1], bytearray):
            tail += part
        else:
            self._body.append(bytearray(part))


def _join(kind: int, header: bytes, body: bytes) -> Message:
    try:
        fields = msgpack.unpackb(
            header, raw=False, max_array_len=HAVE_INDEXES_MAX, max_map_len=0, max_ext_len=0
        )
    except Exception as error:  # msgpack raises a dozen types; all mean the same here
        raise WireError(f"a header that is not msgpack: {error}") from error
    if not isinstance(fields, list):
        raise WireError("a header that is not an array")
    try:
        return _READERS[kind](fields, body)
    except (ValueError, TypeError) as error:
        raise WireError(f"a malformed message of type {kind}: {error}") from error


def _split(message: Message) -> tuple[int, list[Any], Bytes]:
    match message:
        case Hello(version, role, salt, agent, fetches):
            return 1, [version, role, salt, agent, fetches], b""
        case Find(request, hashes):
            return 2, [request, list(hashes)], b""
        case Found(request, answered, records):
            places = [[place, len(record)] for place, record in records]
            return 3, [request, answered, places], b"".join(record for _, record in records)
        case Please(request, store_hash, record):
            return 4, [request, store_hash], record
        case GetManifest(request, manifest, offset):
            return 5, [request, manifest, offset], b""
        case ManifestPart(request, total, data):
            return 6, [request, total], data
        case Watch(request, manifest):
            return 7, [request, manifest], b""
        case Have(manifest, filling, bitmap):
            return 8, [manifest, filling], bitmap
        case HaveMore(manifest, indexes):
            return 9, [manifest, list(indexes)], b""
        case Want(request, manifest, indexes, urgency):
            return 10, [request, manifest, list(indexes), int(urgency)], b""
        case Sent(request, index, encoded):
            return 11, [request, index, int(encoded.codec), encoded.length], encoded.payload
        case Cancel(request, indexes):
            return 12, [request, list(indexes)], b""
        case Refuse(request, reason, indexes):
            return 13, [request, reason, list(indexes)], b""
        case Grown(manifest, first, blocks, lengths, rewrites, state, final):
            header = [manifest, first, len(blocks), int(state), final]
            lengths_packed = struct.pack(f"!{len(lengths)}I", *lengths)
            return 14, header, b"".join((*blocks, lengths_packed, rewrites))
        case GetSummary(request):
            return 20, [request], b""
        case SummaryPart(request, number, last, prefixes):
            return 21, [request, number, last], prefixes
        case SummaryDelta(request, number, added, removed):
            return 22, [request, number, len(added)], added + removed


def _number(value: Any, most: int = (1 << 53) - 1) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("not a number within its limit")
    return value


def _exactly(value: Any, size: int) -> bytes:
    if type(value) is not bytes or len(value) != size:
        raise ValueError(f"not {size} bytes")
    return value


def _text(value: Any, chars_max: int = TEXT_CHARS_MAX) -> str:
    if type(value) is not str or len(value) > chars_max or not value.isprintable():
        raise ValueError("not a short printable text")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("not a boolean")
    return value


def _many(value: Any, most: int) -> list[Any]:
    if type(value) is not list or len(value) > most:
        raise ValueError(f"not a list of at most {most}")
    return value


def _manifest(value: Any) -> ManifestId:
    return ManifestId(_exactly(value, DIGEST_BYTES))


def _store_hash(value: Any) -> str:
    text = _text(value)
    if len(text) != STORE_HASH_CHARS or not text.isalnum():
        raise ValueError("not a store hash")
    return text


def _hello(fields: list[Any], body: bytes) -> Message:
    version, role, salt, agent, fetches = fields
    return Hello(
        _number(version),
        _text(role),
        _exactly(salt, SALT_BYTES),
        _text(agent),
        _number(fetches, FETCHES_MAX),
    )


def _find(fields: list[Any], body: bytes) -> Message:
    request, hashes = fields
    digests = tuple(_exactly(item, DIGEST_BYTES) for item in _many(hashes, FIND_HASHES_MAX))
    return Find(_number(request), digests)


def _found(fields: list[Any], body: bytes) -> Message:
    request, answered, places = fields
    records: list[tuple[int, bytes]] = []
    at = 0
    for place, size in _many(places, FIND_HASHES_MAX):
        size = _number(size, len(body) - at)
        records.append((_number(place, FIND_HASHES_MAX - 1), body[at : at + size]))
        at += size
    if at != len(body):
        raise ValueError("bytes after the last record")
    return Found(_number(request), _number(answered, FIND_HASHES_MAX), tuple(records))


def _please(fields: list[Any], body: bytes) -> Message:
    request, store_hash = fields
    return Please(_number(request), _store_hash(store_hash), body)


def _get_manifest(fields: list[Any], body: bytes) -> Message:
    request, manifest, offset = fields
    return GetManifest(_number(request), _manifest(manifest), _number(offset, MANIFEST_BYTES_MAX))


def _manifest_part(fields: list[Any], body: bytes) -> Message:
    request, total = fields
    return ManifestPart(_number(request), _number(total, MANIFEST_BYTES_MAX), body)


def _watch(fields: list[Any], body: bytes) -> Message:
    request, manifest = fields
    return Watch(_number(request), _manifest(manifest))


def _have(fields: list[Any], body: bytes) -> Message:
    manifest, filling = fields
    return Have(_manifest(manifest), _flag(filling), body)


def _indexes(value: Any, most: int) -> tuple[int, ...]:
    return tuple(_number(index, BITMAP_BYTES_MAX * 8 - 1) for index in _many(value, most))


def _have_more(fields: list[Any], body: bytes) -> Message:
    manifest, indexes = fields
    return HaveMore(_manifest(manifest), _indexes(indexes, HAVE_INDEXES_MAX))


def _want(fields: list[Any], body: bytes) -> Message:
    request, manifest, indexes, urgency = fields
    wanted = _indexes(indexes, WANT_INDEXES_MAX)
    return Want(_number(request), _manifest(manifest), wanted, Urgency(_number(urgency)))


def _sent(fields: list[Any], body: bytes) -> Message:
    request, index, codec, length = fields
    encoded = Encoded(Codec(_number(codec)), _number(length, BLOCK_BYTES_MAX), body)
    return Sent(_number(request), _number(index), encoded)


def _cancel(fields: list[Any], body: bytes) -> Message:
    request, indexes = fields
    return Cancel(_number(request), _indexes(indexes, WANT_INDEXES_MAX))


def _refuse(fields: list[Any], body: bytes) -> Message:
    request, reason, indexes = fields
    return Refuse(_number(request), _text(reason), _indexes(indexes, WANT_INDEXES_MAX))


def _grown(fields: list[Any], body: bytes) -> Message:
    manifest, first, count, state, final = fields
    count = _number(count, SEGMENT_BLOCKS_MAX)
    ids_end, lengths_end = count * DIGEST_BYTES, count * (DIGEST_BYTES + 4)
    if type(final) is not bytes or len(final) not in (0, DIGEST_BYTES) or len(body) < lengths_end:
        raise ValueError("a segment that is cut")
    ids = tuple(BlockId(body[at : at + DIGEST_BYTES]) for at in range(0, ids_end, DIGEST_BYTES))
    lengths = struct.unpack(f"!{count}I", body[ids_end:lengths_end])
    return Grown(
        _manifest(manifest), _number(first), ids, lengths, body[lengths_end:],
        Growth(_number(state)), final,
    )  # fmt: skip


def _prefixes(body: bytes) -> bytes:
    if len(body) % PREFIX_BYTES:
        raise ValueError("not a whole number of prefixes")
    return body


def _get_summary(fields: list[Any], body: bytes) -> Message:
    (request,) = fields
    return GetSummary(_number(request))


def _summary_part(fields: list[Any], body: bytes) -> Message:
    request, number, last = fields
    return SummaryPart(_number(request), _number(number), _flag(last), _prefixes(body))


def _summary_delta(fields: list[Any], body: bytes) -> Message:
    request, number, added_bytes = fields
    end = _number(added_bytes, len(body))
    added, removed = _prefixes(body[:end]), _prefixes(body[end:])
    return SummaryDelta(_number(request), _number(number), added, removed)


_READERS: dict[int, Callable[[list[Any], bytes], Message]] = {
    1: _hello,
    2: _find,
    3: _found,
    4: _please,
    5: _get_manifest,
    6: _manifest_part,
    7: _watch,
    8: _have,
    9: _have_more,
    10: _want,
    11: _sent,
    12: _cancel,
    13: _refuse,
    14: _grown,
    20: _get_summary,
    21: _summary_part,
    22: _summary_delta,
}
