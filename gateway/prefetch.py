"""Which NARs to begin before Nix asks for them. Pure.

    narinfo served --asked--> remembered for a minute
    NAR asked for --requested--> what was asked about lately and refers to it is begun

Nix asks for the NAR of a path when it has those of its references. So when it asks for one, it will
ask for those that refer to it next, and a small one is here by then. A question about a narinfo
alone begins nothing: whoever looks what an update would bring wants no NARs. Large ones are
limited by the line and not by round trips, and in an office one member fetches them for all.

What was begun and not asked for yet is bounded; what Nix never asks for leaves the books in a
minute.
"""

from __future__ import annotations

from chunker.record import PathRecord, store_hash

KEEP_SECONDS = 60.0
NAR_BYTES_MAX = 512 * 1024
"""As in `delivery.SHARED_BYTES_MIN`: what everybody gets from an upstream by themselves."""
BEGUN_BYTES_MAX = 8 * 1024 * 1024
ASKED_MAX = 4096


class Prefetch:
    def __init__(self) -> None:
        self._asked: dict[str, tuple[float, PathRecord]] = {}
        """In the order in which they expire."""
        self._referrers: dict[str, set[str]] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        """Until when, and how many bytes; in the order in which they expire."""

    def asked(self, now: float, record: PathRecord) -> None:
        """Nix was told of a path that an upstream has."""
        name = record.store_hash
        self._expire(now)
        if record.nar_size > NAR_BYTES_MAX or name in self._asked or name in self._begun:
            return
        if len(self._asked) >= ASKED_MAX:
            return
        self._asked[name] = now + KEEP_SECONDS, record
        for reference in record.references:
            self._referrers.setdefault(store_hash(reference), set()).add(name)

    def requested(self, now: float, name: str) -> list[PathRecord]:
        """Nix asks for a NAR: those to begin now."""
        self._expire(now)
        self._forget(name)
        self._begun.pop(name, None)
        begun: list[PathRecord] = []
        room = BEGUN_BYTES_MAX - sum(size for _, size in self._begun.values())
        for referrer in sorted(self._referrers.get(name, ())):
            record = self._asked[referrer][1]
            if record.nar_size <= room:
                room -= record.nar_size
                begun.append(record)
                self._forget(referrer)
                self._begun[referrer] = now + KEEP_SECONDS, record.nar_size
        return begun

    def _expire(self, now: float) -> None:
        while self._asked and (first := next(iter(self._asked.items())))[1][0] <= now:
            self._forget(first[0])
        while self._begun and (begun := next(iter(self._begun.items())))[1][0] <= now:
            del self._begun[begun[0]]

    def _forget(self, name: str) -> None:
        _, record = self._asked.pop(name, (0.0, None))
        for reference in () if record is None else record.references:
            referrers = self._referrers.get(store_hash(reference), set())
            referrers.discard(name)
            if not referrers:
                self._referrers.pop(store_hash(reference), None)
