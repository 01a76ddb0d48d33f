"""The exchange: which missing block to ask of which peer. Pure; `now` and events in, effects out.

It keeps the books of all downloads (`picker.Download`: what is missing, what nobody was asked for),
of all peers (`standing.Standing`: what each holds, owes, and how fast it was), and one table of
blocks in flight shared by all downloads, so that a block is asked for once however many NARs
contain it. Whom to ask for which block is `picker`'s to say.

| event             | what it does                                                          |
|-------------------|-----------------------------------------------------------------------|
| start, grow, has, moved | new work or new holders: fill every peer up to its depth        |
| arrived, good     | Keep it, cancel its second copy, credit the peer's rate, ask for more |
| arrived, bad      | Ban the sender, ask somebody else                                     |
| arrived, uncalled | ignored: a late answer to a cancelled request is no crime             |
| refused           | that peer does not hold that block; ask somebody else                 |
| peer_gone         | everything it owed is asked of others                                 |
| tick              | a silent or dripping peer loses what it owes and rests for a while; a |
|                   | late block is asked of a second holder                                |

A download none of whose missing blocks has a holder is Stuck; its owner finds another source or
gives up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sortedcontainers import SortedSet

from chunker.block import Encoded, verify
from chunker.digest import BlockId, ManifestId
from chunker.errors import BlockCorrupt

from .effects import Ban, Effect, Keep, SendCancel, SendWant, Stuck
from .identity import PeerId
from .messages import WANT_INDEXES_MAX, Urgency
from .picker import Download, Flight, choose, is_stuck, second_holder
from .standing import Standing

NEWS_MAX = 64
"""That many blocks are looked at by themselves; beyond, the whole download is."""


class Exchange:
    """All downloads of one process. Every method returns the effects to carry out, in order."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._downloads: dict[ManifestId, Download] = {}
        self._peers: dict[PeerId, Standing] = {}
        self._flights: dict[BlockId, list[Flight]] = {}
        self._wanted: dict[BlockId, list[tuple[ManifestId, int]]] = {}
        self._request = 0
        self._banned: set[PeerId] = set()

    # -- downloads ------------------------------------------------------------------------------

    def start(
        self,
        now: float,
        manifest: ManifestId,
        blocks: Sequence[BlockId],
        lengths: Sequence[int],
        missing: Iterable[int],
        *,
        blocks_max: int | None = None,
        nar_bytes: int | None = None,
        source: PeerId | None = None,
        members: Iterable[PeerId] = (),
    ) -> list[Effect]:
        """Begin to fetch the `missing` indexes of `blocks`; `lengths` in bytes, plain. With
        `source`, the owner of a growing manifest, more may come until `grow` says that is all: at
        most `blocks_max` of together `nar_bytes`; `members` may fetch it too."""
        assert manifest not in self._downloads
        download = Download(
            manifest, [], [], set(), SortedSet(),
            sum(lengths) if nar_bytes is None else nar_bytes,
            len(blocks) if blocks_max is None else blocks_max,
            source, now, frozenset(members),
        )  # fmt: skip
        self._downloads[manifest] = download
        return self.grow(now, manifest, blocks, lengths, missing, whole=source is None)

    def grow(
        self,
        now: float,
        manifest: ManifestId,
        blocks: Sequence[BlockId],
        lengths: Sequence[int],
        missing: Iterable[int],
        *,
        whole: bool,
    ) -> list[Effect]:
        """More blocks at the end of a growing manifest; `missing` are indexes into the whole."""
        download = self._downloads.get(manifest)
        if download is None:
            return []
        assert len(download.blocks) + len(blocks) <= download.blocks_max
        download.blocks += blocks
        download.lengths += lengths
        download.whole = whole
        if whole:
            download.blocks_max = len(download.blocks)
            for state in self._peers.values():
                state.holds_at_most(manifest, download.blocks_max)
        for index in missing:
            wanted = download.blocks[index]
            download.missing.add(index)
            if wanted not in self._flights:
                download.open.add(index)
            self._wanted.setdefault(wanted, []).append((manifest, index))
        return self._fill(now, only=download)

    def stop(self, now: float, manifest: ManifestId) -> list[Effect]:
        """Forget a download; what only it wanted is cancelled."""
        download = self._downloads.pop(manifest, None)
        if download is None:
            return []
        for index in sorted(download.missing):
            self._unwant(download.blocks[index], manifest, index)
        ended: dict[tuple[PeerId, int], list[int]] = {}
        for wanted in list(self._flights):
            if wanted not in self._wanted:
                for flight in self._land(wanted):
                    ended.setdefault((flight.peer, flight.request), []).append(flight.index)
        for peer in self._peers.values():
            peer.holds.pop(manifest, None)
            peer.filling.discard(manifest)
        return [self._cancel(*place, indexes) for place, indexes in ended.items()] + self._fill(now)

    def moved(self, now: float, manifest: ManifestId, cursor: int) -> list[Effect]:
        """The reader waits for block `cursor`."""
        download = self._downloads.get(manifest)
        if download is not None:
            download.cursor = cursor  # what is asked next follows it
        return []

    def covered(self, manifest: ManifestId) -> bool:
        """Every missing block has a live holder, or a peer that is fetching the whole."""
        download = self._downloads.get(manifest)
        if download is None:
            return False
        if any(manifest in state.filling for state in self._peers.values()):
            return True
        held = (state.holds.get(manifest, ()) for state in self._peers.values())
        return download.whole and download.missing <= set().union(*held)

    # -- peers ----------------------------------------------------------------------------------

    def has(
        self,
        now: float,
        peer: PeerId,
        manifest: ManifestId,
        indexes: Iterable[int],
        filling: bool | None = None,
    ) -> list[Effect]:
        """`peer` holds these blocks too; `filling`: whether it is getting the others, None: as
        it said before. Indexes beyond a growing manifest are kept for when it has grown."""
        download = self._downloads.get(manifest)
        if download is None or peer in self._banned:
            return []
        state = self._peers.setdefault(peer, Standing())
        state.told = now
        held = state.holds.setdefault(manifest, set())
        effects: list[Effect] = []
        news: list[int] = []
        if isinstance(held, set):
            news = [index for index in indexes if 0 <= index < download.blocks_max]
            held.update(news)
            if state.open_blocks():
                effects += self._take_back(peer, download, news)
        if filling:
            state.filling.add(manifest)
        elif filling is not None:
            state.filling.discard(manifest)
        if download.whole and len(held) >= len(download.blocks):
            state.holds[manifest] = range(len(download.blocks))
        download.stuck_said = False
        download.hopes = download.hopes or bool(news)
        if filling is None and len(news) <= NEWS_MAX:
            return effects + self._fill(now, {peer: state}, download, news)
        return effects + self._fill(now, only=download)

    def peer_gone(self, now: float, peer: PeerId) -> list[Effect]:
        state = self._peers.pop(peer, None)
        if state is None:
            return []
        for wanted in [*state.owed.values(), *state.spare.values()]:
            self._land(wanted, peer)
        return self._fill(now)

    def ban(self, now: float, peer: PeerId) -> list[Effect]:
        """`peer` broke the protocol; nothing of it counts any more."""
        self._banned.add(peer)
        if (state := self._peers.get(peer)) is not None:
            for manifest in state.holds:
                self._downloads[manifest].hopes = False
        return self.peer_gone(now, peer)

    def arrived(
        self, now: float, peer: PeerId, request: int, index: int, encoded: Encoded
    ) -> list[Effect]:
        """A block from `peer`. It is verified here, before anything else may see it."""
        state = self._peers.get(peer)
        if state is None:
            return []
        wanted = state.owed.get((request, index)) or state.spare.get((request, index))
        if wanted is None:
            return []
        try:
            block = verify(wanted, encoded)
        except BlockCorrupt as error:
            return [Ban(peer, str(error)), *self.ban(now, peer)]
        copies: list[Effect] = []
        for flight in self._flights.pop(wanted):
            self._peers[flight.peer].over(flight.request, flight.index, flight.length)
            if flight.peer == peer:
                asked = None if flight.spare else now - flight.since
                state.gave(now, len(encoded.payload), asked)
            else:
                copies.append(SendCancel(flight.peer, flight.request, (flight.index,)))
        keep = Keep(block, peer, tuple(self._got(wanted)))
        if not state.free_blocks():
            return [keep, *copies]
        return [keep, *copies, *self._fill(now, {peer: state})]

    def refused(
        self, now: float, peer: PeerId, request: int, reason: str, indexes: tuple[int, ...]
    ) -> list[Effect]:
        """`peer` will not send these of `request` (all of it when empty): it does not have them,
        or, for any other reason, not now."""
        state = self._peers.get(peer)
        if state is None:
            return []
        for place, wanted in [*state.owed.items(), *state.spare.items()]:
            if place[0] == request and (not indexes or place[1] in indexes):
                state.heard = now
                for flight in self._land(wanted, peer):
                    if reason == "not-here":
                        held = state.holds.get(flight.manifest, set())
                        state.holds[flight.manifest] = set(held) - {flight.index}
                    else:
                        state.pause(now)
        return self._fill(now)

    def tick(self, now: float) -> list[Effect]:
        """Take from silent and dripping peers what they owe, and ask for late blocks a second
        time. Call about every quarter second."""
        effects: list[Effect] = []
        for name, state in list(self._peers.items()):
            if state.fails(now):
                requests = sorted({request for request, _ in state.owed})
                state.rest(now)
                for wanted in list(state.owed.values()):
                    self._land(wanted, name)
                effects += [SendCancel(name, request) for request in requests]
        return effects + self._copies(now) + self._fill(now)

    def holds(self, peer: PeerId, manifest: ManifestId, index: int) -> bool:
        """Whether `peer` said so."""
        state = self._peers.get(peer)
        return state is not None and index in state.holds.get(manifest, ())

    def fills(self, peer: PeerId, manifest: ManifestId) -> bool:
        return peer in self._peers and manifest in self._peers[peer].filling

    def owed_by(self, peer: PeerId) -> int:
        state = self._peers.get(peer)
        return 0 if state is None else len(state.owed)

    def is_banned(self, peer: PeerId) -> bool:
        return peer in self._banned

    # -- books ----------------------------------------------------------------------------------

    def _ask(
        self, now: float, download: Download, index: int, name: PeerId, request: int, spare: bool
    ) -> None:
        state, length = self._peers[name], download.lengths[index]
        wanted = download.blocks[index]
        due = now + state.seconds_for(length)
        flight = Flight(name, request, download.manifest, index, length, now, spare, due)
        self._flights.setdefault(wanted, []).append(flight)
        if spare:
            state.spare[(request, index)] = wanted
        else:
            if not state.owed:
                state.asked(now)
            state.owed[(request, index)] = wanted
            state.owed_bytes += length
        download.asked += 1
        download.waits.pop(index, None)
        for manifest, place in self._wanted[wanted]:
            self._downloads[manifest].open.discard(place)

    def _land(self, wanted: BlockId, peer: PeerId | None = None) -> list[Flight]:
        """End the flights of a block, or only that from `peer`. Where none is left, the block is
        open again."""
        flights = self._flights.pop(wanted, [])
        ended = [flight for flight in flights if peer is None or flight.peer == peer]
        left = [flight for flight in flights if not (peer is None or flight.peer == peer)]
        for flight in ended:
            if (state := self._peers.get(flight.peer)) is not None:
                state.over(flight.request, flight.index, flight.length)
        if left:
            self._flights[wanted] = left
        else:
            for manifest, index in self._wanted.get(wanted, ()):
                self._downloads[manifest].open.add(index)
        return ended

    def _cancel(self, peer: PeerId, request: int, indexes: list[int]) -> Effect:
        """All of a request, unless another download waits for a block of it."""
        state = self._peers[peer]
        waits = any(number == request for number, _ in (*state.owed, *state.spare))
        return SendCancel(peer, request, tuple(indexes) if waits else ())

    def _got(self, wanted: BlockId) -> list[tuple[ManifestId, int]]:
        """A block that was in flight came; so it is open nowhere."""
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

    def _take_back(self, peer: PeerId, download: Download, news: list[int]) -> list[Effect]:
        """A fellow has what a source was to send only if it has room: have it from the fellow."""
        effects: list[Effect] = []
        for index in news:
            flights = (
                self._flights.get(download.blocks[index]) if index < len(download.blocks) else ()
            )
            if flights and flights[0].spare and flights[0].peer != peer:
                spare = flights[0]
                self._land(download.blocks[index], spare.peer)
                effects.append(SendCancel(spare.peer, spare.request, (spare.index,)))
        return effects

    def _fill(
        self,
        now: float,
        peers: dict[PeerId, Standing] | None = None,
        only: Download | None = None,
        indexes: list[int] | None = None,
    ) -> list[Effect]:
        """Ask for what can be asked for: of all peers or of `peers`, for all downloads or one, of
        all its blocks or of `indexes`. The narrow calls are for what happens often."""
        batches: dict[tuple[PeerId, ManifestId, Urgency], tuple[int, list[int]]] = {}
        effects: list[Effect] = []
        stuck: list[Effect] = []
        downloads = self._downloads.values() if only is None else (only,)
        for download in downloads:
            manifest = download.manifest
            chosen = choose(now, self._me, download, self._peers, peers, indexes)
            for index, name, urgency in chosen:
                key = name, manifest, urgency
                if key not in batches or len(batches[key][1]) >= WANT_INDEXES_MAX:
                    if key in batches:
                        effects.append(_want(key, *batches[key]))
                    self._request += 1
                    batches[key] = self._request, []
                request, batch = batches[key]
                self._ask(now, download, index, name, request, urgency is Urgency.SPARE)
                batch.append(index)
            if (
                download.missing
                and not download.stuck_said
                and is_stuck(now, download, self._peers)
            ):
                download.stuck_said = True
                stuck.append(Stuck(manifest))
        return effects + [_want(key, *batch) for key, batch in batches.items()] + stuck

    def _copies(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for flights in list(self._flights.values()):
            download = self._downloads.get(flights[0].manifest)
            if download is None or len(flights) > 1:
                continue
            found = second_holder(now, download, flights[0], self._peers)
            if found is not None:
                self._request += 1
                index = flights[0].index
                download.copies += 1
                self._ask(now, download, index, found[0], self._request, False)
                effects.append(
                    SendWant(found[0], self._request, download.manifest, (index,), Urgency.SOON)
                )
        return effects


def _want(key: tuple[PeerId, ManifestId, Urgency], request: int, indexes: list[int]) -> SendWant:
    name, manifest, urgency = key
    return SendWant(name, request, manifest, tuple(indexes), urgency)
