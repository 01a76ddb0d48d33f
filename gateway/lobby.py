"""Where HTTP connections are between two requests: one task waits for all of them.

    epoll --ready--> Guest.take_in() --> STAYS (it was answered at once) | BUSY (a task) | OVER

A task, a deadline and two passes through trio's loop for each request cost twice as much as an
answer that is known. So a connection has a task only while it needs one: for the rest of a request,
for an answer that is not there yet, for a body. All others wait here, in an epoll of our own, for
which trio waits as for a socket.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from enum import Enum, auto
from typing import Generic, Protocol, TypeVar

import trio

READY_AT_ONCE_MAX = 64
"""Between two passes through trio's loop: the others of the process wait meanwhile."""


class After(Enum):
    STAYS = auto()
    BUSY = auto()
    OVER = auto()


class Guest(Protocol):
    def fileno(self) -> int: ...

    def take_in(self) -> After:
        """There is something to read, or the end. Never waits."""
        ...

    def close(self) -> None: ...


G = TypeVar("G", bound=Guest)


class Lobby(Generic[G]):
    def __init__(self, serve: Callable[[G], None], idle_seconds_max: float) -> None:
        """`serve` takes a connection that is busy; it may come back with `enter`."""
        self._serve = serve
        self._idle_seconds_max = idle_seconds_max
        self._epoll = select.epoll()
        self._guests: dict[int, G] = {}
        self._since: dict[G, float] = {}
        """The longest first."""
        self._scope = trio.CancelScope()

    @property
    def longest(self) -> float:
        """Since when who has waited longest does."""
        return next(iter(self._since.values()), float("inf"))

    def enter(self, guest: G) -> None:
        """It waits for its next request from now on, and is ready at once where that has come."""
        self._guests[guest.fileno()] = guest
        self._since[guest] = trio.current_time()
        self._epoll.register(guest.fileno(), select.EPOLLIN)
        if len(self._since) == 1:
            self._scope.deadline = self.longest + self._idle_seconds_max

    def close_longest(self) -> bool:
        """For the place of who has waited longest; whether there was one."""
        longest = next(iter(self._since), None)
        if longest is not None:
            self._leave(longest)
            longest.close()
        return longest is not None

    async def run(self) -> None:
        """Until cancelled; then all that wait here are closed."""
        try:
            while True:
                with trio.CancelScope(deadline=self.longest + self._idle_seconds_max) as scope:
                    self._scope = scope
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._end_idle()
                now = trio.current_time()
                for descriptor, _ in self._epoll.poll(0, READY_AT_ONCE_MAX):
                    self._take_in(now, self._guests[descriptor])
        finally:
            while self.close_longest():
                pass
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()

    def _take_in(self, now: float, guest: G) -> None:
        after = guest.take_in()
        if after is After.STAYS:
            del self._since[guest]
            self._since[guest] = now
            return
        self._leave(guest)
        if after is After.BUSY:
            self._serve(guest)
        else:
            guest.close()

    def _end_idle(self) -> None:
        while self.longest + self._idle_seconds_max <= trio.current_time():
            self.close_longest()

    def _leave(self, guest: G) -> None:
        self._epoll.unregister(guest.fileno())
        del self._guests[guest.fileno()], self._since[guest]
