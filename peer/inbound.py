"""The sessions that peers opened to us, and what all of them are told."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import trio

from chunker.digest import ManifestId
from chunker.errors import StoreError

from .answering import Answering
from .errors import PeerError
from .growing import Growing
from .identity import Address, PeerId
from .transport import Stream

if TYPE_CHECKING:
    from .swarm import Swarm

log = logging.getLogger(__name__)

SESSIONS_PER_PEER_MAX = 4
"""One is enough; an old one may still be dying when the next comes."""
CLOSE_SECONDS_MAX = 1.0


class Inbound:
    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._sessions: dict[Answering, None] = {}
        self._outdated: set[Answering] = set()
        """Those that heard our Hello, and hear what has changed in it once they are met."""

    async def accept(self, stream: Stream) -> None:
        """Serve one stream to its end; errors end only it."""
        swarm = self._swarm
        if swarm.is_banned(stream.peer):
            await stream.aclose()
            return
        if sum(session.peer == stream.peer for session in self._sessions) >= SESSIONS_PER_PEER_MAX:
            log.warning("%s opens more than %d sessions", stream.peer, SESSIONS_PER_PEER_MAX)
            await stream.aclose()
            return
        session = Answering(stream, swarm)
        self._sessions[session] = None
        try:
            if swarm.dialling.joined(stream.peer, stream.remote_host, session):
                await session.run(self._greeted)
        except* (PeerError, trio.TooSlowError, StoreError) as group:
            for error in group.exceptions:
                log.info("session of %s ended: %s", stream.peer, error)
        finally:
            self._count(session)
            swarm.traffic.over(session)
            self._sessions.pop(session, None)
            self._outdated.discard(session)
            swarm.dialling.left(session)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS_MAX):
                await stream.aclose()

    def met(self) -> tuple[Answering, ...]:
        """Those in which both sides have shown who they are."""
        return tuple(session for session in self._sessions if session.met)

    def note(self, manifest: ManifestId, givers: Mapping[int, PeerId]) -> None:
        """Blocks came in, and from whom: tell who watches and has not said that it holds them."""
        swarm = self._swarm
        fetch, holds = swarm.fetches.get(manifest), swarm.exchange.holds
        growing = fetch.manifest if fetch is not None else None
        owner = growing.owner if isinstance(growing, Growing) else None
        fellows = {p for p in givers.values() if p != owner and swarm.exchange.fills(p, manifest)}
        if fetch is not None and fetch.ends:
            fellows.clear()  # the last ones are wanted of whoever has them
        for session in self._sessions:
            if manifest in session.watches:
                for index, giver in givers.items():
                    if not holds(session.peer, manifest, index):
                        session.note(manifest, index, fresh=giver not in fellows)

    def restate(self, manifest: ManifestId) -> None:
        """Tell who watches it what is here now that a download is over, perhaps under another
        name."""
        for session in self._sessions:
            session.restate(manifest)

    def grew(self, manifest: ManifestId) -> None:
        """A growing manifest of ours has news."""
        for session in self._sessions:
            if manifest in session.watches:
                session.grew(manifest)

    def say_hello(self) -> None:
        """What our Hello says has changed: who knows us is told, the others once they do."""
        for session in self._sessions:
            if session.met:
                session.say_hello()
            else:
                self._outdated.add(session)

    def count_sent(self) -> None:
        for session in self._sessions:
            self._count(session)

    def _count(self, session: Answering) -> None:
        swarm = self._swarm
        if swarm.traffic.sent(trio.current_time(), session.peer, session, session.bytes_sent):
            swarm.dialling.used(session.peer)

    async def _greeted(self, session: Answering) -> None:
        if session in self._outdated:
            self._outdated.discard(session)
            session.say_hello()
        self._swarm.introductions.begun(session)
        self._swarm.discovered(Address(session.peer, None, None))
