"""A fuzzer guided by lines: inputs that reach something new are kept and changed further.

Small on purpose: mutations are deletions, copies, words and bit flips; feedback is the set of
pairs of lines that ran one after the other in the target's module (`sys.settrace`).
"""

from __future__ import annotations

import sys
from random import Random
from types import FrameType
from typing import Any

from tests.fuzz.targets import INPUT_BYTES_MAX, Target

KEPT_MAX = 5000


class Finding(Exception):
    """`data` makes the target fail as `reason` says."""

    def __init__(self, data: bytes, reason: str) -> None:
        super().__init__(reason)
        self.data = data
        self.reason = reason


class Fuzzer:
    def __init__(self, target: Target, chance: Random) -> None:
        self.runs = 0
        self._target = target
        self._chance = chance
        self._seen: set[tuple[int, int]] = set()
        self.kept: list[bytes] = []
        for data in target.corpus().values():
            self.run(data)
            self.kept.append(data)

    @property
    def reached(self) -> int:
        return len(self._seen)

    def step(self) -> None:
        """One new input. Raises Finding."""
        data = self._chance.choice(self.kept)
        for _ in range(self._chance.randrange(1, 8)):
            data = self._mutated(data)
        if self.run(data[:INPUT_BYTES_MAX]) and len(self.kept) < KEPT_MAX:
            self.kept.append(data[:INPUT_BYTES_MAX])

    def run(self, data: bytes) -> bool:
        """Whether it reached something new. Raises Finding."""
        known, self.runs = len(self._seen), self.runs + 1
        sys.settrace(self._tracer())
        try:
            self._target.try_one(data, self._chance)
        except Exception as error:
            raise Finding(data, f"{type(error).__name__}: {error}") from error
        finally:
            sys.settrace(None)
        return len(self._seen) > known

    def _tracer(self) -> Any:
        file, seen, last = self._target.module.__file__, self._seen, [0]

        def line(frame: FrameType, event: str, argument: object) -> Any:
            seen.add((last[0], frame.f_lineno))
            last[0] = frame.f_lineno
            return line

        def call(frame: FrameType, event: str, argument: object) -> Any:
            return line if frame.f_code.co_filename == file else None

        return call

    def _mutated(self, data: bytes) -> bytes:
        chance = self._chance
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((1, 1, 2, 4, 16, 64)))
        kind = chance.randrange(6)
        if kind == 0:
            return data[:start] + data[end:]
        if kind == 1:
            return data[:start] + data[start:end] * chance.choice((2, 3, 20)) + data[end:]
        if kind == 2:
            return data[:start] + chance.choice(self._target.words) + data[start:]
        if kind == 3:
            return data[:start] + chance.choice(self._target.words) + data[end:]
        if kind == 4:
            other = chance.choice(self.kept)
            return data[:start] + other[chance.randrange(len(other) + 1) :]
        return data[:start] + chance.randbytes(end - start) + data[end:]
