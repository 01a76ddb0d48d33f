"""Records asked for before Nix asks. Pure.

Nix asks for a path, then for its references, then for theirs: a round trip for each level. A peer
that had one path of a closure most likely has the rest, so it is asked for the references at once,
and what it offers waits here for Nix's question. The gateway admits an offer when it is asked for,
like any other.

A path is asked for once in 30 s, of one peer, and no peer takes more than its share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from chunker.record import PathRecord

from .identity import PeerId
from .messages import FIND_HASHES_MAX

KEEP_SECONDS = 30.0
PATHS_MAX = 16_384
PATHS_PER_PEER_MAX = 4096
OFFERS_BYTES_MAX = 16 * 1024 * 1024
RECORD_BYTES = 512
"""What a record takes in memory beside its references and signatures, about."""


@dataclass(slots=True)
class _Path:
    peer: PeerId
    until: float
    record: PathRecord | None = None
    size: int = 0


class Ahead:
    def __init__(self) -> None:
        self._paths: dict[str, _Path] = {}
        """In the order in which they expire."""
        self._per_peer: Counter[PeerId] = Counter()
        self._bytes = 0

    def wants(self, now: float, peer: PeerId, store_hashes: Iterable[str]) -> list[str]:
        """Those to ask `peer` for now, at most a Find of them. They count as asked."""
        self._expire(now)
        room = min(
            FIND_HASHES_MAX,
            PATHS_MAX - len(self._paths),
            PATHS_PER_PEER_MAX - self._per_peer[peer],
        )
        asked: list[str] = []
        for store_hash in store_hashes:
            if len(asked) >= room:
                break
            if store_hash not in self._paths:
                self._paths[store_hash] = _Path(peer, now + KEEP_SECONDS)
                asked.append(store_hash)
        self._per_peer[peer] += len(asked)
        return asked

    def got(self, peer: PeerId, record: PathRecord) -> None:
        path = self._paths.get(record.store_hash)
        size = RECORD_BYTES + sum(map(len, record.references + record.signatures))
        if path is None or path.peer != peer or self._bytes + size - path.size > OFFERS_BYTES_MAX:
            return
        self._bytes += size - path.size
        path.record, path.size = record, size

    def offer(self, now: float, store_hash: str) -> tuple[PeerId, PathRecord] | None:
        self._expire(now)
        path = self._paths.get(store_hash)
        return None if path is None or path.record is None else (path.peer, path.record)

    def _expire(self, now: float) -> None:
        for store_hash, path in list(self._first_expired(now)):
            del self._paths[store_hash]
            self._bytes -= path.size
            self._per_peer[path.peer] -= 1
            if not self._per_peer[path.peer]:
                del self._per_peer[path.peer]

    def _first_expired(self, now: float) -> Iterable[tuple[str, _Path]]:
        for item in self._paths.items():
            if item[1].until > now:
                return
            yield item
