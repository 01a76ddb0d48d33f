"""What peers say to each other on `/narswarm/blocks/1`: frozen values, no bytes, no I/O.

A stream belongs to the peer that opened it: the opener asks (Find, Please, GetManifest, Watch,
Want, Cancel, GetSummary), the other answers. Both begin with Hello. `request` numbers are the
asker's own.

A block is asked for by (manifest, index), not by its id: what a peer may have is decided by path,
so a block that belongs to no path offered to the asker cannot even be named.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from chunker.block import Encoded
from chunker.digest import BlockId, ManifestId

PROTOCOL_VERSION = 1
SALT_BYTES = 32
FIND_HASHES_MAX = 256
PREFIX_BYTES = 8
SUMMARY_PART_PREFIXES_MAX = 8192
DELTA_PREFIXES_MAX = 256
WANT_INDEXES_MAX = 64
SEGMENT_BLOCKS_MAX = 256


@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    role: str
    """gateway, peer or seed."""
    salt: bytes
    """32 random bytes of the answerer; hashes in Find are BLAKE3(salt || store hash)."""
    agent: str
    fetches: int = 0
    """Its share in fetching from upstreams for all, as a rate in KiB/s; 0: it never does."""


@dataclass(frozen=True, slots=True)
class Find:
    request: int
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Encoded path records by position in the question; `answered` positions were looked at, the
    rest is to be asked again (a message holds 4 MiB at most)."""

    request: int
    answered: int
    records: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Please:
    """Look for this path at your own sources. Only for configured peers: it names the hash. With
    the asker's encoded path record, also: fetch that NAR from your upstreams, for all of us."""

    request: int
    store_hash: str
    record: bytes = b""


@dataclass(frozen=True, slots=True)
class GetManifest:
    request: int
    manifest: ManifestId
    offset: int


@dataclass(frozen=True, slots=True)
class ManifestPart:
    request: int
    total: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Watch:
    """Tell me which blocks of this NAR you hold, now and as they come."""

    request: int
    manifest: ManifestId


@dataclass(frozen=True, slots=True)
class Have:
    """Bit n of byte n // 8 (lowest first) is block n. `filling`: the rest is being fetched."""

    manifest: ManifestId
    filling: bool
    bitmap: bytes


@dataclass(frozen=True, slots=True)
class HaveMore:
    manifest: ManifestId
    indexes: tuple[int, ...]


class Urgency(IntEnum):
    SOON = 0
    """A reader waits for it."""
    FIRM = 1
    SPARE = 2
    """Only if the uplink has nothing else to carry: others should bring it."""


class Growth(IntEnum):
    GROWING = 0
    WHOLE = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Grown:
    """More of a growing manifest, from block `first` on, by its owner, who holds these blocks, to
    who watches it; without blocks it says only that bytes come. `rewrites` as in a manifest,
    relative to that block. `final`: the ManifestId, once whole."""

    manifest: ManifestId
    first: int
    blocks: tuple[BlockId, ...]
    lengths: tuple[int, ...]
    rewrites: bytes
    state: Growth
    final: bytes


@dataclass(frozen=True, slots=True)
class Want:
    request: int
    manifest: ManifestId
    indexes: tuple[int, ...]
    urgency: Urgency = Urgency.FIRM


@dataclass(frozen=True, slots=True)
class Sent:
    """One block of a Want, in the form in which it is stored."""

    request: int
    index: int
    encoded: Encoded


@dataclass(frozen=True, slots=True)
class Cancel:
    """`indexes` of a Want, or empty for all of it."""

    request: int
    indexes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """`reason`: not-here, busy or over-limit. `indexes` of a Want, or empty for all of it."""

    request: int
    reason: str
    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GetSummary:
    """Which paths do you hold that I may have? Only between configured peers and members."""

    request: int


@dataclass(frozen=True, slots=True)
class SummaryPart:
    """8-byte prefixes of the hashes that a Find would carry, back to back, ascending over all
    parts. `number` counts parts and then deltas, from 0; `last`: from here on come deltas."""

    request: int
    number: int
    last: bool
    prefixes: bytes


@dataclass(frozen=True, slots=True)
class SummaryDelta:
    """What came and went since the message before. A gap in the numbers means: ask anew."""

    request: int
    number: int
    added: bytes
    removed: bytes


Message = (
    Hello
    | Find
    | Found
    | Please
    | GetManifest
    | ManifestPart
    | Watch
    | Have
    | HaveMore
    | Grown
    | Want
    | Sent
    | Cancel
    | Refuse
    | GetSummary
    | SummaryPart
    | SummaryDelta
)
