"""How much of what we send may wait in the kernel, by what the line carries."""

from __future__ import annotations

import pytest

from peer.sessions import UNSENT_BYTES_MAX, UNSENT_BYTES_MIN, fitting_unsent

MB = 1_000_000


@pytest.mark.parametrize(
    ("mb_per_second", "settles_at"),
    [(3, UNSENT_BYTES_MIN), (125, 1024 * 1024), (600, UNSENT_BYTES_MAX), (3000, UNSENT_BYTES_MAX)],
)
@pytest.mark.parametrize("start", [UNSENT_BYTES_MIN, 1024 * 1024, UNSENT_BYTES_MAX])
def test_it_settles_near_a_hundredth_of_a_second(
    mb_per_second: int, settles_at: int, start: int
) -> None:
    unsent = start
    for _ in range(8):
        unsent = fitting_unsent(unsent, MB, 1 / mb_per_second)
    assert settles_at <= unsent <= 2 * settles_at
    assert unsent == fitting_unsent(unsent, MB, 1 / mb_per_second)
    assert UNSENT_BYTES_MIN <= unsent <= UNSENT_BYTES_MAX


def test_a_clock_that_stands_still_is_a_fast_line() -> None:
    assert fitting_unsent(UNSENT_BYTES_MIN, MB, 0.0) == 2 * UNSENT_BYTES_MIN
