"""What an answering session needs of the process; the swarm provides it."""

from __future__ import annotations

from typing import Protocol

import trio

from chunker.digest import ManifestId
from chunker.manifest import Manifest
from chunker.record import PathRecord
from chunker.store import BlockStore

from .catalogue import Catalogue
from .growing import Growing
from .identity import PeerId
from .introductions import Introductions
from .messages import Hello, Please
from .sending import Sending


class Library(Protocol):
    """What an answering session needs of the process; the swarm provides it."""

    store: BlockStore
    catalogue: Catalogue
    hello: Hello
    sending: Sending
    summaries: trio.CapacityLimiter
    """One is read at a time: each keeps a core busy, and the first spares the others its checks."""
    introductions: Introductions

    def welcomes(self, peer: PeerId) -> bool:
        """Whether this peer, as far as it is known now, may have a session."""
        ...

    def knows(self, peer: PeerId) -> bool:
        """It is configured here or a member, so that it may have a summary."""
        ...

    def load_manifest(self, wanted: ManifestId) -> Manifest | Growing | None: ...

    def grows(self, wanted: ManifestId) -> Growing | None:
        """A growing manifest of our own."""
        ...

    def is_filling(self, wanted: ManifestId) -> bool:
        """The blocks that are not here are being fetched."""
        ...

    async def look_for(self, asker: PeerId, message: Please) -> PathRecord | None:
        """Somebody said Please."""
        ...

    def watched(self, watcher: PeerId, record: PathRecord) -> None:
        """`watcher` wants to know of its blocks."""
        ...
