"""A question that is answered by a call, for a task that would rather wait.

Thousands of questions at once are answered by calls (`gateway.questions`): a task for each costs
more than the question. Whoever has a single one awaits it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import outcome
import trio

T = TypeVar("T")

Answered = Callable[[T | Exception], None]
"""Called once with the answer, or with why there is none."""
Stop = Callable[[], None]
"""Nobody wants the answer any more."""


async def answer_to(ask: Callable[[Answered[T]], Stop]) -> T:
    """Raises what the question was answered with. `ask` does not answer before it returns."""
    task = trio.lowlevel.current_task()

    def answered(answer: T | Exception) -> None:
        if isinstance(answer, Exception):
            trio.lowlevel.reschedule(task, outcome.Error(answer))
        else:
            trio.lowlevel.reschedule(task, outcome.Value(answer))

    stop = ask(answered)

    def abort(_: object) -> trio.lowlevel.Abort:
        stop()
        return trio.lowlevel.Abort.SUCCEEDED

    found: T = await trio.lowlevel.wait_task_rescheduled(abort)
    return found
