"""What makes `narswarm peer` an office cache: it gets what a member asks for and it lacks.

    Please --look_for--> a record and manifest from our sources, offered at once
    Watch  --pull------> the blocks, served to the watchers as they come

A source's word never replaces what is whole here already.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from chunker.digest import ManifestId
from chunker.errors import StoreError
from chunker.record import PathRecord

from .errors import PeerError
from .fetch import Fetch
from .identity import PeerId

if TYPE_CHECKING:
    from .swarm import Swarm

log = logging.getLogger(__name__)

LOOK_SECONDS_MAX = 2.0
PULLS_MAX = 256


class PullThrough:
    def __init__(self, swarm: Swarm) -> None:
        self.pulling: set[ManifestId] = set()
        self._swarm = swarm

    async def look_for(self, asker: PeerId, store_hash: str) -> PathRecord | None:
        """A configured peer said Please. None for everybody else, and where nobody has it."""
        swarm, store = self._swarm, self._swarm.store
        if not swarm.policies.pulls_through or not swarm.policies.knows(asker):
            return None
        held = store.record(store_hash)
        if held is not None and (
            held.manifest in swarm.fetches or store.is_verified(held.manifest)
        ):
            return swarm.catalogue.may_read(asker, held.manifest)
        found = await swarm.questions.find(store_hash, LOOK_SECONDS_MAX)
        offers = [(p, o) for p, o in found if p != asker and swarm.policies.admits(o)]
        offered = {offer.manifest: offer for _, offer in offers}
        for wanted, peers in swarm.questions.ranked(offers[0][1], offers) if offers else ():
            record = offered[wanted]
            got = await swarm.questions.get_manifest(record, peers)
            if got is None:
                continue
            store.put_manifest(wanted, got[1], verified=False)
            store.put_record(record)
            swarm.catalogue.add(record)
            return record
        return None

    def begins(self, record: PathRecord) -> bool:
        """Whether a watched path is to be pulled now; `pull` must follow."""
        swarm, wanted = self._swarm, record.manifest
        if not swarm.policies.pulls_through or len(self.pulling) >= PULLS_MAX:
            return False
        if swarm.office.load(wanted) is not None:
            return False  # it grows: somebody gets it as it is
        if wanted in self.pulling or wanted in swarm.fetches or swarm.store.is_verified(wanted):
            return False
        self.pulling.add(wanted)
        return True

    async def pull(self, record: PathRecord) -> None:
        try:
            fetch = await Fetch.open(self._swarm, record)
            if fetch is not None:
                await fetch.complete()
        except (PeerError, StoreError) as error:
            log.warning("could not fill %s: %s", record.store_path, error)
        finally:
            self.pulling.discard(record.manifest)
            self._swarm.inbound.restate(record.manifest)
