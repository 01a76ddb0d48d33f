"""Whether the closure of a path can be had, for paths that only the swarm knows. Pure.

    Walk(path) --wants--> parts to ask about --said--> verdict
                             ^------ their references

| a part is       | because                                                | the walk              |
|-----------------|--------------------------------------------------------|-----------------------|
| WHOLE           | an upstream has it, and caches have whole closures; or | goes no further there |
|                 | it lies in this machine's Nix store                    |                       |
| held            | here or at peers: its references are known             | goes on with those    |
| NOWHERE         | every source said no                                   | ends: INCOMPLETE      |
| UNDECIDED       | a source said neither                                  | can only say UNKNOWN  |

Nix told that a path is here begins to build on it, and fails when a part of its closure is nowhere;
told 404 it asks the next substituter, or builds. But unknown is not absent: only a part that is
known to be nowhere makes a path INCOMPLETE, and one that was not looked at in time does not.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import Enum, auto

PATHS_MAX = 4096
"""Of one walk; a closure that is larger is UNKNOWN, unless a part of those seen is nowhere."""
ASKED_AT_ONCE_MAX = 256
"""As many as one Find holds."""
REMEMBERED_MAX = 65_536
WHOLE_SECONDS = 120.0
"""Nix asks for the narinfos of a closure within seconds; then the peers may be others."""
HELD_SECONDS = 30.0
NOWHERE_SECONDS = UNDECIDED_SECONDS = 10.0
"""As long as one build asks for the same again."""


class Word(Enum):
    WHOLE = auto()
    NOWHERE = auto()
    UNDECIDED = auto()


@dataclass(frozen=True, slots=True)
class Held:
    """`references` are full store paths; the path's own among them does not matter."""

    references: tuple[str, ...]


Answer = Word | Held


class Verdict(Enum):
    COMPLETE = auto()
    INCOMPLETE = auto()
    UNKNOWN = auto()


class Walk:
    """`wants` and `said` in turns until `verdict` is not None. Memory: the names of its paths."""

    def __init__(self, root: str, references: tuple[str, ...]) -> None:
        self.missing = ""
        """The part that is nowhere."""
        self._seen = {root}
        self._waiting: deque[str] = deque()
        self._asked: set[str] = set()
        self._is_sure = True
        self._add(references)

    def wants(self) -> list[str]:
        """Store paths to ask about now. They count as asked; each must be `said`."""
        count = min(len(self._waiting), ASKED_AT_ONCE_MAX - len(self._asked))
        batch = [self._waiting.popleft() for _ in range(count)]
        self._asked.update(batch)
        return batch

    def said(self, store_path: str, answer: Answer) -> None:
        self._asked.discard(store_path)
        if isinstance(answer, Held):
            self._add(answer.references)
        elif answer is Word.NOWHERE:
            self.missing = self.missing or store_path
        elif answer is Word.UNDECIDED:
            self._is_sure = False

    @property
    def verdict(self) -> Verdict | None:
        """None while there is something to ask, or an answer to come."""
        if self.missing:
            return Verdict.INCOMPLETE
        if self._waiting or self._asked:
            return None
        return Verdict.COMPLETE if self._is_sure else Verdict.UNKNOWN

    def unanswered(self) -> frozenset[str]:
        """What was asked and not said."""
        return frozenset(self._asked)

    def paths(self) -> frozenset[str]:
        """All that were seen, the root too. Where it is COMPLETE, each of them is."""
        return frozenset(self._seen)

    def _add(self, references: tuple[str, ...]) -> None:
        for store_path in references:
            if store_path in self._seen:
                continue
            if len(self._seen) >= PATHS_MAX:
                self._is_sure = False
                return
            self._seen.add(store_path)
            self._waiting.append(store_path)


class Memory:
    """What was answered of each path lately, so that the parts of one closure cost one walk."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, tuple[float, Answer]] = OrderedDict()

    def answer(self, now: float, store_path: str) -> Answer | None:
        until, answer = self._answers.get(store_path, (float("-inf"), None))
        return answer if now < until else None

    def learn(self, now: float, store_path: str, answer: Answer) -> None:
        self._answers.pop(store_path, None)
        self._answers[store_path] = now + _seconds(answer), answer
        while len(self._answers) > REMEMBERED_MAX:
            self._answers.popitem(last=False)


def _seconds(answer: Answer) -> float:
    if answer is Word.WHOLE:
        return WHOLE_SECONDS
    if answer is Word.NOWHERE:
        return NOWHERE_SECONDS
    return UNDECIDED_SECONDS if answer is Word.UNDECIDED else HELD_SECONDS
