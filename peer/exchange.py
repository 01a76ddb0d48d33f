"""The exchange: which missing block to ask of which peer. Pure; `now` and events in, effects out.

It knows downloads (an ordered list of blocks, a cursor where the reader is), peers (what each
holds of each manifest, how fast it was, what it owes) and one table of blocks in flight shared by
all downloads, so that a block is asked for once however many NARs contain it.

| event             | what it does                                                          |
|-------------------|-----------------------------------------------------------------------|
| start, has, moved | new work or new holders: fill every peer up to its depth              |
| arrived, good     | Keep it, credit the peer's rate, ask for more                         |
| arrived, bad      | Ban the sender, ask somebody else                                     |
| arrived, uncalled | ignored: a late answer to a cancelled request is no crime             |
| refused           | that peer does not hold that block; ask somebody else                 |
| peer_gone         | everything it owed is asked of others                                 |
| tick              | a silent or dripping peer loses what it owes and rests for a while    |

Blocks are asked for in order from the cursor, each of the peer whose queue would be shortest in
time, (owed + length) / rate. A download none of whose missing blocks has a holder is Stuck; its
owner finds another source or gives up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from chunker.block import Block, Encoded, verify
from chunker.digest import BlockId, ManifestId
from chunker.errors import BlockCorrupt

from .identity import PeerId
from .messages import WANT_INDEXES_MAX

WINDOW_BYTES = 16 * 1024 * 1024
DEPTH_BLOCKS_MIN = 2
DEPTH_BLOCKS_MAX = 64
DEPTH_SECONDS = 0.5
RATE_START_BYTES_PER_SECOND = 8 * 1024 * 1024
RATE_MIN_BYTES_PER_SECOND = 16 * 1024
RATE_WEIGHT = 0.3
SILENCE_SECONDS_MAX = 3.0
DRIP_SECONDS_MAX = 10.0
REST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SendWant:
    peer: PeerId
    request: int
    manifest: ManifestId
    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SendCancel:
    peer: PeerId
    request: int


@dataclass(frozen=True, slots=True)
class Keep:
    """A verified block that some download wanted; `places` are (manifest, index)."""

    block: Block
    peer: PeerId
    places: tuple[tuple[ManifestId, int], ...]


@dataclass(frozen=True, slots=True)
class Ban:
    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Stuck:
    manifest: ManifestId


Effect = SendWant | SendCancel | Keep | Ban | Stuck


@dataclass(slots=True)
class _Download:
    blocks: tuple[BlockId, ...]
    lengths: tuple[int, ...]
    missing: set[int]
    cursor: int = 0
    front: int = 0
    stuck_said: bool = False


@dataclass(slots=True)
class _Flight:
    peer: PeerId
    request: int
    manifest: ManifestId
    index: int
    length: int
    since: float


@dataclass(slots=True)
class _Peer:
    holds: dict[ManifestId, set[int]] = field(default_factory=dict)
    filling: set[ManifestId] = field(default_factory=set)
    owed: dict[tuple[int, int], BlockId] = field(default_factory=dict)
    owed_bytes: int = 0
    rate: float = RATE_START_BYTES_PER_SECOND
    heard: float = 0.0
    busy_since: float = 0.0
    busy_bytes: int = 0
    rests_until: float = 0.0

    def depth(self) -> int:
        blocks = int(self.rate * DEPTH_SECONDS / 131072)
        return max(DEPTH_BLOCKS_MIN, min(DEPTH_BLOCKS_MAX, blocks))

    def takes_more(self) -> bool:
        """Not before a quarter of the depth is free: one Want for many blocks costs as much as
        one for each."""
        depth = self.depth()
        return len(self.owed) <= depth - max(1, depth // 4)


class Exchange:
    """All downloads of one process. Every method returns the effects to carry out, in order."""

    def __init__(self) -> None:
        self._downloads: dict[ManifestId, _Download] = {}
        self._peers: dict[PeerId, _Peer] = {}
        self._flights: dict[BlockId, _Flight] = {}
        self._wanted: dict[BlockId, list[tuple[ManifestId, int]]] = {}
        self._request = 0
        self._banned: set[PeerId] = set()

    def start(
        self,
        now: float,
        manifest: ManifestId,
        blocks: tuple[BlockId, ...],
        lengths: tuple[int, ...],
        missing: Iterable[int],
    ) -> list[Effect]:
        """Begin to fetch the `missing` indexes of `blocks`; `lengths` in bytes, plain."""
        assert manifest not in self._downloads
        download = _Download(blocks, lengths, set(missing))
        self._downloads[manifest] = download
        for index in sorted(download.missing):
            self._wanted.setdefault(blocks[index], []).append((manifest, index))
        return self._fill(now)

    def stop(self, now: float, manifest: ManifestId) -> list[Effect]:
        """Forget a download; what only it wanted is cancelled."""
        download = self._downloads.pop(manifest, None)
        if download is None:
            return []
        for index in sorted(download.missing):
            self._unwant(download.blocks[index], manifest, index)
        cancels: list[Effect] = []
        for wanted, flight in list(self._flights.items()):
            if wanted not in self._wanted:
                self._land(wanted)
                cancels.append(SendCancel(flight.peer, flight.request))
        for peer in self._peers.values():
            peer.holds.pop(manifest, None)
            peer.filling.discard(manifest)
        return list(dict.fromkeys(cancels)) + self._fill(now)

    def moved(self, now: float, manifest: ManifestId, cursor: int) -> list[Effect]:
        """The reader waits for block `cursor`."""
        download = self._downloads.get(manifest)
        if download is None or download.cursor == cursor:
            return []
        download.cursor = cursor
        return self._fill(now)

    def has(
        self,
        now: float,
        peer: PeerId,
        manifest: ManifestId,
        indexes: Iterable[int],
        filling: bool | None = None,
    ) -> list[Effect]:
        """`peer` holds these blocks too; `filling`: whether it is getting the others, None: as
        it said before."""
        download = self._downloads.get(manifest)
        if download is None or peer in self._banned:
            return []
        state = self._peers.setdefault(peer, _Peer())
        held = state.holds.setdefault(manifest, set())
        held.update(index for index in indexes if 0 <= index < len(download.blocks))
        if filling:
            state.filling.add(manifest)
        elif filling is not None or len(held) == len(download.blocks):
            state.filling.discard(manifest)
        download.stuck_said = False
        return self._fill(now)

    def peer_gone(self, now: float, peer: PeerId) -> list[Effect]:
        state = self._peers.pop(peer, None)
        if state is None:
            return []
        for wanted in list(state.owed.values()):
            self._flights.pop(wanted, None)
        return self._fill(now)

    def ban(self, now: float, peer: PeerId) -> list[Effect]:
        """`peer` broke the protocol; nothing of it counts any more."""
        self._banned.add(peer)
        return self.peer_gone(now, peer)

    def arrived(
        self, now: float, peer: PeerId, request: int, index: int, encoded: Encoded
    ) -> list[Effect]:
        """A block from `peer`. It is verified here, before anything else may see it."""
        state = self._peers.get(peer)
        wanted = state.owed.get((request, index)) if state is not None else None
        if state is None or wanted is None:
            return []
        self._credit(now, state, len(encoded.payload))
        self._land(wanted)
        try:
            block = verify(wanted, encoded)
        except BlockCorrupt as error:
            return [Ban(peer, str(error)), *self.ban(now, peer)]
        places = tuple(self._got(wanted))
        return [Keep(block, peer, places), *self._fill(now)]

    def refused(
        self, now: float, peer: PeerId, request: int, indexes: tuple[int, ...]
    ) -> list[Effect]:
        """`peer` will not send these of `request` (all of it when empty)."""
        state = self._peers.get(peer)
        if state is None:
            return []
        for place, wanted in list(state.owed.items()):
            if place[0] == request and (not indexes or place[1] in indexes):
                flight = self._land(wanted)
                state.heard = now
                if flight is not None:
                    state.holds.get(flight.manifest, set()).discard(flight.index)
        return self._fill(now)

    def tick(self, now: float) -> list[Effect]:
        """Take from silent and dripping peers what they owe. Call about every quarter second."""
        effects: list[Effect] = []
        for name, state in list(self._peers.items()):
            if not state.owed:
                continue
            busy = now - state.busy_since
            silent = now - state.heard > SILENCE_SECONDS_MAX
            drips = busy > DRIP_SECONDS_MAX and state.busy_bytes / busy < RATE_MIN_BYTES_PER_SECOND
            if silent or drips:
                state.rests_until = now + REST_SECONDS
                state.rate = max(state.rate / 4, RATE_MIN_BYTES_PER_SECOND)
                requests = sorted({request for request, _ in state.owed})
                for wanted in list(state.owed.values()):
                    self._land(wanted)
                effects += [SendCancel(name, request) for request in requests]
        return effects + self._fill(now)

    def covered(self, manifest: ManifestId) -> bool:
        """Every missing block has a live holder, or a peer that is fetching the whole."""
        download = self._downloads.get(manifest)
        if download is None:
            return False
        if any(manifest in state.filling for state in self._peers.values()):
            return True
        held: set[int] = set()
        for state in self._peers.values():
            held |= state.holds.get(manifest, set())
        return download.missing <= held

    def owed_by(self, peer: PeerId) -> int:
        state = self._peers.get(peer)
        return 0 if state is None else len(state.owed)

    def is_banned(self, peer: PeerId) -> bool:
        return peer in self._banned

    def _credit(self, now: float, state: _Peer, size: int) -> None:
        state.busy_bytes += size
        gap = max(now - state.heard, 1e-4)
        state.heard = now
        state.rate += RATE_WEIGHT * (min(size / gap, 1e9) - state.rate)
        state.rate = max(state.rate, RATE_MIN_BYTES_PER_SECOND)
        state.rests_until = 0.0

    def _land(self, wanted: BlockId) -> _Flight | None:
        flight = self._flights.pop(wanted, None)
        if flight is not None:
            state = self._peers.get(flight.peer)
            place = (flight.request, flight.index)
            if state is not None and state.owed.pop(place, None) is not None:
                state.owed_bytes -= flight.length
        return flight

    def _got(self, wanted: BlockId) -> list[tuple[ManifestId, int]]:
        places = self._wanted.pop(wanted, [])
        for manifest, index in places:
            self._downloads[manifest].missing.discard(index)
        return places

    def _unwant(self, wanted: BlockId, manifest: ManifestId, index: int) -> None:
        places = self._wanted.get(wanted, [])
        if (manifest, index) in places:
            places.remove((manifest, index))
        if not places:
            self._wanted.pop(wanted, None)

    def _fill(self, now: float) -> list[Effect]:
        if self._flights and not any(state.takes_more() for state in self._peers.values()):
            return []  # everybody has enough to do
        asked: dict[tuple[PeerId, ManifestId], list[int]] = {}
        stuck: list[Effect] = []
        for manifest, download in self._downloads.items():
            self._fill_one(now, manifest, download, asked)
            if download.missing and not download.stuck_said and self._is_stuck(manifest, download):
                download.stuck_said = True
                stuck.append(Stuck(manifest))
        return self._wants(now, asked) + stuck

    def _fill_one(
        self,
        now: float,
        manifest: ManifestId,
        download: _Download,
        asked: dict[tuple[PeerId, ManifestId], list[int]],
    ) -> None:
        ready = [
            (name, state)
            for name, state in self._peers.items()
            if manifest in state.holds and state.rests_until <= now and state.takes_more()
        ]
        window = 0
        count = len(download.blocks)
        while download.front < count and download.front not in download.missing:
            download.front += 1
        ahead = max(download.cursor, download.front)
        for index in chain(range(ahead, count), range(download.front, ahead)):
            if not ready or window > WINDOW_BYTES:
                return
            if index not in download.missing:
                continue
            window += download.lengths[index]
            wanted = download.blocks[index]
            if wanted in self._flights:
                continue
            holders = [(n, s) for n, s in ready if index in s.holds[manifest]]
            if not holders:
                continue
            length = download.lengths[index]
            name, state = min(
                holders, key=lambda item: ((item[1].owed_bytes + length) / item[1].rate, item[0])
            )
            self._flights[wanted] = _Flight(name, 0, manifest, index, length, now)
            # A placeholder request number keeps the depth honest until _wants names the real one.
            state.owed[(-1 - len(state.owed), index)] = wanted
            state.owed_bytes += length
            asked.setdefault((name, manifest), []).append(index)
            ready = [(n, s) for n, s in ready if len(s.owed) < s.depth()]

    def _wants(self, now: float, asked: dict[tuple[PeerId, ManifestId], list[int]]) -> list[Effect]:
        effects: list[Effect] = []
        for (name, manifest), indexes in asked.items():
            state = self._peers[name]
            if all(request < 0 for request, _ in state.owed):
                state.heard = state.busy_since = now
                state.busy_bytes = 0
            for place in [place for place in state.owed if place[0] < 0]:
                del state.owed[place]
            for at in range(0, len(indexes), WANT_INDEXES_MAX):
                self._request += 1
                part = tuple(indexes[at : at + WANT_INDEXES_MAX])
                for index in part:
                    wanted = self._downloads[manifest].blocks[index]
                    self._flights[wanted].request = self._request
                    state.owed[(self._request, index)] = wanted
                effects.append(SendWant(name, self._request, manifest, part))
        return effects

    def _is_stuck(self, manifest: ManifestId, download: _Download) -> bool:
        if any(download.blocks[index] in self._flights for index in download.missing):
            return False
        return not any(
            manifest in state.filling or not download.missing.isdisjoint(held)
            for state in self._peers.values()
            if (held := state.holds.get(manifest)) is not None
        )
