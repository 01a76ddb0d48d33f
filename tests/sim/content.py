"""What the simulated swarm is about: a few NARs that share blocks, and lies about them.

NARs are their blocks. In place of SHA-256 over megabytes stands BLAKE3 over the ids of the blocks
(`nar_hash_of`), which tells the same: whoever has other blocks has another NAR.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import blake3

from chunker.block import Block
from chunker.cut import BLOCK_BYTES_MIN
from chunker.digest import BlockId, ManifestId, NarHash, nix32_encode
from chunker.record import PathRecord

GROWING_BYTES = 2_400_000
"""Above the size from which fellows deal blocks out among them."""
SMALL_BYTES = 5_000


@dataclass(frozen=True)
class Nar:
    """One NAR as a manifest describes it. A `record` without a true `nar_hash` is a lie."""

    record: PathRecord
    blocks: tuple[BlockId, ...]
    lengths: tuple[int, ...]

    @cached_property
    def path(self) -> str:
        return self.record.store_hash

    @property
    def id(self) -> ManifestId:
        return self.record.manifest

    @property
    def is_true(self) -> bool:
        return nar_hash_of(self.blocks) == self.record.nar_hash


def nar_hash_of(blocks: Sequence[BlockId]) -> NarHash:
    return NarHash(blake3.blake3(b"".join(blocks)).digest())


class Content:
    """`growing` is at an upstream only, the others are at some members from the start."""

    def __init__(self, chance: random.Random, blocks: int, *, with_small: bool = True) -> None:
        self.data: dict[BlockId, bytes] = {}
        self.lies: dict[BlockId, Nar] = {}
        """Blocks that belong to no NAR but this lie."""
        self._chance = chance
        share = GROWING_BYTES // blocks + 1
        lengths = [max(BLOCK_BYTES_MIN, chance.randint(share * 3 // 4, share * 5 // 4))
                   for _ in range(blocks)]  # fmt: skip
        self.growing = self.nar("growing", [self.block(length) for length in lengths])
        self.all = [self.growing]
        if with_small:
            shared = list(self.growing.blocks[: blocks // 3])
            mine = [self.block(BLOCK_BYTES_MIN + n) for n in range(3)]
            self.all.append(self.nar("static", [*mine[:2], *shared, mine[2]]))
            self.all.append(self.nar("small", [mine[1], self.block(SMALL_BYTES)]))

    def block(self, length: int) -> BlockId:
        block = Block.of(self._chance.randbytes(length))
        self.data[block.id] = bytes(block.data)
        return block.id

    def nar(self, name: str, blocks: Sequence[BlockId]) -> Nar:
        lengths = tuple(len(self.data[wanted]) for wanted in blocks)
        store_hash = nix32_encode(hashlib.sha256(name.encode()).digest()[:20])
        nar_hash = nar_hash_of(blocks)
        manifest = ManifestId(blake3.blake3(b"manifest" + nar_hash).digest())
        record = PathRecord(
            f"/nix/store/{store_hash}-{name}", nar_hash, sum(lengths), (), (), "", manifest
        )
        return Nar(record, tuple(blocks), lengths)

    def lie(self, true: Nar) -> Nar:
        """The same NAR, it says, but some blocks are others of the same length."""
        blocks = [
            self.block(length) if n % 2 else wanted
            for n, (wanted, length) in enumerate(zip(true.blocks, true.lengths, strict=True))
        ]
        manifest = ManifestId(blake3.blake3(b"lie" + b"".join(blocks)).digest())
        lie = Nar(replace(true.record, manifest=manifest), tuple(blocks), true.lengths)
        self.lies.update((wanted, lie) for wanted in set(blocks) - set(true.blocks))
        return lie
