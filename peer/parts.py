"""Whose part each block of a download is, among those who fetch the same. Pure.

The next block goes to whoever has had the fewest bytes (R. Graham's list scheduling, "Bounds on
Multiprocessing Timing Anomalies", SIAM J. Applied Mathematics 17, 1969). All see the same blocks in
the same order and so come to the same parts without a word. Dealt out by number alone, one has four
times the bytes of another for a while, since blocks are of 32 to 512 KiB: its fellows wait for it,
and the other's uplink idles.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


class Parts:
    """Of `count` fellows, named by their places in an order that all agree on."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._places: list[int] = []
        self._had = [(0, place) for place in range(count)]
        """(bytes, place), a heap."""

    def place(self, index: int, lengths: Sequence[int]) -> int:
        """Whose part block `index` is; `lengths` of all blocks that are known, in bytes."""
        places = self._places
        while len(places) <= index:
            had, place = self._had[0]
            heapq.heapreplace(self._had, (had + lengths[len(places)], place))
            places.append(place)
        return places[index]
