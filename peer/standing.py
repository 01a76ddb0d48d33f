"""How one peer has behaved towards us: what it owes, how fast it is, and whether it rests. Pure.

    idle --asked--> busy --blocks come--> rate and patience follow what was seen
    busy --silent, or under 16 KiB/s for 10 s--> rests; what it owed is asked of others
    resting --its time is up, or a block comes after all--> idle

The rate is measured over time in which something was owed, so a peer that nobody asks does not
become slow. How much is asked ahead of a peer follows its rate: enough to cover the way there and
back, and no more, because what waits in its queue can be asked of nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chunker.cut import BLOCK_BYTES_AVERAGE
from chunker.digest import BlockId, ManifestId

DEPTH_BLOCKS_MIN = 2
DEPTH_BLOCKS_MAX = 64
DEPTH_BLOCKS_START = 2
"""What a liar can send before the first block has shown it."""
DEPTH_SECONDS = 0.5
"""Of transfer asked ahead: round trips on a LAN and the queue of a busy peer."""
RATE_START_BYTES_PER_SECOND = 8 * 1024 * 1024
RATE_MIN_BYTES_PER_SECOND = 16 * 1024
RATE_SECONDS_MIN = 0.25
"""Shorter than that says more about buffers than about the peer."""
RATE_WEIGHT = 0.5
ANSWERS_SECONDS_START = 0.25
ANSWERS_WEIGHT = 0.2
SILENCE_SECONDS_MIN = 3.0
SILENCE_SECONDS_MAX = 10.0
TELLS_SECONDS = 3.0
"""Who told of a block, or that our turn will come (`serving`), so lately is alive, and sends
nothing because others are served first: then it may be silent for SILENCE_SECONDS_MAX."""
SILENCE_PATIENCE = 4.0
"""Times the time in which it should have sent everything it owes."""
DRIP_SECONDS_MAX = 10.0
REST_SECONDS = 10.0
PAUSE_SECONDS = 0.5
"""After it said that it is busy."""


@dataclass(slots=True)
class Standing:
    holds: dict[ManifestId, set[int] | range] = field(default_factory=dict)
    filling: set[ManifestId] = field(default_factory=set)
    """What it is getting itself."""
    owed: dict[tuple[int, int], BlockId] = field(default_factory=dict)
    """By (request, index); without what it owes only if it has room."""
    owed_bytes: int = 0
    spare: dict[tuple[int, int], BlockId] = field(default_factory=dict)
    """What it may send if its uplink has room for it."""
    rate: float = RATE_START_BYTES_PER_SECOND
    depth_blocks: int = DEPTH_BLOCKS_START
    heard: float = 0.0
    told: float = float("-inf")
    """When it last said what it holds, if only that it lives."""
    busy_since: float = 0.0
    busy_bytes: int = 0
    rests_until: float = 0.0
    answers_seconds: float = ANSWERS_SECONDS_START
    """From asking for a block to having it."""
    _measured_since: float = 0.0
    _measured_bytes: int = 0

    def free_blocks(self) -> int:
        """How many more blocks may be asked of it; 0 until a quarter of its depth is free, because
        one Want for many blocks costs as much as one for each."""
        free = self.open_blocks()
        return free if free >= max(1, self.depth_blocks // 4) else 0

    def open_blocks(self) -> int:
        return max(0, self.depth_blocks - len(self.owed))

    def free_spare(self) -> int:
        return self.depth_blocks - len(self.spare)

    def holds_at_most(self, manifest: ManifestId, blocks: int) -> None:
        """It is known now how many there are."""
        if isinstance(held := self.holds.get(manifest), set):
            self.holds[manifest] = {index for index in held if index < blocks}

    def rests(self, now: float) -> bool:
        return now < self.rests_until

    def seconds_for(self, length: int) -> float:
        """When a block of `length` bytes would be here if it were asked for now."""
        return (self.owed_bytes + length) / self.rate

    def asked(self, now: float) -> None:
        """It owes something from now on, and owed nothing before."""
        self.heard = self.busy_since = self._measured_since = now
        self.busy_bytes = self._measured_bytes = 0

    def gave(self, now: float, size: int, seconds_asked: float | None) -> None:
        """A block of `size` bytes on the wire came, so long after it was asked for; None: spare,
        which says little about the peer's rate."""
        self.heard = now
        self.rests_until = 0.0
        if seconds_asked is None:
            return
        self.answers_seconds += ANSWERS_WEIGHT * (seconds_asked - self.answers_seconds)
        self.busy_bytes += size
        self._measured_bytes += size
        seconds = now - self._measured_since
        if seconds >= RATE_SECONDS_MIN:
            seen = max(self._measured_bytes / seconds, RATE_MIN_BYTES_PER_SECOND)
            self.rate += RATE_WEIGHT * (seen - self.rate)
            self._measured_since, self._measured_bytes = now, 0
        fits = int(self.rate * DEPTH_SECONDS / BLOCK_BYTES_AVERAGE)
        aim = max(DEPTH_BLOCKS_MIN, min(DEPTH_BLOCKS_MAX, fits))
        # One more for each block that came: a peer is not flooded before it has shown its rate.
        self.depth_blocks = min(aim, self.depth_blocks + 1)

    def over(self, request: int, index: int, length: int) -> None:
        """It owes this block no longer."""
        place = request, index
        if self.spare.pop(place, None) is None and self.owed.pop(place, None) is not None:
            self.owed_bytes -= length

    def fails(self, now: float) -> bool:
        """Silent for too long, or dripping."""
        if not self.owed:
            return False
        due = SILENCE_PATIENCE * self.owed_bytes / self.rate
        silence = min(max(due, SILENCE_SECONDS_MIN), SILENCE_SECONDS_MAX)
        if now - self.told < TELLS_SECONDS:
            silence = SILENCE_SECONDS_MAX
        busy = now - self.busy_since
        drips = busy > DRIP_SECONDS_MAX and self.busy_bytes / busy < RATE_MIN_BYTES_PER_SECOND
        return now - self.heard > silence or drips

    def pause(self, now: float) -> None:
        self.rests_until = max(self.rests_until, now + PAUSE_SECONDS)
        self.depth_blocks = max(DEPTH_BLOCKS_MIN, self.depth_blocks // 2)

    def rest(self, now: float) -> None:
        self.rests_until = now + REST_SECONDS
        self.rate = max(self.rate / 4, RATE_MIN_BYTES_PER_SECOND)
        self.depth_blocks = DEPTH_BLOCKS_MIN
