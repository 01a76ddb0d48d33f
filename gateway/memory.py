"""What was found out about paths, for the next question. Pure.

What was found stays true: a signature does not expire, and the narinfo of a path does not change
except for signatures that are added. It is forgotten when a NAR could not be had, and when there is
no room. What is held in the block store is found there after a restart; the rest is asked again.

That a path is nowhere is remembered for a few seconds. Nix itself remembers our 404 for an hour, so
the question comes again only from another command or another user, or because we looked ahead and
Nix follows: seconds are enough for that. Longer, and whoever pushes a path to a cache and at once
builds with it would be told that it is not there.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .lookup import Holder
from .narinfo import format
from .trust import Admitted

if TYPE_CHECKING:
    from .responses import Response

ABSENT_SECONDS = 10.0
ABSENT_PATHS_MAX = 65_536
KNOWN_BYTES_MAX = 48 * 1024 * 1024
KNOWN_BYTES = 1536
"""What a path takes in memory beside its texts, about."""


@dataclass(slots=True)
class Known:
    """A path that may be served, and which upstreams said that they have it."""

    admitted: Admitted
    holders: tuple[Holder, ...] = ()
    levels_ahead: int = 0
    """How many levels of its references were looked up because of it."""
    answer: Response | None = field(default=None, repr=False)
    """With the narinfo that Nix gets, once it has asked."""

    @property
    def text(self) -> bytes:
        return format(self.admitted.record, self.admitted.signatures)

    def size(self) -> int:
        """Bytes in memory, about; twice the texts, which are held parsed and as an answer."""
        record = self.admitted.record
        texts = sum(map(len, record.references)) + sum(map(len, record.signatures))
        return KNOWN_BYTES + 2 * texts * (1 + len(self.holders))


class Memory:
    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[Known, int]] = OrderedDict()
        self._bytes = 0
        self._absent_until: OrderedDict[str, float] = OrderedDict()
        """In the order in which they expire."""

    def known(self, store_hash: str) -> Known | None:
        found = self._known.get(store_hash)
        return None if found is None else found[0]

    def learn(self, known: Known) -> None:
        store_hash = known.admitted.record.store_hash
        self.forget(store_hash)
        size = known.size()
        self._known[store_hash] = known, size
        self._bytes += size
        while self._bytes > KNOWN_BYTES_MAX and len(self._known) > 1:
            self.forget(next(iter(self._known)))

    def forget(self, store_hash: str) -> None:
        _, size = self._known.pop(store_hash, (None, 0))
        self._bytes -= size

    def learn_absent(self, now: float, store_hash: str) -> None:
        self._absent_until.pop(store_hash, None)
        self._absent_until[store_hash] = now + ABSENT_SECONDS
        while len(self._absent_until) > ABSENT_PATHS_MAX:
            self._absent_until.popitem(last=False)

    def is_absent(self, now: float, store_hash: str) -> bool:
        until = self._absent_until.get(store_hash)
        if until is not None and until <= now:
            del self._absent_until[store_hash]
            return False
        return until is not None
