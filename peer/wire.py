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
from chunker.digest import DIGEST_BYTES, BlockId, Bytes

from .errors import WireError
from .fields import (
    BITMAP_BYTES_MAX,
    blobs_of,
    exactly,
    flag_of,
    indexes_of,
    manifest_of,
    many_of,
    number_of,
    prefixes_of,
    store_hash_of,
    text_of,
)
from .messages import (
    ADDRESSES_MAX,
    DELTA_PREFIXES_MAX,
    FIND_HASHES_MAX,
    POOLS_MAX,
    PREFIX_BYTES,
    REVOCATIONS_PER_MESSAGE_MAX,
    SALT_BYTES,
    SEGMENT_BLOCKS_MAX,
    SUMMARY_PART_PREFIXES_MAX,
    TAG_BYTES,
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
    Revoked,
    Sent,
    Show,
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
GROWN_BYTES_MAX = 512 * 1024
PLEASE_BYTES_MAX = 1024 * 1024
FETCHES_MAX = 1 << 30
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
        size = len(view)
        while at < size or self._is_whole():
            if not self._head and size - at >= _HEAD.size:
                # The usual case, in few steps: head and header lie here, and perhaps the body.
                self._start(view[at : at + _HEAD.size])
                header_end, end = at + self._header_end, at + self._header_end + self._left
                if end <= size:
                    header = bytes(view[at + _HEAD.size : header_end])
                    self._header_end, at = 0, end
                    yield _join(self._kind, header, bytes(view[header_end:end]))
                    continue
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
                    self._start(self._head)

    def _is_whole(self) -> bool:
        return 0 < self._header_end == len(self._head) and not self._left

    def _start(self, head: bytearray | memoryview) -> None:
        word, self._left = _HEAD.unpack(head)
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
        case Hello(version, role, salt, agent, tags, fetches):
            return 1, [version, role, salt, agent, list(tags), fetches], b""
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
        case Show(certificates, addresses):
            return 24, [list(certificates), list(addresses)], b""
        case Revoked(revocations):
            return 25, [list(revocations)], b""


def _hello(fields: list[Any], body: bytes) -> Message:
    version, role, salt, agent, tags, fetches = fields
    return Hello(
        number_of(version), text_of(role), exactly(salt, SALT_BYTES), text_of(agent),
        tuple(exactly(tag, TAG_BYTES) for tag in many_of(tags, POOLS_MAX)),
        number_of(fetches, FETCHES_MAX),
    )  # fmt: skip


def _find(fields: list[Any], body: bytes) -> Message:
    request, hashes = fields
    digests = tuple(exactly(item, DIGEST_BYTES) for item in many_of(hashes, FIND_HASHES_MAX))
    return Find(number_of(request), digests)


def _found(fields: list[Any], body: bytes) -> Message:
    request, answered, places = fields
    records: list[tuple[int, bytes]] = []
    at = 0
    for place, size in many_of(places, FIND_HASHES_MAX):
        size = number_of(size, len(body) - at)
        records.append((number_of(place, FIND_HASHES_MAX - 1), body[at : at + size]))
        at += size
    if at != len(body):
        raise ValueError("bytes after the last record")
    return Found(number_of(request), number_of(answered, FIND_HASHES_MAX), tuple(records))


def _please(fields: list[Any], body: bytes) -> Message:
    request, store_hash = fields
    return Please(number_of(request), store_hash_of(store_hash), body)


def _get_manifest(fields: list[Any], body: bytes) -> Message:
    request, manifest, offset = fields
    return GetManifest(
        number_of(request), manifest_of(manifest), number_of(offset, MANIFEST_BYTES_MAX)
    )


def _manifest_part(fields: list[Any], body: bytes) -> Message:
    request, total = fields
    return ManifestPart(number_of(request), number_of(total, MANIFEST_BYTES_MAX), body)


def _watch(fields: list[Any], body: bytes) -> Message:
    request, manifest = fields
    return Watch(number_of(request), manifest_of(manifest))


def _have(fields: list[Any], body: bytes) -> Message:
    manifest, filling = fields
    return Have(manifest_of(manifest), flag_of(filling), body)


def _have_more(fields: list[Any], body: bytes) -> Message:
    manifest, indexes = fields
    return HaveMore(manifest_of(manifest), indexes_of(indexes, HAVE_INDEXES_MAX))


def _want(fields: list[Any], body: bytes) -> Message:
    request, manifest, indexes, urgency = fields
    wanted = indexes_of(indexes, WANT_INDEXES_MAX)
    return Want(number_of(request), manifest_of(manifest), wanted, Urgency(number_of(urgency)))


def _sent(fields: list[Any], body: bytes) -> Message:
    request, index, codec, length = fields
    encoded = Encoded(Codec(number_of(codec)), number_of(length, BLOCK_BYTES_MAX), body)
    return Sent(number_of(request), number_of(index), encoded)


def _cancel(fields: list[Any], body: bytes) -> Message:
    request, indexes = fields
    return Cancel(number_of(request), indexes_of(indexes, WANT_INDEXES_MAX))


def _refuse(fields: list[Any], body: bytes) -> Message:
    request, reason, indexes = fields
    return Refuse(number_of(request), text_of(reason), indexes_of(indexes, WANT_INDEXES_MAX))


def _grown(fields: list[Any], body: bytes) -> Message:
    manifest, first, count, state, final = fields
    count = number_of(count, SEGMENT_BLOCKS_MAX)
    ids_end, lengths_end = count * DIGEST_BYTES, count * (DIGEST_BYTES + 4)
    if type(final) is not bytes or len(final) not in (0, DIGEST_BYTES) or len(body) < lengths_end:
        raise ValueError("a segment that is cut")
    ids = tuple(BlockId(body[at : at + DIGEST_BYTES]) for at in range(0, ids_end, DIGEST_BYTES))
    lengths = struct.unpack(f"!{count}I", body[ids_end:lengths_end])
    return Grown(
        manifest_of(manifest), number_of(first), ids, lengths, body[lengths_end:],
        Growth(number_of(state)), final,
    )  # fmt: skip


def _get_summary(fields: list[Any], body: bytes) -> Message:
    (request,) = fields
    return GetSummary(number_of(request))


def _summary_part(fields: list[Any], body: bytes) -> Message:
    request, number, last = fields
    return SummaryPart(number_of(request), number_of(number), flag_of(last), prefixes_of(body))


def _summary_delta(fields: list[Any], body: bytes) -> Message:
    request, number, added_bytes = fields
    end = number_of(added_bytes, len(body))
    added, removed = prefixes_of(body[:end]), prefixes_of(body[end:])
    return SummaryDelta(number_of(request), number_of(number), added, removed)


def _show(fields: list[Any], body: bytes) -> Message:
    certificates, addresses = fields
    texts = tuple(text_of(item) for item in many_of(addresses, ADDRESSES_MAX))
    return Show(blobs_of(certificates, POOLS_MAX), texts)


def _revoked(fields: list[Any], body: bytes) -> Message:
    (revocations,) = fields
    return Revoked(blobs_of(revocations, REVOCATIONS_PER_MESSAGE_MAX))


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
    24: _show,
    25: _revoked,
}
