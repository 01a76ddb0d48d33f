"""The pools of a running process: what lies on disk is brought into force, and what is heard is put
down there.

    every second   did the command line change something? whose membership is over? what is news?
    every ten      members without a session are dialled where they were last
    half a life    before a membership ends, the holder of the pool key is asked for a new one

Which member may have what: what one of the pool's own Nix keys signed (see gateway.offer). Who is
in the pool is peer.pools' to say.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import trio

from peer.certificates import CERTIFICATE_SECONDS, SERIAL_BITS, PoolId, issue, sign
from peer.errors import NotHere, PeerError
from peer.identity import Address, Identity, PeerId
from peer.introductions import Introductions
from peer.joining import JOIN_PROTOCOL, Answer, Desk, Joined, Question, accept, ask
from peer.pools import Membership
from peer.swarm import Swarm
from peer.transport import Handler, Transport

from . import pool_files
from .errors import BadKey, GatewayError
from .pool_files import Held
from .signing import KeyRing, PublicKey

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
DIAL_SECONDS = 10.0
DIALS_MAX = 16
SESSIONS_ENOUGH = 24
"""Then members without one are not looked for: a process has 32 connections."""
RENEW_AT_SECONDS = CERTIFICATE_SECONDS / 2
"""Of life left."""
RENEW_AGAIN_SECONDS = 600.0


def wall_clock() -> float:
    """Seconds since 1970: certificates know no other time."""
    return datetime.now(UTC).timestamp()


class PoolKeeper:
    """`clock`: seconds since 1970."""

    def __init__(
        self, store: Path, identity: Identity, role: str, clock: Callable[[], float] = wall_clock
    ) -> None:
        self.membership = Membership(identity.peer_id)
        self.introductions = Introductions(self.membership, clock)
        self._clock = clock
        self._store = store
        self._role = role
        self._held: dict[PoolId, Held] = {}
        self._rings: dict[PoolId, KeyRing] = {}
        self._fingerprint: object = pool_files.fingerprint(store)
        self._desk = Desk(
            pool_files.DiskRegister(store),
            self.introductions,
            lambda: secrets.randbits(SERIAL_BITS),
        )
        self._asked: dict[PoolId, float] = {}
        self._round = 0
        self._take_over(*pool_files.load(store, identity.peer_id))

    @property
    def handlers(self) -> dict[str, Handler]:
        return {JOIN_PROTOCOL: self._desk.serve}

    def is_member(self, peer: PeerId) -> bool:
        return bool(self.membership.pools_of(peer, self._clock()))

    def keys_for(self, peer: PeerId) -> Iterable[KeyRing]:
        """By which a path may be signed that this peer may have as a member."""
        return [self._rings[pool] for pool in self.membership.pools_of(peer, self._clock())]

    def rings(self) -> tuple[KeyRing, ...]:
        """Of all pools, in the same order until one changes."""
        return tuple(self._rings.values())

    async def run(self, swarm: Swarm, transport: Transport) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dial, swarm)
            nursery.start_soon(self._renew, transport)
            while True:
                await trio.sleep(LOOK_SECONDS)
                if await self._look():
                    swarm.catalogue.forget_audiences()
                self.introductions.end_lapsed()
                self.introductions.show_again()
                await self._put_down()

    async def _look(self) -> bool:
        """Bring into force what the command line changed, and say whether it did."""
        try:
            seen = await trio.to_thread.run_sync(pool_files.fingerprint, self._store)
            if seen == self._fingerprint:
                return False
            here = self.membership.here
            found = await trio.to_thread.run_sync(pool_files.load, self._store, here)
        except OSError as error:
            log.error("the pools cannot be read: %s", error)
            return False
        self._fingerprint = seen
        self._take_over(*found)
        return True

    def _take_over(self, held: list[Held], wrong: list[str]) -> None:
        for said in wrong:
            log.error("%s", said)
        before = {pool: mine.member for pool, mine in self.membership.pools.items()}
        self._held, self._rings = {}, {}
        for pool in held:
            try:
                ring = KeyRing(PublicKey.parse(key) for key in pool.description.keys)
            except BadKey as error:
                log.error("pool %s names a key that is none: %s", pool.description.name, error)
                continue
            self._held[pool.description.pool] = pool
            self._rings[pool.description.pool] = ring
        self.membership.replace(pool.mine for pool in self._held.values())
        now = self._clock()
        news = [
            known
            for pool in self._held.values()
            for known in pool.revoked
            if self.membership.add(known, now)
        ]
        for pool in self._held.values():
            self._remember(pool, now)
        self.introductions.announce(news)
        after = {pool: mine.member for pool, mine in self.membership.pools.items()}
        if before and after != before:
            self.introductions.show_again(at_once=True)

    def _remember(self, pool: Held, now: float) -> None:
        for listed in pool.members:
            member = pool_files.still_in_force(listed, now)
            if member is None or listed.certificate.peer == self.membership.here:
                continue
            self.membership.admit(member)
            peer = member.certificate.peer
            if peer not in self.introductions.seen:
                self.introductions.note(peer, listed.addresses)
                self.introductions.seen[peer] = listed.seen

    async def _put_down(self) -> None:
        introductions = self.introductions
        changed, introductions.changed = introductions.changed, set()
        news, introductions.news = introductions.news, []
        members = [
            (self._held[pool].directory, peer, member.blob,
             [address.text for address in introductions.addresses.get(peer, ())],
             introductions.seen.get(peer, 0.0))
            for (pool, peer), member in self.membership.members.items()
            if peer in changed and pool in self._held
        ]  # fmt: skip
        revoked = [
            (self._held[known.revocation.pool].directory, known)
            for known in news
            if known.revocation.pool in self._held
        ]

        def write() -> None:
            for member in members:
                pool_files.write_member(*member)
            for entry in revoked:
                pool_files.write_revocation(*entry)

        try:
            if members or revoked:
                await trio.to_thread.run_sync(write)
        except (GatewayError, PeerError, OSError) as error:
            log.error("what is known of pools cannot be kept: %s", error)

    # -- members without a session -------------------------------------------------------------

    async def _dial(self, swarm: Swarm) -> None:
        while True:
            for address in self._to_dial(set(swarm.sessions())):
                swarm.discovered(address)
            await trio.sleep(DIAL_SECONDS)

    def _to_dial(self, connected: set[PeerId]) -> list[Address]:
        """One address of each member that is not here, those last seen first; the next time, the
        next address."""
        if len(connected) >= SESSIONS_ENOUGH:
            return []
        self._round += 1
        seen, known = self.introductions.seen, self.introductions.addresses
        away = [peer for peer in known if peer not in connected and self.is_member(peer)]
        away.sort(key=lambda peer: (-seen.get(peer, 0.0), peer))
        return [known[peer][self._round % len(known[peer])] for peer in away[:DIALS_MAX]]

    # -- renewing ------------------------------------------------------------------------------

    async def _renew(self, transport: Transport) -> None:
        while True:
            now = self._clock()
            for pool in list(self._held.values()):
                left = pool.mine.member.certificate.expiry - now
                due = self._asked.get(pool.description.pool, 0.0) + RENEW_AGAIN_SECONDS
                if left < RENEW_AT_SECONDS and now >= due:
                    self._asked[pool.description.pool] = now
                    await self._renew_one(transport, pool)
            await trio.sleep(LOOK_SECONDS)

    async def _renew_one(self, transport: Transport, pool: Held) -> None:
        name = pool.description.name
        try:
            joined = await self._new_membership(transport, pool)
            await trio.to_thread.run_sync(pool_files.write_joined, self._store, joined)
            log.info("the membership in pool %s is renewed", name)
        except NotHere:
            log.error("pool %s does not renew our membership; ask for a join code", name)
        except (PeerError, GatewayError, OSError) as error:
            log.warning("the membership in pool %s is not renewed yet: %s", name, error)

    async def _new_membership(self, transport: Transport, pool: Held) -> Joined:
        here, now = self.membership.here, self._clock()
        description = pool.description
        if pool.key is not None:
            since = self.membership.revoked_since(description.pool, here)
            blob = issue(pool.key, here, self._role, now, secrets.randbits(SERIAL_BITS), since)
            return accept(
                Answer(sign(pool.key, description), blob, ()), description.pool, here, now
            )
        holder = description.holder
        where = (Address(holder, None, None), *self.introductions.addresses.get(holder, ()))
        addresses = tuple(address.text for address in self.introductions.listens())
        question = Question(b"", pool.mine.member.blob, self._role, addresses)
        return accept(await ask(transport, where, question), description.pool, here, now)

    # -- what a person sees --------------------------------------------------------------------

    def status(self) -> list[dict[str, object]]:
        here = {session.peer for session in self.introductions.sessions()}
        now = self._clock()
        return [
            {
                "name": held.description.name,
                "id": held.id,
                "expires": held.mine.member.certificate.expiry,
                "online": sorted(
                    peer for peer in here if self.membership.fault_of(pool, peer, now) is None
                ),
            }
            for pool, held in self._held.items()
        ]
