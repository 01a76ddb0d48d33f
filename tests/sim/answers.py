"""The answering half of a simulated member: who watches, who is served, and one line out.

Serving and Uplink are the real ones. Around them is what `peer/answering.py` and `peer/sending.py`
are in the product: news every 50 ms, turns that go to a socket, and a block at a time that leaves.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chunker.block import Codec, Encoded
from chunker.digest import ManifestId
from peer.growing import Growing
from peer.identity import PeerId
from peer.messages import Cancel, Growth, Refuse, Want
from peer.serving import Due, Serving, Uplink

if TYPE_CHECKING:
    from tests.sim.member import Member

NEWS_SECONDS = 0.1
SIGN_SECONDS = 1.0
LOOK_AGAIN_SECONDS = 0.1
DRIP_BYTES_PER_SECOND = 8 * 1024


@dataclass(slots=True)
class Session:
    """One peer that we serve. `told`: how many blocks of a growing manifest it knows."""

    peer: PeerId
    number: int
    serving: Serving = field(default_factory=Serving)
    watches: set[ManifestId] = field(default_factory=set)
    told: dict[ManifestId, int] = field(default_factory=dict)
    news: dict[ManifestId, list[int]] = field(default_factory=dict)
    over: set[ManifestId] = field(default_factory=set)
    signed: float = float("-inf")


class Answers:
    def __init__(self, member: Member) -> None:
        self.sessions: dict[PeerId, Session] = {}
        self._member = member
        self._world = member.world
        self._uplink = Uplink()
        self._numbers: dict[int, Session] = {}
        self._number = 0
        self._line: deque[tuple[Session, Due, bool]] = deque()
        self._is_sending = False
        self._looks_again = False
        self._news_due = False

    def join(self, peer: PeerId) -> None:
        self._number += 1
        session = self.sessions[peer] = self._numbers[self._number] = Session(peer, self._number)
        self._uplink.join(self._number, session.serving)

    def leave(self, peer: PeerId) -> None:
        session = self.sessions.pop(peer, None)
        if session is not None:
            del self._numbers[session.number]
            self._uplink.leave(session.number)

    # -- what it is told -------------------------------------------------------------------------

    def watch(self, peer: PeerId, manifest: ManifestId) -> None:
        session = self.sessions[peer]
        layout = self._member.layouts.get(manifest)
        if layout is None:
            return  # a Refuse, which means nothing to the asker
        session.watches.add(manifest)
        session.told.pop(manifest, None)
        session.over.discard(manifest)
        self._member.watched(peer, manifest)
        if isinstance(layout, Growing) and layout.owner == self._member.name:
            self._say_growth(session, layout)
        self._say_have(session, manifest)

    def note(self, manifest: ManifestId, index: int) -> None:
        """A block came in: tell who watches and has not said that it holds it."""
        self._world.checks.told(self._member, manifest, index)
        holds = self._member.exchange.holds
        for session in self.sessions.values():
            if manifest in session.watches and not holds(session.peer, manifest, index):
                session.news.setdefault(manifest, []).append(index)
                self._tell_soon()

    def grew(self, growing: Growing) -> None:
        for session in self.sessions.values():
            if growing.id in session.watches:
                self._say_growth(session, growing)

    def restate(self, manifest: ManifestId) -> None:
        for session in self.sessions.values():
            if manifest in session.watches:
                self._say_have(session, manifest)

    def _tell_soon(self) -> None:
        if not self._news_due:
            self._news_due = True
            self._world.clock.later(NEWS_SECONDS, self._tell_news, self._member.life)

    def _tell_news(self, life: int) -> None:
        if self._member.life != life:
            return
        self._news_due = False
        for session in self.sessions.values():
            news, session.news = session.news, {}
            for manifest, indexes in news.items():
                size = 44 + len(indexes)
                self._member.say(session.peer, "heard_have", manifest, indexes, None, size=size)

    def _say_growth(self, session: Session, growing: Growing) -> None:
        now = self._world.clock.now
        while growing.id not in session.over:
            known = session.told.get(growing.id, 0)
            segment = growing.segment(known)
            ends = segment.state is not Growth.GROWING
            if not segment.blocks and not ends and now - session.signed < SIGN_SECONDS:
                return
            session.told[growing.id] = known + len(segment.blocks)
            session.signed = now
            size = 60 + 37 * len(segment.blocks)
            self._member.say(session.peer, "heard_grown", segment, size=size)
            if ends:
                session.over.add(growing.id)
            if not segment.blocks:
                return

    def _say_have(self, session: Session, manifest: ManifestId) -> None:
        layout = self._member.layouts[manifest]
        held = [n for n, wanted in enumerate(layout.blocks) if wanted in self._member.store]
        filling = self._member.is_filling(manifest)
        size = 45 + len(layout.blocks) // 8
        self._member.say(session.peer, "heard_have", manifest, held, filling, size=size)

    # -- blocks ----------------------------------------------------------------------------------

    def want(self, peer: PeerId, message: Want) -> None:
        session, member = self.sessions[peer], self._member
        if member.refuses:
            self._refuse(peer, Refuse(message.request, member.refuses, message.indexes))
            return
        layout = member.layouts.get(message.manifest)
        lengths = () if layout is None else layout.lengths
        for refusal in session.serving.want(message, layout is not None, lengths):
            self._refuse(peer, refusal)
        self._world.checks.queue(member, len(session.serving))
        self.serve()

    def cancel(self, peer: PeerId, message: Cancel) -> None:
        self.sessions[peer].serving.cancel(message)

    def _refuse(self, peer: PeerId, refusal: Refuse) -> None:
        self._member.say(peer, "heard_refuse", refusal, size=20 + len(refusal.indexes))

    def serve(self) -> None:
        """Turns go to the socket, and leave it one block after the other."""
        if self._member.is_silent or not self._member.is_up:
            return
        now = self._world.clock.now
        while (turn := self._uplink.next(now)) is not None:
            session = self._numbers[turn[0]]
            self._line.extend((session, due, due is turn[1][-1]) for due in turn[1])
        for number, manifest in self._uplink.signs(now):
            self._member.say(self._numbers[number].peer, "heard_have", manifest, (), None, size=44)
        if self._line:
            self._send_next()
        elif not self._looks_again and any(len(s.serving) for s in self.sessions.values()):
            self._looks_again = True
            self._world.clock.later(LOOK_AGAIN_SECONDS, self._look_again, self._member.life)

    def _look_again(self, life: int) -> None:
        if self._member.life == life:
            self._looks_again = False
            self.serve()

    def _send_next(self) -> None:
        while self._line and not self._is_sending and self._is_held(self._line[0][0]):
            pass
        if self._is_sending or not self._line:
            return
        self._is_sending = True
        member = self._member
        rate = DRIP_BYTES_PER_SECOND if member.drips else member.rate
        self._world.clock.later(self._line[0][1].length / rate, self._sent, member.life)

    def _is_held(self, session: Session) -> bool:
        """Its socket takes nothing at this time: what is for it waits, and holds nobody up."""
        link = self._member.links.get(session.peer)
        until = 0.0 if link is None else link.held_until(self._member.name)
        if until <= self._world.clock.now:
            return False
        waits = [place for place in self._line if place[0] is session]
        self._line = deque(place for place in self._line if place[0] is not session)
        if until != float("inf"):
            self._world.clock.at(until, self._resume, waits, self._member.life)
        return True

    def _resume(self, waits: list[tuple[Session, Due, bool]], life: int) -> None:
        if self._member.life == life:
            self._line.extend(waits)
            self._send_next()

    def _sent(self, life: int) -> None:
        if self._member.life != life:
            return
        session, due, last = self._line.popleft()
        self._is_sending = False
        if self.sessions.get(session.peer) is session:
            self._block(session.peer, due)
        if last:
            self._uplink.over(self._world.clock.now, session.number)
        self._send_next()
        self.serve()

    def _block(self, peer: PeerId, due: Due) -> None:
        member = self._member
        blocks = member.layouts[due.manifest].blocks
        data = member.read(blocks[due.index]) if due.index < len(blocks) else None
        if data is None:
            self._refuse(peer, Refuse(due.request, "not-here", (due.index,)))
            return
        if member.lies:
            data = bytes([data[0] ^ 1]) + data[1:]
        else:
            self._world.checks.sent(member, peer, blocks[due.index], data)
        encoded = Encoded(Codec.RAW, len(data), data)
        member.say(peer, "heard_block", due.request, due.index, encoded, size=15 + len(data))
