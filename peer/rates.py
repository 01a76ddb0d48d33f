"""Bytes per second over the last seconds: windowed counters, with `now` as an argument. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW_SECONDS = 5
"""Whole slots of a second; the one under way comes on top."""


@dataclass(slots=True)
class Rate:
    """`total` counts since the start; `per_second` looks back WINDOW_SECONDS."""

    total: int = 0
    _since: float | None = None
    _slots: dict[int, int] = field(default_factory=dict)

    def add(self, now: float, count: int) -> None:
        if self._since is None:
            self._since = now
        self.total += count
        slot = int(now)
        if slot not in self._slots:
            self._drop_old(now)
            self._slots[slot] = 0
        self._slots[slot] += count

    def reach(self, now: float, total: int) -> None:
        """`total` is what another counter shows now; it never goes back."""
        if total > self.total or self._since is None:
            self.add(now, max(0, total - self.total))

    def per_second(self, now: float) -> float:
        if self._since is None:
            return 0.0
        self._drop_old(now)
        # A count that is younger than the window is not spread over time before it began, and
        # one that began just now not over a moment that makes any rate of it.
        seconds = max(1.0, min(now - self._since, now % 1 + WINDOW_SECONDS))
        return sum(self._slots.values()) / seconds

    def _drop_old(self, now: float) -> None:
        oldest = int(now) - WINDOW_SECONDS
        for slot in [slot for slot in self._slots if slot < oldest]:
            del self._slots[slot]


def seconds_left(missing: int, per_second: float) -> float | None:
    """None: nothing comes, so nobody can say."""
    return missing / per_second if per_second >= 1 else None
