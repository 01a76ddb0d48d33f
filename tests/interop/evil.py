"""A seed that lies, made of the shipped program; the variable EVIL says how:

corrupt   flips a bit in every block it sends
manifest  names, for the largest path, a manifest of other bytes under the signed NarHash
silent    takes wants and never sends a block
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace

import trio

from chunker.block import Codec, Encoded
from chunker.digest import manifest_id
from chunker.ingest import Ingest
from chunker.manifest import encode_manifest
from chunker.record import PathRecord
from gateway import cli, seeding
from peer import sending
from peer.messages import Message, Sent
from peer.serving import Due

KIND = os.environ["EVIL"]

honest_read = sending.Sending._read
honest_keep = seeding.keep


def corrupt_read(self: sending.Sending, due: Due) -> Message:
    answer = honest_read(self, due)
    if isinstance(answer, Sent):
        manifest = self._load(due.manifest)
        assert manifest is not None
        data = bytearray(self._store.get(manifest.blocks[due.index]).data)
        data[len(data) // 2] ^= 1
        return replace(answer, encoded=Encoded(Codec.RAW, len(data), bytes(data)))
    return answer


async def never_send(self: sending.Sending) -> None:
    await trio.sleep_forever()


def lying_keep(store, record: PathRecord, manifest, key) -> None:  # type: ignore[no-untyped-def]
    if record.nar_size < 20_000_000:
        honest_keep(store, record, manifest, key)
        return
    ingest = Ingest(store, record.needles)
    for piece in other_nar(record.nar_size):
        ingest.feed(piece)
    _, other = ingest.finish_unchecked()
    lie = encode_manifest(replace(other, nar_hash=record.nar_hash))
    store.put_manifest(manifest_id(lie), lie, verified=True)
    store.put_record(replace(record, manifest=manifest_id(lie)))


def other_nar(size: int) -> Iterable[bytes]:
    """A NAR of exactly `size` bytes with contents of its own."""

    def text(data: bytes) -> bytes:
        return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)

    head = (
        text(b"nix-archive-1") + text(b"(") + text(b"type") + text(b"regular") + text(b"contents")
    )
    tail = text(b")")
    count = size - len(head) - 8 - len(tail)
    assert count % 8 == 0
    yield head + count.to_bytes(8, "little")
    yield from (os.urandom(min(1 << 20, count - at)) for at in range(0, count, 1 << 20))
    yield tail


if __name__ == "__main__":
    if KIND == "corrupt":
        sending.Sending._read = corrupt_read  # type: ignore[method-assign]
    elif KIND == "silent":
        sending.Sending.run = never_send  # type: ignore[method-assign]
    elif KIND == "manifest":
        seeding.keep = lying_keep
    sys.exit(cli.main())
