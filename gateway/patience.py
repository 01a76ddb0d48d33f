"""Many tasks that wait, each at most so long: until woken, or until its time is over.

A cancel scope with a deadline costs twice what waiting itself does, 5 µs. Here one task keeps the
time for all: those of one patience stand in the order in which their time is over.
"""

from __future__ import annotations

from collections import OrderedDict

import trio
from outcome import Value

_OVER = object()
_Line = OrderedDict[trio.lowlevel.Task, tuple[float, "Here"]]
Here = dict[trio.lowlevel.Task, _Line]
"""Who waits for one thing."""


class Patience:
    def __init__(self) -> None:
        self._lines: dict[float, _Line] = {}
        """By how long they wait; the first comes first."""
        self._due = trio.CancelScope()

    async def run(self) -> None:
        """Keeps the time, until cancelled; then it is over for all who wait."""
        try:
            while True:
                first = [_first_deadline(line) for line in self._lines.values() if line]
                self._due = trio.CancelScope(deadline=min(first, default=float("inf")))
                with self._due:
                    await trio.sleep_forever()
                self._end(trio.current_time())
        finally:
            self._end(float("inf"))

    async def wait(self, here: Here, seconds: float) -> bool:
        """Until `wake(here)`. False: its time is over."""
        task, deadline = trio.lowlevel.current_task(), trio.current_time() + seconds
        line = self._lines.get(seconds)
        if line is None:
            line = self._lines[seconds] = OrderedDict()
        line[task], here[task] = (deadline, here), line
        if deadline < self._due.deadline:
            self._due.deadline = deadline

        def abort(_: object) -> trio.lowlevel.Abort:
            del line[task], here[task]
            return trio.lowlevel.Abort.SUCCEEDED

        return await trio.lowlevel.wait_task_rescheduled(abort) is not _OVER

    def wake(self, here: Here) -> None:
        for task, line in here.items():
            del line[task]
            trio.lowlevel.reschedule(task)
        here.clear()

    def _end(self, now: float) -> None:
        for line in self._lines.values():
            while line and _first_deadline(line) <= now:
                task, (_, here) = line.popitem(last=False)
                del here[task]
                trio.lowlevel.reschedule(task, Value(_OVER))


def _first_deadline(line: _Line) -> float:
    return next(iter(line.values()))[0]
