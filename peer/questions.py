"""What is asked of peers about a path: who has it, what its manifest is, whose word on it counts.

    find --------> Find to those whose summary has it (and strangers, where public) --> offers
    look_up -----> an offer that came ahead, else find; then its references are asked for
    please ------> Please to LAN caches that we know ---------------------------------> offers
    ranked ------> manifests of the offers, best first, less what was blamed on who offers
    get_manifest -> the first fitting one of those who offer it

Once the summaries of all peers are here, a path that nobody has costs no packet. An answer that
breaks the protocol bans its sender; an error or silence is only no answer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from chunker.digest import ManifestId
from chunker.errors import ManifestError
from chunker.manifest import Manifest, decode_manifest
from chunker.record import PathRecord
from chunker.record import store_hash as hash_part
from chunker.references import needles_digest
from chunker.store import BlockStore

from .ahead import Ahead
from .asking import ASK_SECONDS_MAX, Asking
from .catalogue import Catalogue
from .errors import PeerError, RemoteError
from .fetch import Fetch, Offer, candidates
from .identity import PeerId

if TYPE_CHECKING:
    from .policies import Policies

log = logging.getLogger(__name__)

BLAMES_MAX = 10_000


class Questions:
    """`sessions` are those of the swarm, by peer; `settled` returns once each configured peer was
    reached or was not; `ban` ends a peer that broke the protocol."""

    def __init__(
        self,
        sessions: Mapping[PeerId, Asking],
        store: BlockStore,
        catalogue: Catalogue,
        policies: Policies,
        settled: Callable[[], Awaitable[None]],
        ban: Callable[[PeerId, str], Awaitable[None]],
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._catalogue = catalogue
        self._policies = policies
        self._settled = settled
        self._ban = ban
        self._blamed: set[tuple[PeerId, ManifestId]] = set()
        self._ahead = Ahead()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Ask ahead, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    async def look_up(self, store_hash: str, seconds: float) -> list[Offer]:
        """Somebody known who has this path, without a question if it was asked ahead. For sources
        of its blocks ask `find`."""
        offer = self._ahead.offer(trio.current_time(), store_hash)
        if offer is not None and offer[0] in self._sessions:
            return [offer]
        offers = await self.find(store_hash, seconds)
        for peer, record in offers:
            if self._policies.admits(record):
                self._follow(peer, record)
        return offers

    def _follow(self, peer: PeerId, record: PathRecord) -> None:
        """Who had one path of a closure is asked for the next."""
        asking = self._sessions.get(peer)
        if asking is None or self._nursery is None:
            return
        unknown = (
            reference
            for reference in map(hash_part, record.references)
            if not self._catalogue.holds(reference) and asking.may_hold(reference)
        )
        wanted = self._ahead.wants(trio.current_time(), peer, unknown)
        if wanted:
            self._nursery.start_soon(self._ask_ahead, asking, wanted)

    async def _ask_ahead(self, asking: Asking, wanted: Sequence[str]) -> None:
        async def ask(asking: Asking) -> None:
            for record in (await asking.find(wanted)).values():
                await trio.lowlevel.checkpoint()  # each costs a signature
                # Without one it would hide what honest peers have, or lead us on and on.
                if self._policies.admits(record):
                    self._ahead.got(asking.peer, record)
                    self._follow(asking.peer, record)

        await self._ask_all([asking], ask, ASK_SECONDS_MAX)

    async def find(
        self, store_hash: str, seconds: float, *, public: bool = False
    ) -> list[tuple[PeerId, PathRecord]]:
        """Who has this path, of the configured peers at once, and of strangers too if it is
        `public`: whoever holds a path learns from the question that we want it. Who told a summary
        without it is not asked. An error or silence is no answer."""
        # Peers that cannot be reached must leave time to ask those that can.
        with trio.move_on_after(seconds / 2):
            await self._settled()
        found: list[tuple[PeerId, PathRecord]] = []

        async def ask(asking: Asking) -> None:
            record = (await asking.find([store_hash])).get(store_hash)
            if record is not None:
                found.append((asking.peer, record))

        asked = [
            asking
            for asking in self._sessions.values()
            if (public or self._policies.knows(asking.peer)) and asking.may_hold(store_hash)
        ]
        await self._ask_all(asked, ask, seconds / 2)
        return sorted(found, key=lambda item: item[0])

    async def joins(self, asking: Asking, fetch: Fetch) -> bool:
        """Whether a peer that came while a download runs has the same NAR."""
        if not (fetch.public or self._policies.knows(asking.peer)):
            return False
        try:
            found = (await asking.find([fetch.record.store_hash])).get(fetch.record.store_hash)
        except PeerError:
            return False
        return found is not None and found.manifest == fetch.id

    async def please(
        self, store_hash: str, seconds: float, but: Iterable[PeerId]
    ) -> list[tuple[PeerId, PathRecord]]:
        """Ask LAN caches that we know to look at their own sources."""
        found: list[tuple[PeerId, PathRecord]] = []
        skipped = set(but)

        async def ask(asking: Asking) -> None:
            record = await asking.please(store_hash)
            if record is not None:
                found.append((asking.peer, record))

        caches = [
            asking
            for asking in self._sessions.values()
            if asking.their.role == "peer"
            and asking.peer not in skipped
            and self._policies.knows(asking.peer)
        ]
        await self._ask_all(caches, ask, seconds)
        return sorted(found, key=lambda item: item[0])

    async def get_manifest(
        self, record: PathRecord, peers: Sequence[PeerId]
    ) -> tuple[Manifest, bytes] | None:
        """The record's manifest from the first of `peers` that sends a fitting one."""
        held = self._store.manifest(record.manifest)
        if held is not None and (manifest := self._fitting(record, held)) is not None:
            return manifest, held
        for peer in peers:
            asking = self._sessions.get(peer)
            if asking is None:
                continue
            try:
                encoded = await asking.manifest(record.manifest)
            except RemoteError as error:
                await self._ban(peer, str(error))
                continue
            except PeerError:
                continue
            manifest = self._fitting(record, encoded)
            if manifest is not None:
                return manifest, encoded
            self.blame(peer, record.manifest)
        return None

    def _fitting(self, record: PathRecord, encoded: bytes) -> Manifest | None:
        try:
            manifest = decode_manifest(encoded)
        except ManifestError as error:
            log.warning("a manifest for %s is malformed: %s", record.store_path, error)
            return None
        fits = (
            manifest.nar_hash == record.nar_hash
            and manifest.nar_size == record.nar_size
            and manifest.needles_digest == needles_digest(record.needles)
        )
        return manifest if fits else None

    def blame(self, peer: PeerId, manifest: ManifestId) -> None:
        """`peer` vouched for a manifest that does not rebuild its NAR."""
        log.warning("%s offered a manifest that is wrong: %s", peer, manifest.hex()[:16])
        if len(self._blamed) >= BLAMES_MAX:
            self._blamed.clear()
        self._blamed.add((peer, manifest))

    def is_blamed(self, peer: PeerId, manifest: ManifestId) -> bool:
        return (peer, manifest) in self._blamed

    def ranked(
        self, record: PathRecord, offers: Sequence[Offer]
    ) -> list[tuple[ManifestId, list[PeerId]]]:
        """Which manifests to try for this NAR, best first, and who offered each."""
        fair = [offer for offer in offers if (offer[0], offer[1].manifest) not in self._blamed]
        trusted = {o.manifest for _, o in fair if self._policies.trusted_manifest(o)}
        return candidates(record, fair, trusted)

    async def _ask_all(
        self,
        sessions: Sequence[Asking],
        ask: Callable[[Asking], Awaitable[None]],
        seconds: float,
    ) -> None:
        async def one(asking: Asking) -> None:
            try:
                await ask(asking)
            except RemoteError as error:
                # All who shared a question hear of it; the first one acts.
                if self._sessions.get(asking.peer) is asking:
                    await self._ban(asking.peer, str(error))
            except PeerError as error:
                log.info("%s", error)

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for asking in sessions:
                    nursery.start_soon(one, asking)
