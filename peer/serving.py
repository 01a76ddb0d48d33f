"""Who of those we serve gets the next block. Pure.

    Serving   one session: what its peer asked for, within limits
    Uplink    all sessions of the process: whose turn it is, and for how much

Everybody's blocks leave through one uplink. Left to TCP, fifteen streams fight over it and whoever
asks for most gets most; so only TURNS_MAX are written to at a time, and a turn goes to

    1. blocks that the asker firmly wants, before those it wants only if there is room;
    2. sessions that have not had AHEAD_BYTES_MAX more than another that waits;
    3. blocks that we sent to nobody yet, because whoever has one passes it on;
    4. blocks a reader waits for;
    5. the session that has had the fewest bytes.

A turn is as large as the line is fast, so that a slow one changes hands after each block and a fast
one is not held up by changing. A turn that lasts much longer than others, behind a peer that does
not read, is not waited for. What is over a limit is refused at once, not left in silence; and
who waits long for its turn is told that it will come, for silence is what the dead give.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from chunker.cut import BLOCK_BYTES_AVERAGE
from chunker.digest import ManifestId

from .messages import Cancel, Refuse, Urgency, Want

QUEUED_WANTS_MAX = 1024
TURNS_MAX = 6
TURN_BYTES_START = 2 * BLOCK_BYTES_AVERAGE
TURN_BYTES_MIN = 1
"""At least one block goes in any case."""
TURN_BYTES_MAX = 4 * 1024 * 1024
TURN_SECONDS_LOW = 0.02
TURN_SECONDS_HIGH = 0.08
TURN_SECONDS_MAX = 0.5
TURN_PATIENCE = 2.0
"""Times what turns take, if that is longer: on a slow uplink all do, and more of them at once would
make each slower."""
TURN_SECONDS_SEEN_MAX = 2.0
"""What takes longer is a peer that does not read, and says nothing of the uplink."""
AHEAD_BYTES_MAX = 1024 * 1024
SPARE_AFTER_SECONDS = 0.2
SPARE_AFTER_TURNS = 5.0
"""Without a firm want, whichever is longer: a gap between two is no room, for a busy uplink never
makes up for it. A slow one has longer gaps."""
TURN_WEIGHT = 0.2
SPARE_SECONDS_MAX = 5.0
"""Who waits longer for what it wants only if there is room is in need: the fellow that should bring
it does not, and one that wants without end must not keep it out."""
SIGN_SECONDS = 1.0
"""Who waits so long is told that we live, each time anew: with thirty askers on 8 Mbit/s a turn
comes after eight seconds, and whoever hears nothing for three asks for all of it again."""
LOOKED_AT_MAX = 8
"""Of the blocks that one session waits for."""
SENT_KEPT_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Due:
    request: int
    manifest: ManifestId
    index: int
    length: int
    """Of the plain block, bytes."""
    urgency: Urgency = Urgency.FIRM


class Serving:
    def __init__(self) -> None:
        self.queue: deque[Due] = deque()

    def want(self, message: Want, visible: bool, lengths: Sequence[int]) -> list[Refuse]:
        """`visible`: the asker may read that manifest; `lengths`: of its blocks, bytes."""
        if not visible or any(index >= len(lengths) for index in message.indexes):
            return [Refuse(message.request, "not-here", ())]
        if len(self.queue) + len(message.indexes) > QUEUED_WANTS_MAX:
            return [Refuse(message.request, "over-limit", ())]
        self.queue.extend(
            Due(message.request, message.manifest, index, lengths[index], message.urgency)
            for index in message.indexes
        )
        return []

    def cancel(self, message: Cancel) -> None:
        self.queue = deque(
            due
            for due in self.queue
            if due.request != message.request
            or (message.indexes and due.index not in message.indexes)
        )

    def first(self) -> list[Due]:
        """Those that may go next."""
        return list(islice(self.queue, LOOKED_AT_MAX))

    def take(self, first: Due, bytes_max: int) -> list[Due]:
        """`first`, and what follows in order, as urgent or more, while it fits into `bytes_max`."""
        self.queue.remove(first)
        taken = [first]
        bytes_max -= first.length
        while (
            self.queue
            and self.queue[0].length <= bytes_max
            and self.queue[0].urgency <= max(first.urgency, Urgency.FIRM)
        ):
            bytes_max -= self.queue[0].length
            taken.append(self.queue.popleft())
        return taken

    def __len__(self) -> int:
        return len(self.queue)


@dataclass(slots=True)
class _Session:
    serving: Serving
    had_bytes: int = 0
    turn_bytes: int = TURN_BYTES_START
    turns: list[float] = field(default_factory=list)
    """When those under way began."""
    waits_since: float = float("inf")
    """Since when it waits and has got nothing that it firmly wants."""
    signed: float = float("-inf")
    """When it was last told that its turn will come."""


class Uplink:
    """Sessions are named by numbers of the caller's."""

    def __init__(self) -> None:
        self._sessions: dict[int, _Session] = {}
        self._waited: dict[int, _Session] = {}
        """Those that wanted something when we looked last."""
        self._served: set[int] = set()
        """Those with turns under way."""
        self._sent: OrderedDict[tuple[ManifestId, int], None] = OrderedDict()
        self._firm = float("-inf")
        self._turn_seconds = 0.0

    def join(self, session: int, serving: Serving) -> None:
        self._sessions[session] = _Session(serving)

    def leave(self, session: int) -> None:
        self._sessions.pop(session, None)
        self._served.discard(session)

    def is_wanted(self) -> bool:
        """Somebody waits for something, if only for room."""
        return any(state.serving.queue for state in self._sessions.values())

    def next(self, now: float) -> tuple[int, list[Due]] | None:
        """(session, what to send it now); tell `over` when it is sent."""
        if sum(self._running(now, self._sessions[n]) for n in self._served) >= TURNS_MAX:
            return None
        waiting = self._waiting(now)
        if not waiting:
            return None
        fair = min(state.had_bytes for state in waiting.values()) + AHEAD_BYTES_MAX
        best: tuple[tuple[bool, bool, bool, int, int, int], Due] | None = None
        for session, state in waiting.items():
            if state.turns:
                continue
            for due in state.serving.first():
                sent = (due.manifest, due.index) in self._sent
                spare = due.urgency is Urgency.SPARE and now < state.waits_since + SPARE_SECONDS_MAX
                ahead = state.had_bytes > fair
                rank = (spare, ahead, sent, int(due.urgency), state.had_bytes, session)
                if best is None or rank < best[0]:
                    best = rank, due
        if best is None:
            return None
        (spare, *_, session), first = best
        if not spare:
            self._firm = now
        elif now < self._firm + max(SPARE_AFTER_SECONDS, SPARE_AFTER_TURNS * self._turn_seconds):
            return None
        state = self._sessions[session]
        taken = state.serving.take(first, state.turn_bytes)
        state.turns.append(now)
        if first.urgency is not Urgency.SPARE:
            state.waits_since = now
        self._served.add(session)
        state.had_bytes += sum(due.length for due in taken)
        for due in taken:
            self._sent[due.manifest, due.index] = None
        while len(self._sent) > SENT_KEPT_MAX:
            self._sent.popitem(last=False)
        return session, taken

    def signs(self, now: float) -> list[tuple[int, ManifestId]]:
        """(session, a manifest of which it firmly wants a block): whom to give a sign of life."""
        signs: list[tuple[int, ManifestId]] = []
        for session, state in self._sessions.items():
            if now < max(state.waits_since, state.signed) + SIGN_SECONDS:
                continue
            firm = (due for due in state.serving.queue if due.urgency is not Urgency.SPARE)
            if (first := next(firm, None)) is not None:
                state.signed = now
                signs.append((session, first.manifest))
        return signs

    def over(self, now: float, session: int) -> None:
        """The oldest turn of the session has left this process."""
        state = self._sessions.get(session)
        if state is None or not state.turns:
            return
        seconds = now - state.turns.pop(0)
        self._turn_seconds += TURN_WEIGHT * (
            min(seconds, TURN_SECONDS_SEEN_MAX) - self._turn_seconds
        )
        if not state.turns:
            self._served.remove(session)
        if seconds < TURN_SECONDS_LOW:
            state.turn_bytes = min(2 * state.turn_bytes, TURN_BYTES_MAX)
        elif seconds > TURN_SECONDS_HIGH:
            state.turn_bytes = max(state.turn_bytes // 2, TURN_BYTES_MIN)

    def _waiting(self, now: float) -> dict[int, _Session]:
        """Who wants something. Whoever did not a moment ago, or is new, is as well served as the
        one of the others that had least: it does not catch up."""
        waited = self._waited
        waiting = {n: state for n, state in self._sessions.items() if state.serving.queue}
        new = [state for n, state in waiting.items() if n not in waited and not state.turns]
        if new:
            busy = [s.had_bytes for n, s in self._sessions.items() if n in waited or s.turns]
            least = min(busy, default=0)
            for state in new:
                state.had_bytes = max(state.had_bytes, least)
        for session in waited.keys() - waiting.keys():
            waited[session].waits_since = float("inf")
        for state in waiting.values():
            state.waits_since = min(state.waits_since, now)
        self._waited = waiting
        return waiting

    def _running(self, now: float, state: _Session) -> int:
        patience = max(TURN_SECONDS_MAX, TURN_PATIENCE * self._turn_seconds)
        return sum(now - began < patience for began in state.turns)
