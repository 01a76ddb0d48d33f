"""Between sessions and `pools`: what is said at the beginning, who is told of a revocation, who has
to go. Membership is looked up anew at each question, so nothing here has to be taken back; but what
a session waits for (wants, watches) was allowed to a member, so a session ends with the membership
that began it, and whoever may still come as a stranger comes again.

`clock` gives seconds since 1970, for certificates know no other time.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Protocol

from .certificates import PoolId
from .errors import IdentityError, SessionClosed
from .identity import Address, PeerId, parse_address
from .messages import (
    ADDRESSES_MAX,
    POOLS_MAX,
    REVOCATIONS_PER_MESSAGE_MAX,
    TAG_BYTES,
    Hello,
    Message,
    Revoked,
    Show,
)
from .pools import Known, Membership, wrong_in

log = logging.getLogger(__name__)

MEET_AGAIN_SECONDS = 60.0
"""Before a peer that turned out to be a stranger is dialled again to see whether it joined."""
STRANGERS_MAX = 1024
SHOW_AGAIN_SECONDS = 3600.0
"""Certificates are renewed while sessions last."""


class Session(Protocol):
    peer: PeerId

    def tell(self, message: Message) -> None:
        """Without waiting. Raises SessionClosed."""
        ...

    def stop(self) -> None: ...


class Introductions:
    """`sessions` and `listens` are the swarm's: who is connected, and where we can be reached."""

    def __init__(self, membership: Membership, clock: Callable[[], float]) -> None:
        self.membership = membership
        self.clock = clock
        self.sessions: Callable[[], Iterable[Session]] = tuple
        self.listens: Callable[[], Iterable[Address]] = tuple
        self.addresses: dict[PeerId, tuple[Address, ...]] = {}
        self.seen: dict[PeerId, float] = {}
        self.changed: set[PeerId] = set()
        """Members of whom something is news since the owner of this set emptied it."""
        self.news: list[Known] = []
        """Revocations that came in since the owner of this list emptied it."""
        self._proven: dict[PeerId, frozenset[PoolId]] = {}
        self._strangers: dict[PeerId, float] = {}
        self._shown_at = clock()

    def pool_names(self, peer: PeerId) -> str:
        """Of the pools that `peer` and we are in, for people."""
        pools = self.membership.pools_of(peer, self.clock())
        return ", ".join(self.membership.pools[pool].description.name for pool in pools)

    def hello_to(
        self, peer: PeerId, hello: Hello, pools: Collection[PoolId] | None = None
    ) -> Hello:
        """Ours with tags of `pools`; the opener, who does not know yet, tags all."""
        known = self.membership.pools if pools is None else pools
        padding = secrets.token_bytes(POOLS_MAX * TAG_BYTES)
        return replace(hello, tags=self.membership.tags(peer, hello.salt, known, padding))

    def recognised(self, peer: PeerId, theirs: Hello) -> tuple[PoolId, ...]:
        return self.membership.recognised(peer, theirs.salt, theirs.tags)

    def show_first(self, peer: PeerId, theirs: Hello) -> Show:
        """The opener's, to an answerer of whom it is only known that it has the word. Who was
        revoked has that too; if it was invited anew meanwhile, it will dial us and show that."""
        now = self.clock()
        known = self.recognised(peer, theirs)
        return self.show([p for p in known if self.membership.fault_of(p, peer, now) != "revoked"])

    def show(self, pools: Collection[PoolId]) -> Show:
        """Our certificates of these pools; and only to members where we listen."""
        certificates = self.membership.certificates(pools, self.clock())
        texts = [address.text for address in self.listens()][:ADDRESSES_MAX]
        return Show(certificates, tuple(texts) if certificates else ())

    def shown(self, peer: PeerId, show: Show) -> tuple[PoolId, ...]:
        """The pools that `peer` proved to be in. Raises CertificateRefused (a RemoteError) where
        an honest peer could not have shown this."""
        proven, refused = self.membership.shown(peer, show.certificates, self.clock())
        for error in refused:
            if wrong_in(error):
                raise error
            log.warning("not taken for a member: %s", error)
        if proven:
            self.note(peer, show.addresses)
            self._remember(peer)
        return proven

    def _remember(self, peer: PeerId) -> None:
        pools = self.membership.pools_of(peer, self.clock())
        self._proven[peer] = self._proven.get(peer, frozenset()) | set(pools)

    def note(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """A member is here, and says that it listens there."""
        found = []
        for text in addresses:
            try:
                address = parse_address(text)
            except IdentityError as error:
                log.info("%s says that it listens at nonsense: %s", peer, error)
                continue
            if address.peer == peer and _is_ip(address.host):
                found.append(address)
        if found:
            self.addresses[peer] = tuple(found[:ADDRESSES_MAX])
        self.seen[peer] = self.clock()
        self.changed.add(peer)

    # -- strangers that may be members ---------------------------------------------------------

    def meets(self, peer: PeerId) -> bool:
        """Whether to dial somebody just to find out."""
        again = self._strangers.get(peer, float("-inf")) + MEET_AGAIN_SECONDS
        return bool(self.membership.pools) and self.clock() >= again

    def met_stranger(self, peer: PeerId) -> None:
        if len(self._strangers) >= STRANGERS_MAX:
            del self._strangers[min(self._strangers, key=lambda known: self._strangers[known])]
        self._strangers[peer] = self.clock()

    # -- while sessions last -------------------------------------------------------------------

    def begun(self, session: Session) -> None:
        """Both sides have shown what they have: pass on who was revoked."""
        self._remember(session.peer)
        pools = self.membership.pools_of(session.peer, self.clock())
        self._tell(session, self.membership.revocations_of(pools))

    def hears(self, peer: PeerId, message: Show | Revoked) -> None:
        """What an answerer sends later on. Raises CertificateRefused."""
        if isinstance(message, Show):
            self.shown(peer, message)
        else:
            self.heard(peer, message)

    def heard(self, peer: PeerId, message: Revoked) -> None:
        """Raises CertificateRefused for what no pool signed."""
        if not self.membership.pools_of(peer, self.clock()):
            return  # it was one when it sent this
        self.announce(self.membership.heard(message.revocations, self.clock()), but=peer)

    def announce(self, news: Iterable[Known], but: PeerId | None = None) -> None:
        """Revocations that were just added: end the sessions they end, tell the other members."""
        news = list(news)
        self.news += news
        if not news:
            return
        self.end_lapsed()
        for session in list(self.sessions()):
            pools = self.membership.pools_of(session.peer, self.clock())
            if session.peer != but:
                blobs = tuple(known.blob for known in news if known.revocation.pool in pools)
                self._tell(session, blobs)

    def end_lapsed(self) -> None:
        """End the sessions of everybody who is in fewer pools of ours than it was."""
        now = self.clock()
        here = {session.peer for session in self.sessions()}
        for peer, before in list(self._proven.items()):
            if before <= set(self.membership.pools_of(peer, now)) and peer in here:
                continue
            del self._proven[peer]
            for session in list(self.sessions()):
                if session.peer == peer:
                    log.warning("%s is not a member any more", peer)
                    session.stop()

    def show_again(self, *, at_once: bool = False) -> None:
        """To members: certificates were renewed here, or may have been there."""
        if not at_once and self.clock() < self._shown_at + SHOW_AGAIN_SECONDS:
            return
        self._shown_at = self.clock()
        for session in list(self.sessions()):
            if pools := self.membership.pools_of(session.peer, self._shown_at):
                self._send(session, self.show(pools))

    def _tell(self, session: Session, blobs: tuple[bytes, ...]) -> None:
        for at in range(0, len(blobs), REVOCATIONS_PER_MESSAGE_MAX):
            self._send(session, Revoked(blobs[at : at + REVOCATIONS_PER_MESSAGE_MAX]))

    @staticmethod
    def _send(session: Session, message: Message) -> None:
        try:
            session.tell(message)
        except SessionClosed as error:
            log.info("%s", error)


def _is_ip(host: str | None) -> bool:
    """Names are not looked up because a member says so."""
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True
