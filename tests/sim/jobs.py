"""One NAR that a simulated member wants: where it gets it from, and what it does when that ends.

    seek --somebody offers it----------------------> fetching (Exchange)
         --it grows behind a connected owner-------> following (Exchange, Growing)
         --nobody has it: Fetchers.rank says who---> filling ourselves, or Please and following
    fetching, following --whole and right----------> done
                        --whole and wrong----------> blame who named it, seek
                        --owner lost, stuck--------> seek

This is `gateway/delivery.py`, `peer/fetch.py` and `peer/following.py` without their shells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chunker.digest import ManifestId
from chunker.record import PathRecord
from peer.errors import RemoteError
from peer.fetch import STUCK_SECONDS_MAX
from peer.following import OWNER_SECONDS_MAX, STARVED_SECONDS_MAX
from peer.growing import Growing, blocks_max, growing_id
from peer.identity import PeerId
from peer.messages import Grown, Growth
from peer.picker import DEALT_BYTES_MIN
from tests.sim.content import Nar, nar_hash_of

if TYPE_CHECKING:
    from tests.sim.member import Member

ANSWER_SECONDS = 0.02
"""Until all who were asked have said what they have."""
PLEASE_SECONDS_MAX = 4.0
AGAIN_SECONDS = 1.5
"""Until Nix, or its user, asks once more."""


class Job:
    def __init__(self, member: Member, nar: Nar) -> None:
        self.nar = nar
        self.owner: PeerId | None = None
        self.sources: list[PeerId] = []
        self.stuck_since: float | None = None
        self._member = member
        self._world = member.world
        self._id: ManifestId | None = None
        self._layout: Nar | Growing | None = None
        self._missing: set[int] = set()
        self._cursor = 0
        self._cursor_since = self._heard = 0.0
        self._tried: set[PeerId] = set()
        """As holders; `_turned`: as owners."""
        self._turned: set[PeerId] = set()
        self._asked: PeerId | None = None
        self._attempt = 0
        self._is_filling = self._is_done = False

    # -- whom to have it from --------------------------------------------------------------------

    def seek(self) -> None:
        self._attempt += 1
        for _ in self._member.links:
            self._world.count(40)
            self._world.count(300)
        self._world.clock.later(ANSWER_SECONDS, self._choose, self._attempt, self._member.life)

    def _again(self) -> None:
        self._attempt += 1
        self._tried.clear()
        self._turned.clear()
        pause = AGAIN_SECONDS * (0.5 + self._world.chance.random())
        self._world.clock.later(pause, self._seek_again, self._attempt, self._member.life)

    def _seek_again(self, attempt: int, life: int) -> None:
        if (attempt, life) == (self._attempt, self._member.life):
            self.seek()

    def _choose(self, attempt: int, life: int) -> None:
        if (attempt, life) != (self._attempt, self._member.life):
            return
        offers = [
            (peer, offer)
            for peer in sorted(self._member.links)
            if peer not in self._tried
            and (offer := self._world.members[peer].offers.get(self.nar.path)) is not None
        ]
        for _, offer in offers:
            owner = self._world.owners.get(offer.manifest)
            if owner in self._member.links and owner not in self._turned:
                self._follow(owner)
                return
        self._tried.update(peer for peer, _ in offers)
        known = [o for o in offers if o[1].manifest in self._world.manifests]
        ranked = self._member.questions.ranked(self.nar.record, known)
        if ranked:
            manifest, peers = ranked[0]
            self._fetch(manifest, peers)
        else:
            self._ask_upstream()

    def _ask_upstream(self) -> None:
        member, world = self._member, self._world
        shares = {peer: world.members[peer].share for peer in member.links}
        shares[member.name] = member.share
        now = world.clock.now
        for owner in member.fetchers.rank(now, self.nar.record.nar_hash, shares):
            if owner in self._turned:
                continue
            self._turned.add(owner)
            if owner == member.name:
                if member.fill(self.nar) is None:
                    continue
                self._is_filling = True
                return
            self._asked = owner
            member.say(owner, "heard_please", self.nar, self._attempt, size=400)
            world.clock.later(
                PLEASE_SECONDS_MAX, self.found, owner, self._attempt, None, member.life
            )
            return
        self._again()

    def found(
        self, peer: PeerId, attempt: int, record: PathRecord | None, life: int | None = None
    ) -> None:
        """The answer to our Please; None: a no, or silence."""
        if attempt != self._attempt or self._asked != peer:
            return
        if life is not None and life != self._member.life:
            return
        self._asked = None
        if record is None:
            self._member.fetchers.failed(self._world.clock.now, peer)
            self._ask_upstream()
        elif record.manifest == growing_id(self.nar.record, peer):
            self._follow(peer)
        elif self._member.questions.ranked(self.nar.record, [(peer, record)]):
            self._fetch(record.manifest, [peer])
        else:
            self._ask_upstream()

    # -- having it -------------------------------------------------------------------------------

    def _fetch(self, manifest: ManifestId, peers: list[PeerId]) -> None:
        nar = self._world.manifests[manifest]
        held = self._member.store
        self._begin(nar, manifest, peers)
        self._missing = {n for n, wanted in enumerate(nar.blocks) if wanted not in held}
        now, member = self._world.clock.now, self._member
        member.carry_out(
            member.exchange.start(now, manifest, nar.blocks, nar.lengths, sorted(self._missing))
        )
        self._after_start(nar.record.nar_size)

    def _follow(self, owner: PeerId) -> None:
        self.owner = owner
        growing = Growing(self.nar.record, owner)
        self._turned.add(owner)
        self._begin(growing, growing.id, [owner])
        now, member = self._world.clock.now, self._member
        member.carry_out(
            member.exchange.start(
                now, growing.id, (), (), (), blocks_max=blocks_max(growing.nar_size),
                nar_bytes=growing.nar_size, source=owner,
            )
        )  # fmt: skip
        self._after_start(growing.nar_size)

    def _begin(self, layout: Nar | Growing, manifest: ManifestId, sources: list[PeerId]) -> None:
        member = self._member
        self._attempt += 1
        self._layout, self._id, self.sources = layout, manifest, list(sources)
        self._cursor, self.stuck_since = 0, None
        self._cursor_since = self._heard = self._world.clock.now
        member.layouts[manifest] = layout
        member.by_manifest[manifest] = self
        member.offers[self.nar.path] = layout.record

    def _after_start(self, nar_size: int) -> None:
        member = self._member
        assert self._id is not None
        fellows = list(member.links) if nar_size >= DEALT_BYTES_MIN else []
        for peer in dict.fromkeys([*self.sources, *fellows]):
            member.watch(peer, self._id)
        member.tick_soon()
        self._progress()

    def grown(self, message: Grown) -> None:
        growing, member, now = self._layout, self._member, self._world.clock.now
        assert isinstance(growing, Growing) and self.owner is not None
        self._heard = now
        try:
            new = growing.apply(message)
        except RemoteError as error:
            member.ban(self.owner, str(error))
            return
        ids = growing.blocks[new.start : new.stop]
        missing = [i for i, wanted in zip(new, ids, strict=True) if wanted not in member.store]
        self._missing.update(missing)
        if growing.state is Growth.FAILED:
            self._fail()
            return
        effects = member.exchange.grow(
            now, growing.id, ids, growing.lengths[new.start : new.stop], missing,
            whole=growing.state is Growth.WHOLE,
        )  # fmt: skip
        member.carry_out(effects + member.exchange.has(now, self.owner, growing.id, new))
        self._progress()

    def present(self, index: int) -> None:
        self._missing.discard(index)
        self._progress()

    def _progress(self) -> None:
        """The reader goes on as far as blocks are here."""
        layout, member, now = self._layout, self._member, self._world.clock.now
        if layout is None or self._id is None:
            return
        cursor, known = self._cursor, len(layout.blocks)
        while cursor < known and cursor not in self._missing:
            cursor += 1
        if cursor != self._cursor:
            self._cursor, self._cursor_since = cursor, now
            member.carry_out(member.exchange.moved(now, self._id, cursor))
        if cursor == known and (isinstance(layout, Nar) or layout.state is Growth.WHOLE):
            self._whole()

    def tick(self) -> None:
        now, growing = self._world.clock.now, self._layout
        if self.stuck_since is not None and now >= self.stuck_since + STUCK_SECONDS_MAX:
            self._fail()
        elif isinstance(growing, Growing):
            waits = self._cursor >= len(growing.blocks) and growing.state is Growth.GROWING
            if (waits and now >= self._heard + OWNER_SECONDS_MAX) or (
                now >= self._cursor_since + STARVED_SECONDS_MAX
            ):
                self._fail()

    def stuck(self) -> None:
        if self.stuck_since is None:
            self.stuck_since = self._world.clock.now

    def joined(self, peer: PeerId) -> None:
        """Somebody came while we fetch."""
        offer = self._world.members[peer].offers.get(self.nar.path)
        if self._id is not None and offer is not None and offer.manifest == self._id:
            self.sources.append(peer)
            self._member.watch(peer, self._id)

    def left(self, peer: PeerId) -> None:
        growing = self._layout
        if self._asked == peer:
            self.found(peer, self._attempt, None)
        elif (
            isinstance(growing, Growing) and self.owner == peer and growing.state is Growth.GROWING
        ):
            self._fail()

    def filled(self) -> None:
        """By ourselves, from the upstream."""
        self._is_filling = False
        if self._id is not None:
            self._end()
        self._read()

    def filling_failed(self) -> None:
        if self._is_filling:
            self._is_filling = False
            self._again()

    # -- ends ------------------------------------------------------------------------------------

    def _whole(self) -> None:
        layout, manifest = self._layout, self._id
        assert layout is not None and manifest is not None
        wrong = nar_hash_of(layout.blocks) != self.nar.record.nar_hash
        sources, owner = self.sources, self.owner
        self._end()
        if not wrong:
            self._member.got(self.nar)
            self._member.answers.restate(manifest)
            self._read()
            return
        for source in sources:
            self._member.questions.blame(source, manifest)
        if owner is not None:
            self._member.fetchers.failed(self._world.clock.now, owner)
        self._again() if owner is None else self.seek()

    def not_stored(self) -> None:
        """The disk is full: Nix is told so, and asks again."""
        self._end()
        self._again()

    def _read(self) -> None:
        """All of it, as the reader does; it asks again where a block is rotten."""
        if all([self._member.read(wanted) is not None for wanted in self.nar.blocks]):
            self._done()
        else:
            self._again()

    def _fail(self) -> None:
        growing, owner = self._layout, self.owner
        self._end()
        if owner is not None and isinstance(growing, Growing):
            self._member.fetchers.failed(self._world.clock.now, owner)
        self.seek()

    def _end(self) -> None:
        member, manifest = self._member, self._id
        assert manifest is not None
        del member.by_manifest[manifest]
        offer = member.offers.get(self.nar.path)
        if offer is not None and offer.manifest == manifest:
            del member.offers[self.nar.path]
        self._id = self._layout = self.owner = self.stuck_since = None
        self._missing = set()
        member.carry_out(member.exchange.stop(self._world.clock.now, manifest))

    def _done(self) -> None:
        if not self._is_done:
            self._is_done = True
            self._attempt += 1
            self._world.done(self._member, self.nar)
