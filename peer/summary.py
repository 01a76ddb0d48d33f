"""Which paths a peer holds, told once and then kept up to date, so that a miss costs no packet.

    asker                         answerer
    GetSummary(r) ------------->  Telling
    Heard  <-- SummaryPart(r, 0), ... SummaryPart(r, n, last)    everything, ascending
           <-- SummaryDelta(r, n + 1), SummaryDelta(r, n + 2)... what came and went

A path is told as the first 8 bytes of BLAKE3(salt || store hash), the salt being the answerer's: so
only who knows a store hash can test it. A false yes (one in 2^64 for each path) costs a question.

Numbers run through parts and deltas. A number seen before is ignored; one that is missing makes the
asker forget everything and ask anew. A change is told at once, or 250 ms after those before it, or
when 256 wait. Of several changes to one path only the last counts, so saying one twice does no
harm, and what changes while the whole is read follows as a delta.

| Heard    | `may_hold`                    | next                                            |
|----------|-------------------------------|-------------------------------------------------|
| silent   | always: it has to be asked    | `asks`                                          |
| reading  | always                        | the last part -> knowing; a gap -> silent       |
| knowing  | what was told                 | deltas; a gap, or too many paths -> silent      |

Both sides are pure.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from chunker.record import PathRecord

from .catalogue import prefix
from .errors import RemoteError
from .messages import (
    DELTA_PREFIXES_MAX,
    PREFIX_BYTES,
    SUMMARY_PART_PREFIXES_MAX,
    Message,
    Refuse,
    SummaryDelta,
    SummaryPart,
)

PREFIXES_MAX = 1_000_000
"""8 MB for each peer. Who holds more is asked each time."""
DELTA_SECONDS = 0.25
CHANGES_MAX = 65_536
"""Changes that wait for a slow asker; with more it has to ask anew."""
SUMMARY_SECONDS_MIN = 10.0
"""Between two summaries to one asker: each costs 0.1 s of a core."""
LOOSE_PREFIXES_MIN = 4096
"""Changes are kept beside the sorted whole up to this many, or an eighth of it."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Read what the asker may have, then send `Telling.whole`."""

    request: int


@dataclass(frozen=True, slots=True)
class Change:
    record: PathRecord
    held: bool


class Telling:
    """The answerer's side. `next` says what to look up; `whole` and `delta` make the messages."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._request: int | None = None
        self._number = 0
        self._whole_at = float("-inf")
        self._delta_at = float("-inf")
        self._changes: dict[str, Change] = {}

    def asked(self, request: int) -> None:
        """A GetSummary. It replaces one that waits."""
        self._asked = request

    def changed(self, record: PathRecord, held: bool) -> None:
        if self._request is None:
            return
        self._changes.pop(record.store_hash, None)
        if len(self._changes) >= CHANGES_MAX:
            self._changes.clear()
            self._number += 1
        self._changes[record.store_hash] = Change(record, held)

    @property
    def wake_at(self) -> float:
        """When `next` has something."""
        if self._asked is not None:
            return self._whole_at + SUMMARY_SECONDS_MIN
        if not self._changes:
            return float("inf")
        full = len(self._changes) >= DELTA_PREFIXES_MAX
        return float("-inf") if full else self._delta_at + DELTA_SECONDS

    def next(self, now: float) -> Whole | list[Change] | None:
        """What to look up now: everything, some changes, or nothing yet."""
        if now < self.wake_at:
            return None
        if self._asked is not None:
            self._request, self._asked = self._asked, None
            self._number = 0
            self._whole_at = now
            self._changes.clear()
            return Whole(self._request)
        self._delta_at = now
        taken = [self._changes.pop(key) for key in list(self._changes)[:DELTA_PREFIXES_MAX]]
        return taken or None

    def refuse(self, reason: str) -> Refuse:
        """Tell no more, until asked again."""
        assert self._request is not None
        refusal = Refuse(self._request, reason, ())
        self._request = None
        self._changes.clear()
        return refusal

    def whole(self, prefixes: Sequence[bytes]) -> Iterator[Message]:
        """`prefixes`: what the asker may have, ascending; read after `next` said Whole."""
        assert self._request is not None
        if len(prefixes) > PREFIXES_MAX:
            yield self.refuse("over-limit")
            return
        step = SUMMARY_PART_PREFIXES_MAX
        for at in range(0, max(len(prefixes), 1), step):
            body = b"".join(prefixes[at : at + step])
            yield SummaryPart(self._request, self._count(), at + step >= len(prefixes), body)

    def delta(self, added: Iterable[bytes], removed: Iterable[bytes]) -> SummaryDelta | None:
        """Prefixes of the changes that the asker may know of."""
        if self._request is None:
            return None
        came, went = b"".join(added), b"".join(removed)
        return SummaryDelta(self._request, self._count(), came, went) if came or went else None

    def _count(self) -> int:
        self._number += 1
        return self._number - 1


class Heard:
    """The asker's side: what one peer said that it holds. `salt` is that peer's."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._request: int | None = None
        self.is_whole = False
        self._expected = 0
        self._forget()

    def asks(self, request: int) -> None:
        """A GetSummary goes out; whatever answers an older one is ignored from now on."""
        self._request = request
        self._forget()

    def refused(self, request: int) -> bool:
        """Whether that was the number of our GetSummary. The peer is asked each time again."""
        ours = request == self._request
        if ours:
            self._request = None
            self._forget()
        return ours

    def hear(self, message: SummaryPart | SummaryDelta) -> bool:
        """False if something was lost: `asks` anew. Raises RemoteError for what cannot be."""
        if message.request != self._request or message.number < self._expected:
            return True
        if message.number > self._expected:
            self._request = None
            self._forget()
            return False
        self._expected += 1
        if isinstance(message, SummaryPart) is self.is_whole:
            raise RemoteError("a summary whose parts and deltas are mixed")
        if isinstance(message, SummaryPart):
            self._part(_numbers(message.prefixes))
            self.is_whole = message.last
        else:
            self._delta(_numbers(message.added), _numbers(message.removed))
        if len(self) > PREFIXES_MAX:
            self.refused(message.request)
        return True

    def may_hold(self, store_hash: str) -> bool:
        """False only if the peer told everything and this was not in it."""
        if not self.is_whole:
            return True
        number = int.from_bytes(prefix(self._salt, store_hash), "big")
        return number in self._added or (number not in self._removed and self._told(number))

    def __len__(self) -> int:
        return len(self._sorted) + len(self._added) - len(self._removed)

    def _forget(self) -> None:
        self.is_whole = False
        self._expected = 0
        self._sorted = array("Q")
        self._added: set[int] = set()
        self._removed: set[int] = set()
        """Some of `_sorted`."""

    def _part(self, numbers: array[int]) -> None:
        above = -1 if not self._sorted else self._sorted[-1]
        if numbers and (numbers[0] <= above or list(numbers) != sorted(set(numbers))):
            raise RemoteError("a summary that is not in order")
        self._sorted += numbers

    def _delta(self, added: array[int], removed: array[int]) -> None:
        for number in added:
            self._removed.discard(number)
            if not self._told(number):
                self._added.add(number)
        for number in removed:
            self._added.discard(number)
            if self._told(number):
                self._removed.add(number)
        loose = len(self._added) + len(self._removed)
        if loose > max(LOOSE_PREFIXES_MIN, len(self._sorted) // 8):
            kept = [number for number in self._sorted if number not in self._removed]
            self._sorted = array("Q", sorted(kept + list(self._added)))
            self._added, self._removed = set(), set()

    def _told(self, number: int) -> bool:
        at = bisect_left(self._sorted, number)
        return at < len(self._sorted) and self._sorted[at] == number


def _numbers(prefixes: bytes) -> array[int]:
    assert array("Q").itemsize == PREFIX_BYTES
    numbers = array("Q")
    numbers.frombytes(prefixes)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers
