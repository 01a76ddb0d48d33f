"""Who is in which of our pools: the decisions, without I/O, clock or chance.

Two members must find out that they are, and a stranger must not learn that either of them is in
any pool (design invariant 6). So nothing is shown before it was asked for by who knows the pool:

    opener                               answerer
    Hello: 8 tags          ---------->   which of them do I know? none, and a stranger is not
                                         served anyway: the stream is closed without a word
                           <----------   Hello: tags of exactly those pools, the rest random
    Show: certificates     ---------->   verified against the PeerId of the connection
    of exactly those       <----------   Show: certificates of the pools that were proven, no other

A tag is BLAKE3 keyed with the pool's word, which only members hold, over (sender, reader, sender's
salt). For everybody else it is 16 random bytes; it proves nothing to a third, cannot be sent
back, and holds for this pair of proven PeerIds alone. The opener's tags and the answerer's are
always 8, so their number says nothing either. Who was revoked still knows the word: it can tell
members from others, and gets neither a certificate nor an answer.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import blake3

from .certificates import (
    REVOKED_SECONDS,
    CertificateRefused,
    Description,
    Fault,
    Member,
    PoolId,
    Revocation,
    decode_revocation,
    standing,
    verify,
)
from .identity import PeerId
from .messages import POOLS_MAX, TAG_BYTES

MEMBERS_PER_POOL_MAX = 1024
REVOCATIONS_PER_POOL_MAX = 4096


@dataclass(frozen=True, slots=True)
class Mine:
    """A pool that we are in, and our own membership."""

    description: Description
    member: Member


@dataclass(frozen=True, slots=True)
class Known:
    """A revocation and its bytes, as they are passed on."""

    revocation: Revocation
    blob: bytes


class Membership:
    """`here` is our own PeerId. All times are seconds since 1970."""

    def __init__(self, here: PeerId) -> None:
        self.here = here
        self.pools: dict[PoolId, Mine] = {}
        self.members: dict[tuple[PoolId, PeerId], Member] = {}
        self.revocations: dict[tuple[PoolId, PeerId], Known] = {}

    def replace(self, pools: Iterable[Mine]) -> None:
        """From now on we are in exactly these; what was known of others is forgotten."""
        kept = sorted(pools, key=lambda mine: mine.description.pool)[:POOLS_MAX]
        self.pools = {mine.description.pool: mine for mine in kept}
        self.members = {k: v for k, v in self.members.items() if k[0] in self.pools}
        self.revocations = {k: v for k, v in self.revocations.items() if k[0] in self.pools}

    # -- recognising -------------------------------------------------------------------------

    def tags(
        self, peer: PeerId, salt: bytes, pools: Collection[PoolId], padding: bytes
    ) -> tuple[bytes, ...]:
        """Of `pools`, for `peer`; `padding` is random, 8 tags long."""
        assert len(padding) == POOLS_MAX * TAG_BYTES
        found = [padding[at : at + TAG_BYTES] for at in range(0, len(padding), TAG_BYTES)]
        for place, pool in enumerate(sorted(pools)):
            if (mine := self.pools.get(pool)) is not None:
                found[place] = _tag(mine.description.word, self.here, peer, salt)
        return tuple(sorted(found))

    def recognised(self, peer: PeerId, salt: bytes, tags: Sequence[bytes]) -> tuple[PoolId, ...]:
        """Pools of ours that `peer` knows. It proves nothing yet: it may have left one."""
        found = []
        for pool, mine in self.pools.items():
            ours = _tag(mine.description.word, peer, self.here, salt)
            if any(hmac.compare_digest(ours, tag) for tag in tags):
                found.append(pool)
        return tuple(found)

    def certificates(self, pools: Collection[PoolId], now: float) -> tuple[bytes, ...]:
        """Our own for these pools, as far as they are in force."""
        mine = [self.pools[pool].member for pool in sorted(pools) if pool in self.pools]
        return tuple(
            member.blob
            for member in mine
            if standing(member.certificate, now, self.revoked_since) is None
        )

    # -- proving -----------------------------------------------------------------------------

    def shown(
        self, peer: PeerId, blobs: Sequence[bytes], now: float
    ) -> tuple[tuple[PoolId, ...], tuple[CertificateRefused, ...]]:
        """What `peer` proved by these certificates, and why the others do not count."""
        proven, refused = [], []
        for blob in blobs:
            try:
                member = verify(
                    blob,
                    pools=self.pools,
                    peer=peer,
                    now=now,
                    revoked_since=self.revoked_since,
                )
            except CertificateRefused as error:
                refused.append(error)
                continue
            self.admit(member)
            proven.append(member.certificate.pool)
        return tuple(proven), tuple(refused)

    def admit(self, member: Member) -> None:
        """A newer certificate takes the place of an older one."""
        key = (member.certificate.pool, member.certificate.peer)
        held = self.members.get(key)
        if held is not None and held.certificate.expiry >= member.certificate.expiry:
            return
        same = [k for k in self.members if k[0] == key[0]] if held is None else []
        if len(same) >= MEMBERS_PER_POOL_MAX:
            del self.members[min(same, key=lambda k: self.members[k].certificate.expiry)]
        self.members[key] = member

    def pools_of(self, peer: PeerId, now: float) -> tuple[PoolId, ...]:
        """The pools of ours that `peer` is a member of at this moment."""
        return tuple(pool for pool in self.pools if self.fault_of(pool, peer, now) is None)

    def fault_of(self, pool: PoolId, peer: PeerId, now: float) -> Fault | None:
        """Why `peer` is not a member of a pool of ours; None if it is."""
        member = self.members.get((pool, peer))
        if member is None:
            return "foreign pool" if self.revoked_since(pool, peer) is None else "revoked"
        return standing(member.certificate, now, self.revoked_since)

    # -- revoking ----------------------------------------------------------------------------

    def heard(self, blobs: Iterable[bytes], now: float) -> list[Known]:
        """Revocations that are news here. Raises CertificateRefused for one that no pool signed."""
        news = []
        for blob in blobs:
            known = Known(decode_revocation(blob), blob)
            if self.add(known, now):
                news.append(known)
        return news

    def add(self, known: Known, now: float) -> bool:
        """Whether it is one of ours and was news."""
        entry = known.revocation
        key = (entry.pool, entry.peer)
        since = self.revoked_since(*key)
        if entry.pool not in self.pools or entry.since + REVOKED_SECONDS <= now:
            return False
        if since is not None and since >= entry.since:
            return False
        self._make_room(entry.pool, now)
        self.revocations[key] = known
        return True

    def revoked_since(self, pool: PoolId, peer: PeerId) -> int | None:
        known = self.revocations.get((pool, peer))
        return None if known is None else known.revocation.since

    def revocations_of(self, pools: Collection[PoolId]) -> tuple[bytes, ...]:
        return tuple(k.blob for (pool, _), k in sorted(self.revocations.items()) if pool in pools)

    def _make_room(self, pool: PoolId, now: float) -> None:
        """The pool key alone can fill the list; then the oldest goes, the nearest to its end."""
        self.revocations = {
            key: known
            for key, known in self.revocations.items()
            if known.revocation.since + REVOKED_SECONDS > now
        }
        same = [key for key in self.revocations if key[0] == pool]
        if len(same) >= REVOCATIONS_PER_POOL_MAX:
            del self.revocations[min(same, key=lambda k: self.revocations[k].revocation.since)]


def wrong_in(error: CertificateRefused) -> bool:
    """Whether who showed this is to blame: an honest peer shows no other's and nothing forged."""
    return error.fault in ("malformed", "replayed")


def _tag(word: bytes, sender: PeerId, reader: PeerId, salt: bytes) -> bytes:
    text = b"narswarm-tag-1\n" + f"{sender}\n{reader}\n".encode() + salt
    return blake3.blake3(text, key=word).digest(length=TAG_BYTES)
