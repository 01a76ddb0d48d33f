"""What one peer that watches is told unasked of the blocks that come in here, and when. Pure.

    note --fresh or not--> due --> take

Two thirds of all messages of an office were such news, and each costs a pass of two loops. What
came from a source is *fresh*: no fellow has it from anywhere else, so it is told almost at once,
and all else that is new goes with it. What came from a fellow was told by that fellow already; who
else has it is good to know should that one fail, and can wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chunker.digest import ManifestId

FRESH_SECONDS = 0.05
STALE_SECONDS = 0.5
"""Between one message and the next. After a quiet time there is nothing to wait for."""


@dataclass(slots=True)
class News:
    indexes: dict[ManifestId, list[int]] = field(default_factory=dict)
    restated: set[ManifestId] = field(default_factory=set)
    """Of these all that is here is told once more."""
    told: float = float("-inf")
    is_fresh: bool = False

    def note(self, manifest: ManifestId, index: int, *, fresh: bool) -> None:
        """A block of a watched manifest came in."""
        self.indexes.setdefault(manifest, []).append(index)
        self.is_fresh = self.is_fresh or fresh

    def restate(self, manifest: ManifestId) -> None:
        self.restated.add(manifest)
        self.is_fresh = True

    @property
    def due(self) -> float:
        """When to `take`; never where there is nothing."""
        if not self.indexes and not self.restated:
            return float("inf")
        return self.told + (FRESH_SECONDS if self.is_fresh else STALE_SECONDS)

    def take(self, now: float) -> tuple[dict[ManifestId, list[int]], set[ManifestId]]:
        """(new blocks, manifests to state anew), which are told now."""
        taken = self.indexes, self.restated
        self.indexes, self.restated, self.told, self.is_fresh = {}, set(), now, False
        return taken
