from __future__ import annotations

import socket
from ipaddress import ip_interface

import pytest

from peer.surroundings import (
    GAP_SECONDS_MAX,
    NEAR_SECONDS_MAX,
    Change,
    Network,
    Watcher,
    is_near,
    is_near_end,
    is_one_lan,
)

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


@pytest.mark.parametrize(
    ("ours", "theirs", "round_trip_seconds", "near"),
    [
        ("192.168.1.7", "192.168.1.200", 0.3, True),  # a busy line
        ("192.168.1.7", "192.168.1.200", None, True),
        ("192.168.1.7", "192.168.2.9", None, False),
        ("192.168.1.7", "192.168.2.9", NEAR_SECONDS_MAX / 2, True),  # another floor
        ("192.168.1.7", "192.168.2.9", NEAR_SECONDS_MAX, False),
        ("10.0.0.5", "203.0.113.8", 0.02, False),
        ("192.168.1.7", "::ffff:192.168.1.9", 0.02, True),
        ("2001:db8:0:1::5", "2001:db8:0:1:ff::1", 0.02, True),
        ("2001:db8:0:1::5", "2001:db8:0:2::1", 0.02, False),
        ("fe80::1", "fe80::2%eth0", 0.02, True),
    ],
)
def test_one_lan_is_one_network_or_a_short_way(
    ours: str, theirs: str, round_trip_seconds: float | None, near: bool
) -> None:
    assert is_one_lan(ours, theirs, round_trip_seconds) is near


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_ends_of_a_connection_say_it_until_it_is_over(host: str) -> None:
    """The end of a server for both families has IPv4 addresses in IPv6 ones."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        near = socket.create_connection((host, server.getsockname()[1]))
        other, _ = server.accept()
        assert is_near_end(near) is is_near_end(other) is True
        near.close()
        other.close()
        assert is_near_end(near) is is_near_end(other) is None
