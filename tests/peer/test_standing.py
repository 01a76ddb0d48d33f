"""What one peer's behaviour says of it."""

from __future__ import annotations

import pytest

from chunker.digest import BlockId, ManifestId
from peer.standing import (
    DEPTH_BLOCKS_MAX,
    DEPTH_BLOCKS_MIN,
    DEPTH_BLOCKS_START,
    DRIP_SECONDS_MAX,
    PAUSE_SECONDS,
    RATE_MIN_BYTES_PER_SECOND,
    RATE_START_BYTES_PER_SECOND,
    REST_SECONDS,
    SILENCE_SECONDS_MAX,
    SILENCE_SECONDS_MIN,
    TELLS_SECONDS,
    Standing,
)

M = ManifestId(b"m" * 32)
BLOCK = 131_072


def owing(blocks: int = 1, now: float = 0.0, length: int = BLOCK) -> Standing:
    state = Standing()
    state.asked(now)
    for index in range(blocks):
        state.owed[1, index] = BlockId(bytes(32))
        state.owed_bytes += length
    return state


def feed(state: Standing, rate: float, seconds: float, now: float = 0.0) -> float:
    end = now + seconds
    while now < end:
        now += BLOCK / rate
        state.gave(now, BLOCK, BLOCK / rate)
    return now


@pytest.mark.parametrize("rate", [1e5, 3e6, 60e6])
def test_the_rate_becomes_what_is_seen(rate: float) -> None:
    state = owing()
    feed(state, rate, 20.0)
    assert rate / 1.1 < state.rate < rate * 1.1


def test_depth_covers_half_a_second_of_transfer_and_grows_by_one_for_each_block() -> None:
    state = owing()
    assert state.depth_blocks == DEPTH_BLOCKS_START
    state.gave(0.01, BLOCK, 0.01)
    assert state.depth_blocks == DEPTH_BLOCKS_START + 1
    feed(state, 100e6, 3.0)
    assert state.depth_blocks == DEPTH_BLOCKS_MAX
    feed(state, 1e5, 30.0, 4.0)
    assert state.depth_blocks == DEPTH_BLOCKS_MIN


def test_time_in_which_nothing_was_owed_makes_nobody_slow() -> None:
    state = owing()
    now = feed(state, 10e6, 3.0)
    rate = state.rate
    state.owed.clear()
    state.asked(now + 1000)
    feed(state, 10e6, 1.0, now + 1000)
    assert state.rate > rate / 1.2


def test_what_was_asked_as_spare_says_nothing_about_the_rate() -> None:
    state = owing()
    for second in range(1, 20):
        state.gave(float(second), BLOCK, None)
    assert state.rate == RATE_START_BYTES_PER_SECOND and state.depth_blocks == DEPTH_BLOCKS_START


def test_the_queue_counts_in_when_a_block_would_be_here() -> None:
    state = owing(3)
    state.rate = BLOCK
    assert state.seconds_for(BLOCK) == 4.0


def test_a_quarter_of_the_depth_must_be_free_before_more_is_asked() -> None:
    state = owing()
    state.depth_blocks = 16
    state.owed = {(1, index): BlockId(bytes(32)) for index in range(13)}
    assert state.open_blocks() == 3 and state.free_blocks() == 0
    del state.owed[1, 0]
    assert state.free_blocks() == 4


def test_silence_fails_it_later_where_it_owes_more_but_not_for_ever() -> None:
    assert not Standing().fails(1e9)
    little, much, endless = owing(), owing(60), owing(10_000)
    much.rate = endless.rate = 60 * BLOCK  # a second for what it owes, and minutes
    assert not little.fails(SILENCE_SECONDS_MIN) and little.fails(SILENCE_SECONDS_MIN + 0.1)
    assert not much.fails(3.9) and much.fails(4.1)
    assert not endless.fails(SILENCE_SECONDS_MAX) and endless.fails(SILENCE_SECONDS_MAX + 0.1)


def test_who_tells_of_new_blocks_is_alive_and_serves_others_first() -> None:
    """With fifteen askers on a slow line each has its turn after seconds."""
    state = owing()
    state.told = SILENCE_SECONDS_MIN
    assert not state.fails(SILENCE_SECONDS_MIN + TELLS_SECONDS - 0.1)
    assert state.fails(SILENCE_SECONDS_MIN + TELLS_SECONDS + 0.1)
    state.told = SILENCE_SECONDS_MAX
    assert state.fails(SILENCE_SECONDS_MAX + 0.1)


def test_a_sign_of_life_now_and_then_is_dripping() -> None:
    state = owing()
    for second in range(1, 11):
        state.gave(float(second), 1000, 1.0)
        assert not state.fails(float(second))
    state.gave(DRIP_SECONDS_MAX + 0.5, 1000, 1.0)
    assert state.fails(DRIP_SECONDS_MAX + 0.6)
    state = owing()
    feed(state, 2 * RATE_MIN_BYTES_PER_SECOND, DRIP_SECONDS_MAX + 5)
    assert not state.fails(DRIP_SECONDS_MAX + 5.1)


def test_who_failed_rests_with_less_credit_until_a_block_comes_after_all() -> None:
    state = owing()
    state.rest(100.0)
    assert state.rests(100.0 + REST_SECONDS - 0.1) and not state.rests(100.0 + REST_SECONDS)
    assert state.rate == RATE_START_BYTES_PER_SECOND / 4
    for _ in range(50):
        state.rest(100.0)
    assert state.rate == RATE_MIN_BYTES_PER_SECOND
    state.gave(101.0, BLOCK, 1.0)
    assert not state.rests(101.0)


def test_who_is_busy_pauses_shortly_and_is_asked_for_half() -> None:
    state = owing()
    state.depth_blocks = 16
    state.pause(5.0)
    assert state.rests(5.0 + PAUSE_SECONDS - 0.1) and not state.rests(5.0 + PAUSE_SECONDS)
    assert state.depth_blocks == 8
    state.rest(6.0)
    state.pause(6.0)
    assert state.rests(6.0 + REST_SECONDS - 0.1)


def test_what_it_said_it_holds_ends_where_the_manifest_ends() -> None:
    state = Standing(holds={M: {1, 5, 9}})
    state.holds_at_most(M, 6)
    assert state.holds[M] == {1, 5}
    state.holds[M] = range(3)
    state.holds_at_most(M, 6)
    state.holds_at_most(ManifestId(b"n" * 32), 6)
    assert state.holds == {M: range(3)}
