"""Tier A: many members with real machines, everything else simulated, everything from one seed.

An office of machines that all want the same few NARs. One NAR is at an upstream only, behind those
who offer to fetch; the others are here already, at two members and at all who mean ill. Everybody
has sessions with those who fetch and with some others, 32 in all; what goes wrong is in `faults`,
what must hold in `checks`. At HEAL_SECONDS all that can end ends, and from then on everybody must
complete.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from chunker.digest import ManifestId
from peer.fetchers import Fetchers
from peer.growing import Growing
from peer.identity import PeerId
from tests.sim.answers import Answers
from tests.sim.checks import Checks, Violation
from tests.sim.content import Content, Nar
from tests.sim.faults import BEHAVIOURS, FAULTS, Fault, draw
from tests.sim.flood import flood
from tests.sim.member import Member
from tests.sim.network import Clock, Link

SESSIONS_MAX = 32
BLOCKS = (9, 10, 11, 12) * 4 + (48,)
FETCHERS = 4
NEIGHBOURS = (4, 4, 6, 8, 12)
HOLDERS = 2
START_SECONDS_MAX = 2.0
REDIAL_SECONDS = 0.5
HEAL_SECONDS = 20.0
HEALED_SECONDS_MAX = 90.0
"""After that everybody has everything."""
UPLINKS_BYTES_PER_SECOND = (1_000_000, 3_000_000, 10_000_000)
WANS_BYTES_PER_SECOND = (1_000_000, 3_000_000)
LATENCY_SECONDS = 0.002
ROTTEN_BLOCKS_MAX = 4
"""Of one member, at once."""
__all__ = ["FAULTS", "Outcome", "Violation", "World"]


@dataclass(frozen=True)
class Outcome:
    """What one run came to. `trace`: a digest of every event in order."""

    seed: int
    peers: int
    seconds: float
    events: int
    messages: int
    message_bytes: int
    useful_bytes: int
    honest_bytes: int
    bans: int
    origin_copies: int
    owner_changes: int
    rotten_found: int
    unstored: int
    """Blocks that came to a full disk."""
    queue_most: int
    flights_most: int
    faults: dict[str, int]
    trace: str


class World:
    end_seconds = HEAL_SECONDS + HEALED_SECONDS_MAX

    def __init__(self, seed: int, peers: int, faults: Sequence[str] = FAULTS) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.content = self.make_content()
        self.checks = Checks(seed, self.content)
        self.manifests: dict[ManifestId, Nar] = {nar.id: nar for nar in self.content.all}
        self.owners: dict[ManifestId, PeerId] = {}
        self.wan_rate = self.chance.choice(WANS_BYTES_PER_SECOND)
        self.members: dict[PeerId, Member] = {}
        self.links: list[Link] = []
        self._links_of: dict[str, list[Link]] = {}
        self.messages = self.message_bytes = self.origin_copies = self.owner_changes = 0
        self._banned: set[frozenset[PeerId]] = set()
        self._left: set[PeerId] = set()
        self._undone: set[tuple[PeerId, str]] = set()
        self._ill: set[PeerId] = set()
        self._flooders: set[str] = set()
        self._healed = False
        self._trace = hashlib.sha256()
        self._kinds: Counter[str] = Counter()
        self.set_up(peers, faults)

    # -- set-up ----------------------------------------------------------------------------------

    def make_content(self) -> Content:
        return Content(self.chance, self.chance.choice(BLOCKS))

    def set_up(self, peers: int, faults: Sequence[str]) -> None:
        chance = self.chance
        names = [PeerId(f"peer-{n:05d}") for n in range(peers)]
        for name in names:
            self.members[name] = Member(self, name, chance.choice(UPLINKS_BYTES_PER_SECOND))
        fetchers = names[: max(2, min(FETCHERS, peers // 2))]
        for name in fetchers:
            self.members[name].share = 1024
        owner = self._first_owner(fetchers)
        safe = next(name for name in fetchers if name != owner)
        drawn = draw(chance, [name for name in names if name != safe], owner, faults)
        self._ill = {fault.member for fault in drawn if fault.kind in BEHAVIOURS}
        fine = [name for name in names if name not in self._ill and name not in fetchers]
        holders = [safe, *chance.sample(fine, min(HOLDERS - 1, len(fine)))]
        _, static, small = self.content.all
        for name, member in self.members.items():
            wants = chance.random(), chance.random()
            served = name in fetchers
            member.wants = [self.content.growing]
            member.wants += [static] if served or wants[0] < 0.5 else []
            member.wants += [small] if served or wants[1] < 0.3 else []
            if name in holders or name in self._ill:
                self.hold(member, static)
                self.hold(member, small)
        for fault in drawn:
            self._kinds[fault.kind] += 1
            self._prepare(fault, name_is_holder=fault.member in holders)
        self._connect(names, fetchers)
        for name in names:
            start = chance.random() * START_SECONDS_MAX
            self.clock.at(0.0 if name in fetchers else start, self.start, name)
        self.clock.at(HEAL_SECONDS, self._heal)

    def _first_owner(self, fetchers: Sequence[PeerId]) -> PeerId:
        shares = {name: self.members[name].share for name in fetchers}
        return Fetchers().rank(0.0, self.content.growing.record.nar_hash, shares)[0]

    def _connect(self, names: Sequence[PeerId], fetchers: Sequence[PeerId]) -> None:
        """Everybody knows those who fetch, and by chance some of the others."""
        count = self.chance.choice((*NEIGHBOURS, SESSIONS_MAX - len(fetchers)))
        degree: Counter[PeerId] = Counter()
        others = [name for name in names if name not in fetchers]
        for n, one in enumerate(names):
            if one in fetchers:
                for other in names[n + 1 :]:
                    self.link(one, other)
                continue
            for other in self.chance.sample(others, min(count, len(others))):
                if other > one and max(degree[one], degree[other]) < count:
                    degree.update((one, other))
                    self.link(one, other)

    def link(self, one: PeerId, other: PeerId) -> None:
        latency = LATENCY_SECONDS * (0.5 + self.chance.random())
        link = Link(self.clock, (one, other), latency)
        self.links.append(link)
        for name in (one, other):
            self._links_of.setdefault(name, []).append(link)

    @staticmethod
    def hold(member: Member, nar: Nar) -> None:
        member.has.append(nar)
        member.layouts[nar.id] = nar
        for wanted in nar.blocks:
            member.store[wanted] = member.world.content.data[wanted]

    def _prepare(self, fault: Fault, *, name_is_holder: bool) -> None:
        member = self.members[fault.member]
        match fault.kind:
            case "liar":
                member.lies = True
            case "silent":
                member.is_silent = True
            case "drip":
                member.drips = True
            case "refuses":
                member.refuses = fault.variant
            case "flood":
                member.floods = True
                self._flooders.add(fault.member)
            case "poison":
                self._poison(member)
            case "crash":
                kept = name_is_holder or fault.member in self._ill
                self.clock.at(fault.when, self._crash, fault, "kept" if kept else fault.variant)
            case "owner" if fault.variant != "crash":
                member.upstream = fault.variant
            case _:
                self.clock.at(fault.when, getattr(self, f"_{fault.kind}"), fault)

    def _poison(self, member: Member) -> None:
        growing, static, _ = self.content.all
        for true in (growing, static):
            lie = self.content.lie(true)
            self.manifests[lie.id] = lie
            member.lie[true.path] = lie
        member.has = [nar for nar in member.has if nar.path != static.path]
        self.hold(member, member.lie[static.path])

    # -- the run ---------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Until every honest member has everything. Raises Violation."""
        while self._undone or len(self._left) or not self._began():
            if not self.clock.step():
                self.checks.violated("nothing more happens, and not all are done")
            if self.clock.now > self.end_seconds:
                left = ", ".join(f"{name} {path[:6]}" for name, path in sorted(self._undone))
                self.checks.violated(f"not done after {self.clock.now:.0f} s: {left}")
        self.checks.ended(
            list(self.members.values()), copies=self.origin_copies,
            owner_changes=self.owner_changes,
        )  # fmt: skip
        checks = self.checks
        return Outcome(
            self.seed, len(self.members), self.clock.now, self.clock.events, self.messages,
            self.message_bytes, checks.useful_bytes, checks.honest_bytes, checks.bans,
            self.origin_copies, self.owner_changes, checks.rotten_found, checks.unstored,
            checks.queue_most, checks.flights_most,
            dict(sorted(self._kinds.items())), self._trace.hexdigest(),
        )  # fmt: skip

    def _began(self) -> bool:
        return self.clock.now > START_SECONDS_MAX

    def note(self, *words: object) -> None:
        self._trace.update(f"{self.clock.now:.6f} {words}\n".encode())

    def count(self, size: int) -> None:
        self.messages += 1
        self.message_bytes += size

    def is_flooder(self, name: PeerId) -> bool:
        """Also when it is healed: what it asked for still waits everywhere."""
        return name in self._flooders

    def undone(self, member: Member, nar: Nar) -> None:
        if member.name not in self._ill:
            self._undone.add((member.name, nar.path))

    def done(self, member: Member, nar: Nar) -> None:
        self.note("done", member.name, nar.path)
        if all(wanted in member.store for wanted in nar.blocks):
            self._undone.discard((member.name, nar.path))

    def origin_asked(self, member: Member, nar: Nar, growing: Growing) -> None:
        self.note("origin", member.name, nar.path)
        self.origin_copies += nar is self.content.growing
        self.owners[growing.id] = member.name
        if member.name in self._ill:
            self.owner_changes += 1  # sooner or later it will not be good enough for somebody

    # -- lives and links -------------------------------------------------------------------------

    def start(self, name: PeerId) -> None:
        member = self.members[name]
        if member.is_up:
            return
        self.note("start", name)
        self._left.discard(name)
        self.owner_changes += bool(member.share) and self.clock.now > 0.0
        member.start()
        for link in self._links_of.get(name, ()):
            self._open(link)
        if member.floods:
            flood(self, member, member.life)

    def _open(self, link: Link) -> None:
        one, other = (self.members[name] for name in link.ends)
        banned = frozenset(link.ends) in self._banned
        if link.is_up or banned or not (one.is_up and other.is_up):
            return
        link.is_up = True
        one.joined(other.name, link)
        other.joined(one.name, link)

    def _cut(self, link: Link, *, again: bool) -> None:
        if not link.is_up:
            return
        self.note("cut", *link.ends)
        link.cut()
        one, other = (self.members[name] for name in link.ends)
        if one.share or other.share:
            self.owner_changes += 1
        one.left(other.name)
        other.left(one.name)
        if again:
            pause = REDIAL_SECONDS * (1 + self.chance.random())
            self.clock.later(pause, self._open, link)

    def part(self, member: Member, peer: PeerId) -> None:
        """`member` banned `peer`: neither will have a session with the other."""
        self._banned.add(frozenset((member.name, peer)))
        link = member.links.get(peer)
        if link is not None:
            self._cut(link, again=False)

    def _down(self, member: Member) -> None:
        self.note("down", member.name)
        member.stop()
        for link in list(member.links.values()):
            self._cut(link, again=False)

    # -- faults that are events ------------------------------------------------------------------

    def _loss(self, fault: Fault) -> None:
        links = list(self.members[fault.member].links.values())
        if links and not self._healed:
            self._cut(self.chance.choice(links), again=True)

    def _delay(self, fault: Fault) -> None:
        for link in self.members[fault.member].links.values():
            link.latency += 0.5 * self.chance.random()

    def _clog(self, fault: Fault) -> None:
        member = self.members[fault.member]
        self.owner_changes += bool(member.share)
        for link in member.links.values():
            link.hold(member.name, self.clock.now + fault.seconds)

    def _partition(self, fault: Fault) -> None:
        member = self.members[fault.member]
        self.owner_changes += bool(member.share)
        for link in list(member.links.values())[::2]:
            link.hold(member.name, float("inf"))
            self.clock.later(fault.seconds, self._give_up, link, link.life)

    def _give_up(self, link: Link, life: int) -> None:
        if link.life == life:
            self._cut(link, again=True)

    def _crash(self, fault: Fault, store: str) -> None:
        member = self.members[fault.member]
        if self._healed or not member.is_up:
            return
        self._down(member)
        blocks = list(member.store)
        lost = {"kept": [], "lost": blocks, "torn": blocks[len(blocks) // 2 :]}[store]
        for wanted in lost:
            del member.store[wanted]
        self._left.add(member.name)
        self.clock.later(fault.seconds, self.start, member.name)

    def _leaves(self, fault: Fault) -> None:
        member = self.members[fault.member]
        if not self._healed and member.is_up:
            self._down(member)
            self._left.add(member.name)

    def _owner(self, fault: Fault) -> None:
        """Crash in the middle of what it gets for all, whenever that is."""
        member = self.members[fault.member]
        growing = member.fillings.get(self.content.growing.path)
        if growing is not None and growing.bytes_known > growing.nar_size // 3:
            self._crash(fault, "kept")
        elif not self._healed:
            self.clock.later(0.05, self._owner, fault)

    def _rots(self, fault: Fault) -> None:
        member = self.members[fault.member]
        self.owner_changes += 2 * bool(member.share)  # what it held for all is lost to some
        held = list(member.store)
        for wanted in self.chance.sample(held, min(len(held), ROTTEN_BLOCKS_MAX)):
            data = member.store[wanted]
            member.store[wanted] = bytes([data[0] ^ 1]) + data[1:]
            self.checks.rots(member, wanted)

    def _full(self, fault: Fault) -> None:
        member = self.members[fault.member]
        self.owner_changes += 2 * bool(member.share)
        member.is_full = not self._healed
        self.clock.later(fault.seconds, self._cleared, member)

    @staticmethod
    def _cleared(member: Member) -> None:
        member.is_full = False

    def _heal(self) -> None:
        self._healed = True
        self.note("heal")
        for member in self.members.values():
            member.is_silent = member.drips = member.floods = member.is_full = False
            member.refuses = ""
            if not member.is_up:
                self.start(member.name)
            assert isinstance(member.answers, Answers)
            member.answers.serve()
        for link in self.links:
            link.latency = min(link.latency, 2 * LATENCY_SECONDS)
            self._open(link)
