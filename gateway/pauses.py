"""How often a download is read. Pure: times and sizes in, pauses out.

The kernel acknowledges every second packet to a reader that takes each as it comes, and those
acknowledgements go through the uplink that the whole office waits for: 2 % of it, where it is as
fast as the line. A reader that pauses lets it acknowledge many at once. What comes meanwhile waits
in the kernel, so nothing is slower by it than one pause.

Who has read much since the last pause, or has computed more than waited, is not paused: there the
network waits for us.
"""

from __future__ import annotations

PAUSE_SECONDS = 0.01
MUCH_BYTES = 64 * 1024
"""In one pause of a line of 50 Mbit/s: faster ones fill larger buffers, and read them at once."""
WAITED_SECONDS_MIN = 0.0003
COMPUTED_SHARE_MAX = 0.5
AT_ONCE_BYTES = 1024 * 1024
"""The first of a download are not held up: most are no larger."""


class Pauses:
    def __init__(self) -> None:
        self._total = 0
        self._since = 0.0
        self._computed = 0.0
        self._read = 0

    def after(self, now: float, computed: float, size: int) -> float:
        """Seconds to pause after `size` bytes were read; `computed` is the processor time of this
        thread so far."""
        self._total += size
        self._read += size
        if self._total <= AT_ONCE_BYTES or self._read >= MUCH_BYTES:
            self._begin(now, computed)
            return 0.0
        passed, busy = now - self._since, computed - self._computed
        if passed < WAITED_SECONDS_MIN or busy > passed * COMPUTED_SHARE_MAX:
            return 0.0
        self._begin(now + PAUSE_SECONDS, computed)
        return PAUSE_SECONDS

    def _begin(self, now: float, computed: float) -> None:
        self._since, self._computed, self._read = now, computed, 0
