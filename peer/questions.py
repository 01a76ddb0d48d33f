"""What is asked of peers about a path: who has it, what its manifest is, whose word on it counts.

    find --------> Find to configured peers (and strangers, where public) --> offers
    please ------> Please to LAN caches that we know ----------------------> offers
    ranked ------> manifests of the offers, best first, less what was blamed on who offers
    get_manifest -> the first fitting one of those who offer it

An answer that breaks the protocol bans its sender; an error or silence is only no answer.
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
from chunker.references import needles_digest
from chunker.store import BlockStore

from .asking import Asking
from .errors import PeerError, RemoteError
from .fetch import Offer, candidates
from .identity import PeerId

if TYPE_CHECKING:
    from .swarm import Policies

log = logging.getLogger(__name__)

BLAMES_MAX = 10_000


class Questions:
    """`sessions` are those of the swarm, by peer; `settled` returns once each configured peer was
    reached or was not; `ban` ends a peer that broke the protocol."""

    def __init__(
        self,
        sessions: Mapping[PeerId, Asking],
        store: BlockStore,
        policies: Policies,
        settled: Callable[[], Awaitable[None]],
        ban: Callable[[PeerId, str], Awaitable[None]],
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._policies = policies
        self._settled = settled
        self._ban = ban
        self._blamed: set[tuple[PeerId, ManifestId]] = set()

    async def find(
        self, store_hash: str, seconds: float, *, public: bool = False
    ) -> list[tuple[PeerId, PathRecord]]:
        """Who has this path, of the configured peers at once, and of strangers too if it is
        `public`: whoever holds a path learns from the question that we want it. An error or
        silence is no answer."""
        # Peers that cannot be reached must leave time to ask those that can.
        with trio.move_on_after(seconds / 2):
            await self._settled()
        found: list[tuple[PeerId, PathRecord]] = []

        async def ask(asking: Asking) -> None:
            record = (await asking.find([store_hash])).get(store_hash)
            if record is not None:
                found.append((asking.peer, record))

        asked = [a for a in self._sessions.values() if public or self._policies.knows(a.peer)]
        await self._ask_all(asked, ask, seconds / 2)
        return sorted(found, key=lambda item: item[0])

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
                await self._ban(asking.peer, str(error))
            except PeerError as error:
                log.info("%s", error)

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for asking in sessions:
                    nursery.start_soon(one, asking)
