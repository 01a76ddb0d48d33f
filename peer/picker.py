"""Which open block of one download to ask of which peer. Pure; the exchange keeps the books.

| where the block is           | who is asked                                                     |
|------------------------------|------------------------------------------------------------------|
| in the window at the reader  | in order, each of the holder that would deliver it first         |
| beyond it                    | our own part first, then what fewest hold                        |
| held by sources alone        | by the one whose part it is; by the others only if there is room |
| asked for, and late          | a second holder, under a budget                                  |

A *source* has the whole (a seed, the owner of a growing manifest); *fellows* fetch the same NAR as
we do. Were all fellows to ask the source for everything, its uplink would carry each block once for
each of them. So blocks are dealt out among all that fetch, in order of PeerId and as many bytes to
each (`parts`): one asks the source for its part and gets the rest from the others. What a fellow
can bring is asked of no source: who comes late has the head of the NAR from fellows, and leaves the
source's uplink to the tail that all lack.
Whose view of the fellows differs for a moment asks for too much or waits for a moment; at the
beginning, when none has said that it follows, all members count. A block that
no fellow has shown in PATIENCE times the source's own answering time is asked of the source as
*spare*: it sends that when its uplink has nothing else to carry. So a source that has plenty gives
plenty, one slow fellow stalls nobody, and a busy uplink is not made busier; once a fellow has the
block, the spare want is taken back. Only the first that one lacks are asked so: who came late has
the head from fellows as fast as its link carries it, and the tail is for those who wait for it.

Of a slow fellow one block at a time is asked: what waits in its queue can be asked of nobody else,
and what waits here goes to whoever has it and is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from sortedcontainers import SortedSet

from chunker.digest import BlockId, ManifestId

from .identity import PeerId
from .messages import Urgency
from .parts import Parts
from .standing import DEPTH_BLOCKS_MIN, Standing

WINDOW_BYTES = 16 * 1024 * 1024
HORIZON_BLOCKS = 128
"""Looked at beyond the window."""
LOOKED_AT_ONCE = 32
DEALT_BYTES_MIN = 2 * 1024 * 1024
"""Smaller downloads are not dealt out: waiting for each other would take longer."""
PATIENCE = 4.0
PATIENCE_SECONDS_MIN = 0.25
PATIENCE_SECONDS_MAX = 10.0
FELLOW_SECONDS_MAX = 4.0
"""A fellow that would take longer is left to itself; and a source is asked for a second copy of
what was dealt out only when the first is so late, because its uplink is what all wait for."""
SPARE_BLOCKS = 32
"""Only the first that nobody was asked for: who came late lacks the head, which fellows have, and
needs the tail less than those who came before it."""
MEET_SECONDS = 0.3
"""So long after the beginning every member counts as a fellow of who follows an owner: a crowd that
begins at one moment would ask the owner for its first blocks once each."""
FELLOW_SILENCE_SECONDS_MAX = 3.0
"""How long a fellow that tells of nothing new is hoped for."""
URGENT_BLOCKS = 8
"""At the reader: these are asked of a second holder when they are late."""
ENDGAME_BLOCKS = 16
ENDGAME_SECONDS = 1.0
"""At the end what was asked for so long ago is asked of another too: one holder of the last few
would send them to everybody while all others are idle."""
ENDGAME_COPIES = 3
LONG_BLOCKS = 8 * ENDGAME_BLOCKS
"""Of fewer the end is most, and sources have as much to do as before."""
ENDGAME_PATIENCE_SECONDS = 0.5
"""So long what fellows do not bring waits at the end, before a source is asked for it as spare."""
DEPUTY_SECONDS = 1.0
"""So long what an owner has waits at the end for the fellow whose part it is, before that for
FELLOW_SECONDS_MAX; then the next one may ask for it as well, and so on."""
LATE_SECONDS = 2.0
COPIES_SHARE_MAX = 0.005
COPIES_FREE = 2

Ready = list[tuple[PeerId, Standing]]


@dataclass(slots=True)
class Flight:
    """A block that was asked for and has not come."""

    peer: PeerId
    request: int
    manifest: ManifestId
    index: int
    length: int
    since: float
    spare: bool
    due: float
    """When it should have been here, by what the peer owed and its rate."""


@dataclass(slots=True)
class Download:
    """Books of one NAR: `open` are the missing blocks that nobody was asked for."""

    manifest: ManifestId
    blocks: list[BlockId]
    lengths: list[int]
    missing: set[int]
    open: SortedSet
    nar_bytes: int
    blocks_max: int
    """More than that cannot come; a growing manifest has fewer at first."""
    source: PeerId | None = None
    """The owner of a growing manifest, which is a source though it still fills."""
    since: float = 0.0
    members: frozenset[PeerId] = frozenset()
    """Who was asked at the beginning whether it fetches the same."""
    whole: bool = True
    cursor: int = 0
    stuck_said: bool = False
    asked: int = 0
    copies: int = 0
    hopes: bool = True
    """That fellows find what is missing; not once a source lied, for they had the same sources."""
    parts: Parts = field(default_factory=lambda: Parts(1))
    """For as many as fetched it when we looked last."""
    waits: dict[int, float] = field(default_factory=dict)
    """Since when a block is left to a fellow."""

    @property
    def ends(self) -> bool:
        """All was asked for, and little has not come."""
        return self.whole and not self.open and len(self.missing) <= ENDGAME_BLOCKS

    def may_copy(self) -> bool:
        few = COPIES_FREE + self.asked * COPIES_SHARE_MAX
        return self.copies < few + self.ends * ENDGAME_COPIES


def choose(
    now: float,
    me: PeerId,
    download: Download,
    peers: dict[PeerId, Standing],
    asked: dict[PeerId, Standing] | None = None,
    indexes: list[int] | None = None,
) -> Iterator[tuple[int, PeerId, Urgency]]:
    """(index, whom to ask, how urgently), best first; where given, only of those `asked`, and for
    `indexes` alone. The caller books each before it takes the next, so that lengths of queues are
    true. `peers` are all that are known."""
    if not download.open:
        return
    manifest = download.manifest
    ready = [
        (name, state)
        for name, state in (peers if asked is None else asked).items()
        if manifest in state.holds
        and not state.rests(now)
        and (state.free_blocks() or state.free_spare())
    ]
    if not any(state.free_blocks() for _, state in ready):
        return
    deal = _Deal(now, me, download, peers)
    for index in _candidates(download, ready, deal) if indexes is None else indexes:
        if index not in download.open:
            continue  # the same block stands at two places, and was asked for at the first
        holders = [(name, state) for name, state in ready if index in state.holds[manifest]]
        length = download.lengths[index]
        firm = [item for item in holders if item[1].open_blocks() and deal.may_ask(index, *item)]
        spare = not firm
        if spare:
            holders = deal.overdue(index, [item for item in holders if item[1].free_spare()])
            if not holders:
                continue
        else:
            holders = firm
        name, state = min(holders, key=lambda item: (item[1].seconds_for(length), item[0]))
        soon = download.cursor <= index < download.cursor + URGENT_BLOCKS
        yield index, name, Urgency.SPARE if spare else Urgency.SOON if soon else Urgency.FIRM
        if not state.open_blocks() and not (deal.is_dealt and state.free_spare()):
            ready.remove((name, state))
            if not ready:
                return


def second_holder(
    now: float, download: Download, flight: Flight, peers: dict[PeerId, Standing]
) -> tuple[PeerId, Standing] | None:
    """Another peer that would have a late block here well before it is to be expected."""
    if not download.may_copy():
        return None
    urgent = download.cursor <= flight.index < download.cursor + URGENT_BLOCKS
    slow = peers[flight.peer].answers_seconds if flight.peer in peers else 0.0
    late = urgent and now >= flight.due + max(LATE_SECONDS, 2 * slow)
    if not late and not (download.ends and now >= flight.since + ENDGAME_SECONDS):
        return None
    fellows = _fellows(download, peers)
    spares_sources = (
        not download.ends and _is_dealt(download, fellows) and now < flight.due + FELLOW_SECONDS_MAX
    )
    others = [
        (name, state)
        for name, state in peers.items()
        if name != flight.peer
        and (name in fellows or not spares_sources)
        and flight.index in state.holds.get(flight.manifest, ())
        and not state.rests(now)
        and len(state.owed) < state.depth_blocks
    ]
    return min(others, key=lambda item: (item[1].seconds_for(flight.length), item[0]), default=None)


def is_stuck(now: float, download: Download, peers: dict[PeerId, Standing]) -> bool:
    """No holder of a missing block, and nobody who may become one: an owner that still fills, or a
    fellow of whom was heard lately (fellows that all lack a block wait for each other)."""
    if len(download.open) < len(download.missing):
        return False
    for name, state in peers.items():
        held = state.holds.get(download.manifest)
        if held is None:
            continue
        if not download.missing.isdisjoint(held):
            return False
        if download.manifest in state.filling and (
            name == download.source
            or (download.hopes and now - state.told < FELLOW_SILENCE_SECONDS_MAX)
        ):
            return False
    return True


def _candidates(download: Download, ready: Ready, deal: _Deal) -> Iterator[int]:
    """Open blocks from the reader on; beyond the window in another order. What is open before the
    reader comes then: it was passed over, and is needed for the whole."""
    after, size = download.cursor, 0
    for index in _from(download.open, download.cursor):
        if size > WINDOW_BYTES:
            break
        size += download.lengths[index]
        after = index + 1
        yield index
    if download.cursor:
        passed = download.open.irange(None, download.cursor, inclusive=(True, False))
        yield from list(islice(passed, HORIZON_BLOCKS))
    yield from _beyond(download, after, ready, deal)


def _from(open_blocks: SortedSet, start: int) -> Iterator[int]:
    """In order, a few at a time, for what was yielded may be taken out meanwhile and most callers
    want no more."""
    while some := list(islice(open_blocks.irange(start, None), LOOKED_AT_ONCE)):
        yield from some
        start = some[-1] + 1


def _beyond(download: Download, after: int, ready: Ready, deal: _Deal) -> Iterator[int]:
    candidates = list(islice(download.open.irange(after, None), HORIZON_BLOCKS))
    if not candidates:
        return
    held = [state.holds[download.manifest] for _, state in ready]
    key = {index: sum(index in holds for holds in held) for index in candidates}
    yield from sorted(candidates, key=lambda index: (not deal.is_mine(index), key[index], index))


def _fellows(download: Download, peers: dict[PeerId, Standing]) -> set[PeerId]:
    return {
        name
        for name, state in peers.items()
        if download.manifest in state.filling and name != download.source
    }


def _is_dealt(download: Download, fellows: set[PeerId]) -> bool:
    return bool(fellows) and download.nar_bytes >= DEALT_BYTES_MIN


class _Deal:
    """Whose part a block is."""

    def __init__(
        self, now: float, me: PeerId, download: Download, peers: dict[PeerId, Standing]
    ) -> None:
        self._now = now
        self._download = download
        self._peers = peers
        self._fellows = _fellows(download, peers)
        dealt_to = {me} | self._fellows
        if download.source is not None and now < download.since + MEET_SECONDS:
            dealt_to |= download.members - {download.source}
        order = sorted(dealt_to)
        self._count = len(order)
        self._mine = order.index(me)
        if download.parts.count != self._count:
            download.parts = Parts(self._count)
        self.is_dealt = _is_dealt(download, dealt_to - {me})

    def is_mine(self, index: int) -> bool:
        if not self.is_dealt:
            return True
        work = self._download
        behind = (self._mine - work.parts.place(index, work.lengths)) % self._count
        if behind == 0:
            return True
        since = work.waits.get(index)
        if since is None or work.source is None:
            return False
        limit = DEPUTY_SECONDS if self._ends else FELLOW_SECONDS_MAX
        deputies = int((self._now - since) / limit)
        return behind <= deputies

    @property
    def _ends(self) -> bool:
        work = self._download
        return work.whole and len(work.missing) <= 2 * ENDGAME_BLOCKS

    def may_ask(self, index: int, holder: PeerId, state: Standing) -> bool:
        """Firmly: a fellow for anything that it can bring in time, a source for our part."""
        if not self.is_dealt:
            return True
        if holder not in self._fellows:
            return self.is_mine(index) and not self._is_with_fellows(index)
        if state.owed and state.depth_blocks <= DEPTH_BLOCKS_MIN:
            return False  # a slow one: what would wait there, another may have sooner
        return self.is_mine(index) or self._is_in_time(index, state)

    def _is_with_fellows(self, index: int) -> bool:
        """Who came late has the head from fellows: the source is for what it holds alone."""
        manifest = self._download.manifest
        return any(
            index in state.holds.get(manifest, ())
            and not state.rests(self._now)
            and self._is_in_time(index, state)
            for name, state in self._peers.items()
            if name in self._fellows
        )

    def _is_in_time(self, index: int, state: Standing) -> bool:
        return state.seconds_for(self._download.lengths[index]) <= FELLOW_SECONDS_MAX

    def overdue(self, index: int, holders: Ready) -> Ready:
        """Whom to ask for it as spare: only sources hold it, or fellows that have enough to do, for
        longer than they should. At the end of a long download sources have time."""
        if not holders or (self.is_mine(index) and not self._is_with_fellows(index)):
            return []
        if self._download.open.bisect_left(index) >= SPARE_BLOCKS:
            return []
        waited = self._now - self._download.waits.setdefault(index, self._now)
        sources = [item for item in holders if item[0] not in self._fellows]
        ends = self._ends and len(self._download.blocks) >= LONG_BLOCKS
        if ends and sources and waited >= ENDGAME_PATIENCE_SECONDS:
            return sources
        answers = min(state.answers_seconds for _, state in holders)
        patience = min(max(PATIENCE * answers, PATIENCE_SECONDS_MIN), PATIENCE_SECONDS_MAX)
        return holders if waited >= patience else []
