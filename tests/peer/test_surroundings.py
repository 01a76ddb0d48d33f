from __future__ import annotations

from ipaddress import ip_interface

from peer.surroundings import GAP_SECONDS_MAX, Change, Network, Watcher, is_near

HOME = frozenset[Network]({ip_interface("192.168.1.7/24")})
CAFE = frozenset[Network]({ip_interface("10.9.0.4/16")})


def test_time_that_passes_is_no_news() -> None:
    watcher = Watcher(1000, 500, HOME)
    for step in range(1, 100):
        assert watcher.look(1000 + 3 * step, 500 + 3 * step, HOME) is None


def test_sleep_shows_in_the_clock_that_runs_on() -> None:
    watcher = Watcher(1000, 500, HOME)
    change = watcher.look(5000, 503, HOME)
    assert change == Change(True, frozenset())
    assert change.severs("192.168.1.9") and change.severs("8.8.8.8") and change.severs(None)
    assert watcher.look(5003, 506, HOME) is None


def test_a_machine_that_stood_still_with_both_clocks() -> None:
    watcher = Watcher(1000, 500, HOME)
    assert watcher.look(1001 + GAP_SECONDS_MAX, 501 + GAP_SECONDS_MAX, HOME) is not None


def test_another_network_severs_what_went_over_the_old_one() -> None:
    watcher = Watcher(0, 0, HOME)
    change = watcher.look(3, 3, CAFE)
    assert change == Change(False, HOME)
    assert change.severs("192.168.1.9") and not change.severs("10.9.0.5")


def test_one_more_network_severs_nothing() -> None:
    watcher = Watcher(0, 0, HOME)
    change = watcher.look(3, 3, HOME | CAFE)
    assert change == Change(False, frozenset())
    assert not change.severs("192.168.1.9")


def test_near_is_what_is_on_a_network_of_ours() -> None:
    for host in ("192.168.1.200", "127.0.0.1", "::1", "169.254.3.3", "fe80::1",
                 "::ffff:192.168.1.3"):  # fmt: skip
        assert is_near(host, HOME), host
    for host in ("192.168.2.1", "8.8.8.8", "2001:db8::1", "cache.example", None):
        assert not is_near(host, HOME), host
