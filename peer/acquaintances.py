"""Whom we heard of, whom to dial when, and who is dropped when there are too many. Pure.

    heard --due--> dialled --their Hello--> connected --lost--> due again, after a pause
                      `--no answer--> the next address, after a growing pause --> dormant

Everything heard is a hint: only `joined` says that a peer proved who it is. A peer from the
configuration is dialled for ever. One that was never met rests after FAILURES_MAX dials until it is
heard of again, so a liar on the network costs a few dials for each name that it invents.

At most CONNECTIONS_MAX peers are connected. When one more comes, the last in this order goes:

| rank       | who                                                              |
|------------|------------------------------------------------------------------|
| configured | named in the configuration                                       |
| useful     | gave or took bytes in the last USEFUL_SECONDS                    |
| others     | by a number made of both PeerIds                                 |

The number is the same at both ends. Pairs are thus in one order for the whole office: of two peers
that are full, no pair is broken but for one that counts more at both ends, so the breaking comes to
an end, and a latecomer finds about as many peers as the first had. An office of 40 does not thrash.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from .identity import Address, PeerId

CONNECTIONS_MAX = 32
ACQUAINTANCES_MAX = 1024
ADDRESSES_PER_PEER_MAX = 4
DIALS_AT_ONCE_MAX = 8
FAILURES_MAX = 4
PAUSE_SECONDS_MIN = 0.5
PAUSE_SECONDS_MAX = 30.0
"""Between dials of a configured peer."""
PAUSE_SECONDS_MAX_OTHERS = 300.0
STEADY_SECONDS = 30.0
"""A session that lasted so long was a good one: the next pause is short again."""
USEFUL_SECONDS = 60.0
FULL_SECONDS = 30.0
"""How long a peer waits for whom there is no room."""
YIELD_SECONDS = 0.5
"""Of two that hear of each other at once, one leaves the other this much time to dial."""


class Rank(IntEnum):
    OTHER = 0
    USEFUL = 1
    CONFIGURED = 2


@dataclass(slots=True)
class _Known:
    peer: PeerId
    rank: Rank
    addresses: list[Address] = field(default_factory=list)
    """Where to dial it; the first is next."""
    configured: list[Address] = field(default_factory=list)
    """Those that no hint can drive out."""
    number: bytes = b""
    due_at: float = math.inf
    not_before: float = -math.inf
    """The end of the pause after its last dial."""
    pause_seconds: float = PAUSE_SECONDS_MIN
    dialled_at: float | None = None
    """Since when a dial, or the session that came of it, is under way."""
    answered: bool = False
    """That dial led to a session."""
    met: bool = False
    failures: int = 0
    heard_at: float = 0.0
    used_at: float = -math.inf


class Acquaintances:
    def __init__(
        self, me: PeerId, configured: Iterable[Address], connections_max: int = CONNECTIONS_MAX
    ) -> None:
        self._me = me
        self._limit = connections_max
        self._known: dict[PeerId, _Known] = {}
        self._sessions: dict[PeerId, int] = {}
        self._going: set[PeerId] = set()
        for address in configured:
            known = self._know(address.peer, Rank.CONFIGURED)
            if address.host is not None:
                known.addresses.append(address)
                known.configured.append(address)
                known.due_at = -math.inf

    def heard(self, now: float, address: Address, chance: float) -> None:
        """A hint; `chance` is from 0 to 1. Without a host it says that the peer has a connection to
        us."""
        if address.peer == self._me:
            return
        known = self._known.get(address.peer)
        if known is None:
            self._make_place()
            known = self._know(address.peer, Rank.OTHER)
        known.heard_at = now
        news = address.host is not None and address not in known.addresses
        if news:
            # Whoever has moved is where it was heard last.
            hints = [one for one in known.addresses if one not in known.configured]
            for old in hints[ADDRESSES_PER_PEER_MAX - 1 :]:
                known.addresses.remove(old)
            known.addresses.insert(0, address)
            known.pause_seconds, known.failures, known.not_before = PAUSE_SECONDS_MIN, 0, now
        if news or address.host is None or known.due_at == math.inf:
            yields = address.host is not None and address.peer < self._me
            pause = YIELD_SECONDS * (0.5 + chance) if yields else 0.0
            earliest = now if address.host is None else known.not_before
            known.due_at = min(known.due_at, max(now + pause, earliest))

    def joined(self, now: float, peer: PeerId) -> PeerId | None:
        """A session with `peer`, opened by whichever side, begins. Who must go for it: nobody,
        somebody, or `peer` itself; a session of it then counts all the same until `left`."""
        self._sessions[peer] = self._sessions.get(peer, 0) + 1
        if (known := self._known.get(peer)) is not None:
            known.met, known.failures = True, 0
            known.answered = known.dialled_at is not None
        staying = self._staying()
        if len(staying) <= self._limit:
            return None
        last = min(staying, key=lambda one: self._worth(now, one))
        self._going.add(last)
        return last

    def left(self, peer: PeerId) -> None:
        """A session that `joined` is over."""
        self._sessions[peer] -= 1
        if self._sessions[peer] == 0:
            del self._sessions[peer]
            self._going.discard(peer)

    def dialled(self, now: float, peer: PeerId, chance: float) -> None:
        """What a Dial led to is over, however it went."""
        known = self._known.get(peer)
        if known is None or known.dialled_at is None:
            return
        steady = known.answered and now - known.dialled_at > STEADY_SECONDS
        if not known.answered:
            known.failures += 1
            known.addresses = known.addresses[1:] + known.addresses[:1]
        known.dialled_at, known.answered = None, False
        if steady:
            known.pause_seconds = PAUSE_SECONDS_MIN
        known.not_before = now + known.pause_seconds * (0.5 + chance)
        configured = known.rank == Rank.CONFIGURED
        most = PAUSE_SECONDS_MAX if configured else PAUSE_SECONDS_MAX_OTHERS
        known.pause_seconds = min(known.pause_seconds * 2, most)
        dormant = not (configured or known.met) and known.failures >= FAILURES_MAX
        known.due_at = math.inf if dormant else known.not_before

    def used(self, now: float, peer: PeerId) -> None:
        """Bytes went to `peer`, or came from it."""
        if (known := self._known.get(peer)) is not None:
            known.used_at = now

    def woke(self, now: float) -> None:
        """After sleep, or on another network: what was learnt of who answers is worth nothing."""
        for known in self._known.values():
            known.pause_seconds, known.failures, known.not_before = PAUSE_SECONDS_MIN, 0, now
            if known.addresses:
                known.due_at = now

    def due(self, now: float) -> list[Address]:
        """Whom to dial now; each is under way until `dialled`."""
        opening = self._opening()
        room = self._limit - len(self._staying()) - opening
        ready = [k for k in self._known.values() if k.due_at <= now and k.dialled_at is None]
        ready.sort(key=lambda k: self._worth(now, k.peer), reverse=True)
        ready.sort(key=lambda k: (-k.rank, not k.met, k.failures))
        dials: list[Address] = []
        for known in ready:
            if opening >= DIALS_AT_ONCE_MAX:
                break
            here = known.peer in self._sessions
            if not (here or known.addresses):
                known.due_at = math.inf  # until it is heard of
            elif known.peer in self._going or not (
                here or room > 0 or self._outranks_somebody(now, known.peer)
            ):
                known.due_at = now + FULL_SECONDS
            else:
                known.dialled_at, known.answered, known.due_at = now, False, math.inf
                opening, room = opening + 1, room - (not here)
                bare = Address(known.peer, None, None)
                dials.append(known.addresses[0] if known.addresses else bare)
        return dials

    def next_at(self) -> float:
        """When `due` may say something if nothing else happens before."""
        if self._opening() >= DIALS_AT_ONCE_MAX:
            return math.inf
        idle = (k.due_at for k in self._known.values() if k.dialled_at is None)
        return min(idle, default=math.inf)

    def pause_seconds(self, now: float, peer: PeerId) -> float | None:
        """How long until `peer` is dialled again; None: it will not be, or is being dialled."""
        known = self._known.get(peer)
        if known is None or known.dialled_at is not None or known.due_at == math.inf:
            return None
        return max(0.0, known.due_at - now)

    def connected(self) -> tuple[PeerId, ...]:
        return tuple(sorted(self._sessions))

    def _opening(self) -> int:
        return sum(k.dialled_at is not None and not k.answered for k in self._known.values())

    def _staying(self) -> list[PeerId]:
        return [peer for peer in self._sessions if peer not in self._going]

    def _outranks_somebody(self, now: float, peer: PeerId) -> bool:
        worth = self._worth(now, peer)
        return any(self._worth(now, other) < worth for other in self._staying())

    def _worth(self, now: float, peer: PeerId) -> tuple[Rank, bytes]:
        known = self._known.get(peer)
        if known is None:
            return Rank.OTHER, pair_number(self._me, peer)
        useful = known.rank == Rank.OTHER and now - known.used_at < USEFUL_SECONDS
        return Rank.USEFUL if useful else known.rank, known.number

    def _know(self, peer: PeerId, rank: Rank) -> _Known:
        number = pair_number(self._me, peer)
        return self._known.setdefault(peer, _Known(peer, rank, number=number))

    def _make_place(self) -> None:
        if len(self._known) < ACQUAINTANCES_MAX:
            return
        others = [
            k
            for k in self._known.values()
            if k.rank != Rank.CONFIGURED and k.dialled_at is None and k.peer not in self._sessions
        ]
        if others:
            del self._known[min(others, key=lambda k: (k.met, k.heard_at, k.peer)).peer]


def pair_number(one: PeerId, other: PeerId) -> bytes:
    """The same at both ends, and nobody's choice but by trying many keys."""
    return hashlib.sha256("/".join(sorted((one, other))).encode()).digest()[:8]
