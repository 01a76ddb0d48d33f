"""Time and links: one heap of (time, ticket, action), and connections that break.

A link is one connection between two members. What is sent on it arrives in order or, when the
connection breaks first, not at all: over TCP nothing is lost in silence. `hold` stops one direction
for a while; held until it breaks, it is a one-way partition, otherwise a clog.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

Action = Callable[..., None]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        self._heap: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._ticket = 0

    def at(self, when: float, act: Action, *arguments: Any) -> None:
        self._ticket += 1
        heapq.heappush(self._heap, (when, self._ticket, act, arguments))

    def later(self, seconds: float, act: Action, *arguments: Any) -> None:
        self.at(self.now + seconds, act, *arguments)

    def step(self) -> bool:
        """One event; False when nothing is left to happen."""
        if not self._heap:
            return False
        self.now, _, act, arguments = heapq.heappop(self._heap)
        self.events += 1
        act(*arguments)
        return True


class Link:
    """`ends` are two names; which direction a message takes follows from who sends it."""

    __slots__ = ("_clock", "_held", "_last", "ends", "is_up", "latency", "life")

    def __init__(self, clock: Clock, ends: tuple[str, str], latency: float) -> None:
        self.ends = ends
        self.is_up = False
        self.latency = latency
        self.life = 0
        self._clock = clock
        self._held = [0.0, 0.0]
        self._last = [0.0, 0.0]

    def send(self, sender: str, act: Action, *arguments: Any) -> None:
        way = self.ends.index(sender)
        when = max(self._clock.now + self.latency, self._held[way], self._last[way])
        self._last[way] = when
        self._clock.at(when, self._arrive, self.life, act, arguments)

    def hold(self, sender: str, until: float) -> None:
        self._held[self.ends.index(sender)] = until

    def held_until(self, sender: str) -> float:
        return self._held[self.ends.index(sender)]

    def cut(self) -> None:
        self.is_up = False
        self.life += 1
        self._held, self._last = [0.0, 0.0], [0.0, 0.0]

    def _arrive(self, life: int, act: Action, arguments: tuple[Any, ...]) -> None:
        if life == self.life:
            act(*arguments)
