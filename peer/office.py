"""Each NAR enters an office once: which member asks the upstream, and who follows it.

    nobody here has it --> fetchers.rank says whose turn it is --> ours: the layer above fetches it,
        `publish` and `grew` let the others follow
                                                               --> another's: `ask` it (Please with
        the record), and follow its growing manifest

Every member ranks alike, so all ask the same one, and that one fetches once for all. Those far away
do not count: a laptop at home fetches through its own line. A member that says no, is silent or
goes away is passed over, for this NAR at once and for others for a while.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from chunker.digest import ManifestId
from chunker.errors import RecordError
from chunker.record import PathRecord, decode_record, encode_record

from .errors import PeerError, RemoteError
from .fetch import Fetch
from .fetchers import Fetchers
from .following import Following
from .growing import Growing, growing_id
from .identity import PeerId
from .messages import Grown, Growth, Please

if TYPE_CHECKING:
    from .asking import Asking
    from .effects import Effect
    from .swarm import Swarm

log = logging.getLogger(__name__)

FIRST_BYTE_SECONDS_MAX = 3.0
"""How long a member may take until bytes come from its upstream; then the next one is asked."""
GROWINGS_KEPT_MAX = 512
"""Growing manifests that peers may still ask blocks of, also after they are whole."""
GROWN_BLOCKS_KEPT_MAX = 256 * 1024
"""In all of them; 100 bytes each. What still grows counts, and is kept in any case."""


class Office:
    """`fetch_for` is set by the layer above where this process has upstreams: it begins to fetch
    what the record describes, and returns what others may follow or have, or None. `look_up` is
    set where it also tells members what its upstreams say of a store hash."""

    def __init__(self, swarm: Swarm) -> None:
        self.fetch_for: Callable[[PathRecord], Awaitable[PathRecord | None]] | None = None
        self.look_up: Callable[[str], Awaitable[PathRecord | None]] | None = None
        self._swarm = swarm
        self._fetchers = Fetchers()
        self._kept: OrderedDict[ManifestId, Growing] = OrderedDict()

    # -- whose turn it is -----------------------------------------------------------------------

    def offers_to_fetch(self, rate: int) -> None:
        """From now on; `rate`, in KiB/s, is the share that we take. All must rank alike, so those
        who know us are told."""
        self._swarm.hello = replace(self._swarm.hello, fetches=rate)
        self._swarm.inbound.say_hello()

    def rank(self, record: PathRecord) -> list[PeerId]:
        """Who should fetch it, best first; we are in it if we can."""
        swarm = self._swarm
        shares = {
            asking.peer: asking.their.fetches
            for asking in swarm.sessions_open()
            if swarm.policies.knows(asking.peer) and self._shares_a_line(asking)
        }
        shares[swarm.me] = swarm.hello.fetches
        return self._fetchers.rank(trio.current_time(), record.nar_hash, shares)

    def _shares_a_line(self, asking: Asking) -> bool:
        """Whether what this member fetches is fetched for us too. Who is far away has an internet
        line of its own, and so have we; it is of use to who has no upstream."""
        return asking.is_near or not self._swarm.hello.fetches

    async def ask(self, owner: PeerId, record: PathRecord, public: bool) -> Fetch | None:
        """Let `owner` fetch it; None where it does not."""
        swarm = self._swarm
        if swarm.questions.is_blamed(owner, growing_id(record, owner)):
            return None
        asking = next((a for a in swarm.sessions_open() if a.peer == owner), None)
        found = None
        if asking is not None:
            with trio.move_on_after(FIRST_BYTE_SECONDS_MAX + 1.0):
                try:
                    found = await asking.please(record.store_hash, encode_record(record))
                except RemoteError as error:
                    await swarm.ban(owner, str(error))
                except PeerError as error:
                    log.info("%s", error)
        if found is None or found.nar_hash != record.nar_hash:
            self._fetchers.failed(trio.current_time(), owner)
            return None
        if found.manifest == growing_id(record, owner):
            return await Following.follow(swarm, record, owner, public)
        return await Fetch.open(swarm, record, [(owner, found)], public=public)

    async def follow(self, record: PathRecord, owner: PeerId, public: bool) -> Fetch | None:
        return await Following.follow(self._swarm, record, owner, public)

    def owner_of(self, offer: PathRecord, public: bool) -> PeerId | None:
        """Who makes this manifest, if it is one that grows and its owner is connected and may be
        asked, and did not lie about it."""
        swarm = self._swarm
        for asking in swarm.sessions_open():
            if growing_id(offer, asking.peer) == offer.manifest:
                asked = public or swarm.policies.knows(asking.peer)
                blamed = swarm.questions.is_blamed(asking.peer, offer.manifest)
                followed = asked and not blamed and self._shares_a_line(asking)
                return asking.peer if followed else None
        return None

    def lost(self, owner: PeerId) -> None:
        """It began, and did not go on."""
        self._fetchers.failed(trio.current_time(), owner)

    # -- what we fetch for others ---------------------------------------------------------------

    async def look_for(self, asker: PeerId, message: Please) -> PathRecord | None:
        """Somebody says Please: with a record, to have the NAR fetched, else to have it found."""
        swarm = self._swarm
        if not swarm.policies.knows(asker):
            return None
        if not message.record:
            found = await self.look_up(message.store_hash) if self.look_up is not None else None
            return found if found is not None and self._is_for(asker, found) else None
        if self.fetch_for is None:
            return None
        try:
            record = decode_record(message.record)
        except RecordError as error:
            raise RemoteError(f"{asker} sent a bad path record: {error}") from error
        if record.store_hash != message.store_hash:
            raise RemoteError(f"{asker} asks for another path than it says")
        return await self.fetch_for(record) if self._is_for(asker, record) else None

    def _is_for(self, asker: PeerId, record: PathRecord) -> bool:
        swarm = self._swarm
        return swarm.policies.admits(record) and swarm.catalogue.may_have(asker, record)

    def publish(self, growing: Growing) -> None:
        self.keep(growing)

    def grew(self, growing: Growing) -> None:
        """More of it is here, or it is over. One that failed is offered no more, and kept only for
        those who are to be told."""
        if growing.state is Growth.FAILED and self._kept.get(growing.id) is growing:
            self._swarm.catalogue.end(growing.id)
        self._swarm.inbound.grew(growing.id)

    def keep(self, growing: Growing) -> None:
        self._kept[growing.id] = growing
        self._swarm.catalogue.begin(growing.record)
        self._kept.move_to_end(growing.id)
        blocks = sum(len(kept.blocks) for kept in self._kept.values())
        for old in list(self._kept.values()):
            if len(self._kept) <= GROWINGS_KEPT_MAX and blocks <= GROWN_BLOCKS_KEPT_MAX:
                return
            if old.state is not Growth.GROWING:
                blocks -= len(old.blocks)
                self.drop(old)

    def drop(self, growing: Growing) -> None:
        """Peers may have it no more."""
        if self._kept.get(growing.id) is growing:
            del self._kept[growing.id]
            self._swarm.catalogue.end(growing.id)

    def load(self, wanted: ManifestId) -> Growing | None:
        return self._kept.get(wanted)

    def ours(self, wanted: ManifestId) -> Growing | None:
        """Only the owner tells how it grows."""
        growing = self._kept.get(wanted)
        return growing if growing is not None and growing.owner == self._swarm.me else None

    # -- what others fetch for us ---------------------------------------------------------------

    async def heard(self, peer: PeerId, message: Grown) -> list[Effect]:
        following = self._swarm.fetches.get(message.manifest)
        if not isinstance(following, Following) or following.owner != peer:
            return []
        new, missing = await following.grown(message)
        if self._swarm.fetches.get(message.manifest) is not following:
            return []  # it was given up meanwhile, and perhaps begun anew
        following.heard_of_holder()
        growing, exchange, now = following.growing, self._swarm.exchange, trio.current_time()
        effects = exchange.has(now, peer, growing.id, new)  # what it tells of it has
        return effects + exchange.grow(
            now, growing.id,
            growing.blocks[new.start : new.stop], growing.lengths[new.start : new.stop],
            missing, whole=growing.state is Growth.WHOLE,
        )  # fmt: skip

    def refused(self, peer: PeerId, request: int) -> None:
        """If that was a Watch on what the peer makes itself, it does not, or no more: nobody need
        wait for its first word."""
        asking = next((a for a in self._swarm.sessions_open() if a.peer == peer), None)
        wanted = asking.watch_refused(request) if asking is not None else None
        following = self._swarm.fetches.get(wanted) if wanted is not None else None
        if not isinstance(following, Following) or following.owner != peer:
            return
        if following.growing.state is Growth.GROWING:
            following.fail(f"{peer} does not fetch {following.record.store_path}")

    def gone(self, peer: PeerId) -> None:
        """Its session is over: who follows it must find another source."""
        for fetch in list(self._swarm.fetches.values()):
            if not isinstance(fetch, Following) or fetch.owner != peer:
                continue
            if fetch.growing.state is Growth.GROWING:
                fetch.fail(f"{peer} went away")
