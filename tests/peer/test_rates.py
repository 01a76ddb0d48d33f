from __future__ import annotations

from peer.rates import WINDOW_SECONDS, Rate, seconds_left


def test_a_steady_stream_has_its_rate_from_the_first_second_on() -> None:
    rate = Rate()
    for step in range(1, 400):
        now = 1000.3 + step / 10
        rate.add(now, 100)
        if step > 10:
            assert 900 <= rate.per_second(now) <= 1100, step
    assert rate.total == 39_900


def test_what_is_over_fades_and_is_gone_after_the_window() -> None:
    rate = Rate()
    for second in range(10):
        rate.add(second, 1000)
    assert rate.per_second(9.9) > 900
    assert 0 < rate.per_second(12) < 900
    assert rate.per_second(9.9 + WINDOW_SECONDS + 1) == 0
    assert rate.total == 10_000


def test_one_burst_is_no_more_than_itself_in_a_second() -> None:
    rate = Rate()
    rate.add(5.0, 8_000)
    assert rate.per_second(5.0) == 8_000


def test_counters_of_others_are_followed() -> None:
    rate = Rate()
    for now, total in [(0.0, 0), (1.0, 500), (2.0, 500), (3.0, 2000)]:
        rate.reach(now, total)
    assert rate.total == 2000
    assert rate.per_second(4.0) == 500


def test_an_old_counter_keeps_few_numbers() -> None:
    rate = Rate()
    for now in range(100_000):
        rate.add(now, 1)
    assert len(rate._slots) <= WINDOW_SECONDS + 1


def test_time_left() -> None:
    assert seconds_left(1000, 100) == 10
    assert seconds_left(1000, 0) is None
