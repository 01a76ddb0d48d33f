"""A crowd ends near the fluid bound, and the owner's uplink carries the NAR about once."""

from __future__ import annotations

import statistics

import pytest

from tests.sim.crowd import Crowd

RATE = 25e6 / 8
BLOCKS = 200


@pytest.mark.parametrize(("peers", "uplink"), [(2, 1.0), (8, 1.0), (16, 1.0), (16, 0.95)])
def test_a_flash_crowd_ends_near_the_fluid_bound(peers: int, uplink: float) -> None:
    """An uplink that is a little slower than the WAN must not make everybody run to the owner."""
    result = Crowd(1, peers, BLOCKS, RATE, RATE * uplink, RATE).run()
    assert statistics.median(result.seconds) <= 1.25 * result.bound_seconds
    assert result.seconds[-1] <= 1.3 * result.bound_seconds
    assert result.duplicates <= 0.02
    assert result.owner_sent <= 1.25


def test_a_source_with_plenty_gives_plenty() -> None:
    """Fellows with slow uplinks: waiting for them would cost more than the source has to give."""
    result = Crowd(1, 8, BLOCKS, RATE, RATE, RATE, owner_up=20 * RATE, fellow_up=RATE / 20).run()
    assert statistics.median(result.seconds) <= 1.5 * BLOCKS * 131072 / RATE
