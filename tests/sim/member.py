"""One simulated member: the real machines, and what the shells around them do in the product.

Exchange, Fetchers, Questions (whom to blame)    real
sessions, questions, the store                   calls and a dictionary, over links that break
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chunker.block import Codec, Encoded, verify
from chunker.digest import BlockId, ManifestId
from chunker.errors import BlockCorrupt
from chunker.record import PathRecord
from chunker.store import MemoryStore
from peer.catalogue import Catalogue
from peer.effects import Ban, Effect, Keep, SendCancel, SendWant, Stuck
from peer.exchange import Exchange
from peer.fetchers import Fetchers
from peer.growing import Growing, growing_id
from peer.identity import PeerId
from peer.messages import Cancel, Grown, Growth, Refuse, Want
from peer.policies import Policies
from peer.questions import Questions
from tests.sim.answers import Answers
from tests.sim.content import Nar
from tests.sim.jobs import Job

if TYPE_CHECKING:
    from tests.sim.network import Link
    from tests.sim.world import World

TICK_SECONDS = 0.25
FIRST_BYTE_SECONDS_MAX = 3.0
UPSTREAM_SECONDS_MAX = 10.0
"""Of silence; then a download from it is over."""
_EVERYBODY = Policies(
    serves=lambda _: True, asks=lambda _: True, knows=lambda _: True,
    trusted_manifest=lambda _: False, admits=lambda _: True,
)  # fmt: skip


async def _nothing(*_: object) -> None:
    raise AssertionError("the simulation asks no questions through Questions")


class Member:
    def __init__(self, world: World, name: PeerId, rate: float) -> None:
        self.world = world
        self.name = name
        self.rate = rate
        self.share = 0
        """In fetching from the upstream; 0: it has none."""
        self.links: dict[PeerId, Link] = {}
        self.store: dict[BlockId, bytes] = {}
        self.wants: list[Nar] = []
        self.has: list[Nar] = []
        """What it can offer whole, also lies."""
        self.lies = self.is_silent = self.drips = self.floods = self.is_full = False
        self.refuses = ""
        self.lie: dict[str, Nar] = {}
        """By path: what it says that an upstream gave it."""
        self.upstream = ""
        """Empty, or how it fails in the middle of the next NAR."""
        self.is_up = False
        self.life = 0
        self._ticks = self._is_carrying = False
        self._forget()

    def _forget(self) -> None:
        """What is in memory only."""
        self.exchange = Exchange(self.name)
        self.fetchers = Fetchers()
        store = MemoryStore()
        catalogue = Catalogue(store, b"", lambda asker, record: True)
        self.questions = Questions({}, store, catalogue, _EVERYBODY, _nothing, _nothing)
        self.layouts: dict[ManifestId, Nar | Growing] = {nar.id: nar for nar in self.has}
        self.offers: dict[str, PathRecord] = {nar.path: nar.record for nar in self.has}
        self.jobs: list[Job] = []
        self.by_manifest: dict[ManifestId, Job] = {}
        self.fillings: dict[str, Growing] = {}
        self.filled: set[BlockId] = set()
        """Blocks that an upstream brought, of which the exchange hears nothing."""
        self.answers = Answers(self)
        self._effects: deque[Effect] = deque()
        self.world.checks.forget(self)

    # -- its life --------------------------------------------------------------------------------

    def start(self) -> None:
        self.is_up = True
        self.life += 1
        self.has = [nar for nar in self.has if all(b in self.store for b in nar.blocks)]
        self._ticks = False
        self._forget()
        held = {nar.path for nar in self.has}
        self.jobs = [Job(self, nar) for nar in self.wants if nar.path not in held]
        for job in self.jobs:
            self.world.undone(self, job.nar)
            job.seek()

    def stop(self) -> None:
        self.is_up = False
        self.life += 1

    def joined(self, peer: PeerId, link: Link) -> None:
        """A session in both directions is there."""
        self.links[peer] = link
        self.answers.join(peer)
        for job in self.jobs:
            job.joined(peer)

    def left(self, peer: PeerId) -> None:
        if self.links.pop(peer, None) is None:
            return
        self.answers.leave(peer)
        self.world.checks.gone(self, peer)
        self.carry_out(self.exchange.peer_gone(self.world.clock.now, peer))
        for job in self.jobs:
            job.left(peer)

    def tick_soon(self) -> None:
        """As long as a job runs. A little jitter, so that equal deadlines have no fixed order."""
        if not self._ticks:
            self._ticks = True
            jitter = self.world.chance.random() * 0.01
            self.world.clock.later(TICK_SECONDS + jitter, self._tick, self.life)

    def _tick(self, life: int) -> None:
        if life != self.life:
            return
        self._ticks = False
        if self.by_manifest:
            self.world.checks.books_agree(self)
            self.carry_out(self.exchange.tick(self.world.clock.now))
            for job in list(self.by_manifest.values()):
                job.tick()
            self.tick_soon()

    # -- messages --------------------------------------------------------------------------------

    def say(self, peer: PeerId, hears: str, *arguments: Any, size: int) -> None:
        """`hears`: the method of the other that the message ends in."""
        link = self.links.get(peer)
        if link is None:
            return
        self.world.count(size)
        other = self.world.members[peer]
        link.send(self.name, getattr(other, hears), self.name, *arguments)

    def watch(self, peer: PeerId, manifest: ManifestId) -> None:
        self.say(peer, "heard_watch", manifest, size=50)

    def heard_watch(self, peer: PeerId, manifest: ManifestId) -> None:
        self.answers.watch(peer, manifest)

    def heard_want(self, peer: PeerId, message: Want) -> None:
        self.answers.want(peer, message)

    def heard_cancel(self, peer: PeerId, message: Cancel) -> None:
        self.answers.cancel(peer, message)

    def heard_have(
        self, peer: PeerId, manifest: ManifestId, indexes: Sequence[int], filling: bool | None
    ) -> None:
        job = self.by_manifest.get(manifest)
        if job is None:
            return
        if filling is not None:
            job.stuck_since = None
        self.carry_out(self.exchange.has(self.world.clock.now, peer, manifest, indexes, filling))

    def heard_grown(self, peer: PeerId, message: Grown) -> None:
        job = self.by_manifest.get(message.manifest)
        if job is not None and job.owner == peer:
            job.grown(message)

    def heard_refuse(self, peer: PeerId, refusal: Refuse) -> None:
        self.world.checks.refused(self, peer, refusal)
        self.carry_out(
            self.exchange.refused(
                self.world.clock.now, peer, refusal.request, refusal.reason, refusal.indexes
            )
        )

    def heard_block(self, peer: PeerId, request: int, index: int, encoded: Encoded) -> None:
        self.world.note("block", self.name, peer, request, index)
        effects = self.exchange.arrived(self.world.clock.now, peer, request, index, encoded)
        self.world.checks.arrived(self, peer, request, index, encoded, effects)
        self.carry_out(effects)

    def heard_please(self, peer: PeerId, nar: Nar, attempt: int) -> None:
        """Of an asker whose turn we are, it says."""
        if self.is_silent:
            return
        offer = None if self.refuses else self._fetch_for(nar)
        if isinstance(offer, Growing) and not offer.blocks:
            # Bytes come soon or never.
            self.world.clock.later(0.2, self._say_found, peer, nar, attempt, offer, self.life,
                                   self.world.clock.now + FIRST_BYTE_SECONDS_MAX)  # fmt: skip
        else:
            record = offer.record if isinstance(offer, Growing) else offer
            self.say(peer, "heard_found", nar, attempt, record, size=300)

    def _say_found(
        self, peer: PeerId, nar: Nar, attempt: int, growing: Growing, life: int, until: float
    ) -> None:
        if life != self.life:
            return
        now = self.world.clock.now
        if not growing.blocks and growing.state is Growth.GROWING and now < until:
            again = self._say_found, peer, nar, attempt, growing, life, until
            self.world.clock.later(0.2, *again)
            return
        record = growing.record if growing.blocks else None
        self.say(peer, "heard_found", nar, attempt, record, size=300)

    def heard_found(self, peer: PeerId, nar: Nar, attempt: int, record: PathRecord | None) -> None:
        for job in self.jobs:
            if job.nar is nar:
                job.found(peer, attempt, record)

    # -- effects ---------------------------------------------------------------------------------

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """In the order in which the machines said it, also where one effect leads to others."""
        self._effects.extend(effects)
        if self._is_carrying:
            return
        self._is_carrying = True
        while self._effects:
            self._carry_out(self._effects.popleft())
        self._is_carrying = False

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, SendWant):
            self.world.checks.wanted(self, effect)
            want = Want(effect.request, effect.manifest, effect.indexes, effect.urgency)
            self.say(effect.peer, "heard_want", want, size=46 + len(effect.indexes))
        elif isinstance(effect, Keep):
            self._keep(effect)
        elif isinstance(effect, SendCancel):
            self.world.checks.cancelled(self, effect)
            cancel = Cancel(effect.request, effect.indexes)
            self.say(effect.peer, "heard_cancel", cancel, size=12 + len(effect.indexes))
        elif isinstance(effect, Ban):
            self.ban(effect.peer, effect.reason)
        elif isinstance(effect, Stuck) and effect.manifest in self.by_manifest:
            self.by_manifest[effect.manifest].stuck()

    def _keep(self, effect: Keep) -> None:
        """On a full disk every download is over, as `Swarm._not_stored` has it."""
        if self.is_full:
            for job in list(self.by_manifest.values()):
                job.not_stored()
            self.world.checks.not_stored(self, effect)
            return
        block = effect.block
        self.world.checks.kept(self, effect)
        self.store[block.id] = block.data if isinstance(block.data, bytes) else bytes(block.data)
        for manifest, index in effect.places:
            self.answers.note(manifest, index)
            job = self.by_manifest.get(manifest)
            if job is not None:
                job.present(index)

    def read(self, wanted: BlockId) -> bytes | None:
        """Verified, and forgotten if it is rotten, as `BlockStore.get` says."""
        data = self.store.get(wanted)
        if data is None or data is self.world.content.data[wanted]:
            return data  # untouched since it was hashed: to do that again costs a third of the run
        try:
            verify(wanted, Encoded(Codec.RAW, len(data), data))
        except BlockCorrupt:
            del self.store[wanted]
            self.world.checks.rotten_found += 1
            return None
        return data

    def ban(self, peer: PeerId, reason: str) -> None:
        self.world.checks.banned(self, peer, reason)
        self.carry_out(self.exchange.ban(self.world.clock.now, peer))
        self.world.part(self, peer)

    # -- as a holder -----------------------------------------------------------------------------

    def is_filling(self, manifest: ManifestId) -> bool:
        layout = self.layouts.get(manifest)
        ours = isinstance(layout, Growing) and layout.owner == self.name
        return manifest in self.by_manifest or (
            ours and isinstance(layout, Growing) and layout.state is Growth.GROWING
        )

    def watched(self, peer: PeerId, manifest: ManifestId) -> None:
        """Whoever watches what we fetch has, or will have, blocks for us."""
        job = self.by_manifest.get(manifest)
        if job is not None and peer not in job.sources:
            job.sources.append(peer)
            self.watch(peer, manifest)

    def got(self, nar: Nar) -> None:
        """It is whole and was seen to be right."""
        self.has.append(nar)
        self.layouts[nar.id] = nar
        self.offers[nar.path] = nar.record

    # -- as the owner ----------------------------------------------------------------------------

    def _fetch_for(self, nar: Nar) -> Growing | PathRecord | None:
        for held in self.has:
            if held.path == nar.path:
                return held.record
        return self.fill(nar)

    def fill(self, nar: Nar) -> Growing | None:
        """Get it from the upstream, for all; None where there is none, or it just failed."""
        growing = self.fillings.get(nar.path)
        if growing is None and self.share and not self.is_full:
            true = self.lie.get(nar.path, nar)
            growing = Growing(nar.record, self.name)
            assert growing.id == growing_id(nar.record, self.name)
            self.fillings[nar.path] = growing
            self.layouts[growing.id] = growing
            self.offers[nar.path] = growing.record
            self.world.origin_asked(self, nar, growing)
            self._cut_later(true, growing, 0)
        return growing

    def _cut_later(self, nar: Nar, growing: Growing, index: int) -> None:
        seconds = nar.lengths[index] / self.world.wan_rate
        self.world.clock.later(seconds, self._cut, nar, growing, index, self.life)

    def _cut(self, nar: Nar, growing: Growing, index: int, life: int) -> None:
        if life != self.life:
            return
        if self.upstream and index > len(nar.blocks) // 2:
            self._upstream_fails(nar, growing)
            return
        if self.is_full:
            self._filling_fails(nar, growing, self.life)
            return
        wanted = nar.blocks[index]
        self.store[wanted] = self.world.content.data[wanted]
        self.filled.add(wanted)
        growing.extend((wanted,), (nar.lengths[index],))
        whole = index + 1 == len(nar.blocks)
        if whole:
            growing.state, growing.final = Growth.WHOLE, nar.id
            self.got(nar)
            del self.fillings[nar.path]
        else:
            self._cut_later(nar, growing, index + 1)
        self.answers.note(growing.id, index)
        self.answers.grew(growing)
        if whole:
            self.answers.restate(growing.id)
            for job in self.jobs:
                if job.nar.path == nar.path:
                    job.filled()

    def _upstream_fails(self, nar: Nar, growing: Growing) -> None:
        stalls, self.upstream = self.upstream == "stalls", ""
        self.world.owner_changes += 2  # who followed goes elsewhere, who did not asks it again
        if stalls:
            self.world.clock.later(
                UPSTREAM_SECONDS_MAX, self._filling_fails, nar, growing, self.life
            )
        else:
            self._filling_fails(nar, growing, self.life)

    def _filling_fails(self, nar: Nar, growing: Growing, life: int) -> None:
        if life != self.life:
            return
        growing.state = Growth.FAILED
        del self.fillings[nar.path]
        self.offers.pop(nar.path)
        self.answers.grew(growing)
        for job in self.jobs:
            if job.nar.path == nar.path:
                job.filling_failed()
