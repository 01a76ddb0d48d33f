"""A manifest that grows while its owner still gets the NAR from an upstream. Pure.

    owner:     blocks are cut --extend--> Growing --segments--> Grown messages, in order
    follower:  Grown --apply--> Growing, as far as the owner is

It is named by what it will describe and who makes it: BLAKE3 of a tag, NarHash, needles digest, cut
rule and the owner's PeerId. Nothing in it is believed: blocks match their ids, and the NAR must
match NarHash in the end. Its ManifestId exists only once the owner has seen that.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import blake3

from chunker.cut import BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, CUT_RULE
from chunker.digest import DIGEST_BYTES, BlockId, ManifestId
from chunker.record import PathRecord
from chunker.references import NEEDLE_BYTES, Rewrites, needles_digest

from .errors import RemoteError
from .identity import PeerId
from .messages import SEGMENT_BLOCKS_MAX, Grown, Growth

TAG = b"narswarm-growing-1"
SEGMENT_REWRITES_MAX = 32 * 1024


def growing_id(record: PathRecord, owner: PeerId) -> ManifestId:
    parts = (TAG, record.nar_hash, needles_digest(record.needles), CUT_RULE.encode())
    return ManifestId(blake3.blake3(b"\0".join((*parts, owner.encode()))).digest())


def blocks_max(nar_size: int) -> int:
    """More blocks than that a NAR of `nar_size` bytes cannot have."""
    return nar_size // BLOCK_BYTES_MIN + 1


class Growing:
    """Looks like a `Manifest` as far as it is known: blocks, lengths, offsets, rewrites."""

    def __init__(self, record: PathRecord, owner: PeerId) -> None:
        self.owner = owner
        self.id = growing_id(record, owner)
        self.record = replace(record, manifest=self.id, manifest_signatures=())
        self.nar_size = record.nar_size
        self.blocks: list[BlockId] = []
        self.lengths = array("I")
        self.offsets: list[int] = []
        self.rewrites = Rewrites(array("Q"), array("I"))
        self.state = Growth.GROWING
        self.final: ManifestId | None = None
        self.bytes_known = 0

    def extend(self, blocks: Sequence[BlockId], lengths: Sequence[int]) -> None:
        for length in lengths:
            self.offsets.append(self.bytes_known)
            self.bytes_known += length
        self.lengths.extend(lengths)
        self.blocks.extend(blocks)

    def segment(self, first: int) -> Grown:
        """What follows from block `first` on, as much as one message takes; without blocks where
        nothing follows, which only says that the owner is alive."""
        last = min(len(self.blocks), first + SEGMENT_BLOCKS_MAX)
        begin = self._rewrite_at(self._offset(first))
        while (
            last > first + 1 and self._rewrite_at(self._offset(last)) - begin > SEGMENT_REWRITES_MAX
        ):
            last = first + (last - first) // 2
        end = self._rewrite_at(self._offset(last))
        base = self._offset(first)
        offsets = array("Q", (offset - base for offset in self.rewrites.offsets[begin:end]))
        ends = last == len(self.blocks)
        return Grown(
            self.id,
            first,
            tuple(self.blocks[first:last]),
            tuple(self.lengths[first:last]),
            Rewrites(offsets, self.rewrites.indexes[begin:end]).encode(),
            self.state if ends else Growth.GROWING,
            (self.final or b"") if ends else b"",
        )

    def apply(self, grown: Grown) -> range:
        """The indexes that are new; what was said before, to an older session or to a watch that
        ended, is said again. Raises RemoteError for what cannot be part of this NAR."""
        first, known = grown.first, len(self.blocks) - grown.first
        if known < 0:
            raise RemoteError(f"{self.owner} sent a segment out of order")
        blocks, lengths = grown.blocks[known:], grown.lengths[known:]
        if grown.blocks[:known] != tuple(self.blocks[first : first + len(grown.blocks)]):
            raise RemoteError(f"{self.owner} says something else than before")
        if self.state is not Growth.GROWING:
            if blocks:
                raise RemoteError(f"{self.owner} goes on after the end")
            return range(0)
        size = sum(lengths)
        whole = grown.state is Growth.WHOLE
        wrong = (
            any(not 0 < length <= BLOCK_BYTES_MAX for length in lengths)
            or any(length < BLOCK_BYTES_MIN for length in lengths[: -1 if whole else None])
            or self.bytes_known + size > self.nar_size
            or (whole and self.bytes_known + size != self.nar_size)
        )
        if wrong:
            raise RemoteError(f"{self.owner} sent blocks that do not add up to the NAR")
        self._take_rewrites(grown.rewrites, self._offset(first), size)
        new = range(len(self.blocks), len(self.blocks) + len(blocks))
        self.extend(blocks, lengths)
        self.state = grown.state
        if whole:
            self.final = ManifestId(grown.final) if len(grown.final) == DIGEST_BYTES else None
        return new

    def _take_rewrites(self, encoded: bytes, base: int, size: int) -> None:
        """Those of the `size` bytes that are new; `base` is where the segment begins."""
        try:
            rewrites = Rewrites.decode(encoded)
        except ValueError as error:
            raise RemoteError(f"{self.owner} sent rewrites that make no sense: {error}") from error
        at = bisect_left(rewrites.offsets, self.bytes_known - base)
        offsets, indexes = rewrites.offsets[at:], rewrites.indexes[at:]
        if not offsets:
            return
        last = self.rewrites.offsets[-1] + NEEDLE_BYTES if len(self.rewrites) else 0
        if (
            max(indexes) >= len(self.record.needles)
            or base + offsets[-1] >= self.bytes_known + size
            or base + offsets[0] < last
            or base + offsets[-1] + NEEDLE_BYTES > self.nar_size
        ):
            raise RemoteError(f"{self.owner} sent rewrites that lie outside of their blocks")
        self.rewrites.offsets.extend(base + offset for offset in offsets)
        self.rewrites.indexes.extend(indexes)

    def _offset(self, index: int) -> int:
        return self.offsets[index] if index < len(self.offsets) else self.bytes_known

    def _rewrite_at(self, offset: int) -> int:
        return bisect_left(self.rewrites.offsets, offset)
