"""The datagram, and who is heard and answered how often. Between hosts: tests/interop."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.beacon import (
    ADDRESSES_MAX,
    ANNOUNCEMENT,
    ANSWER,
    ANSWER_SECONDS_MIN,
    ANSWERS_PER_SECOND_MAX,
    BEACON_BYTES_MAX,
    BEACONS_PER_HOST_MAX,
    BEACONS_SECONDS,
    HOSTS_MAX,
    PAUSE_SECONDS_MAX,
    Beacon,
    Pacing,
    decode,
    encode,
    hints,
)
from peer.errors import WireError
from peer.identity import Address, Identity

PEER = Identity(b"b" * 32).peer_id
HERE = (ipaddress.IPv4Interface("10.1.2.3/24"),)


def test_a_beacon_says_who_and_where_and_nothing_else() -> None:
    beacon = Beacon(ANNOUNCEMENT, PEER, (("10.1.2.9", 4555), ("192.168.0.1", 1)))
    data = encode(beacon)
    assert decode(data) == beacon
    assert len(data) == 42 + 2 * 6 and data.startswith(b"NARSWRM1")


def test_many_addresses_are_cut() -> None:
    many = tuple((f"10.0.0.{n}", 4555) for n in range(1, 50))
    data = encode(Beacon(ANSWER, PEER, many))
    assert len(data) == BEACON_BYTES_MAX
    assert decode(data).places == many[:ADDRESSES_MAX]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"OTHERWRM" + data[8:],
        lambda data: data[:8] + b"\x07" + data[9:],
        lambda data: data[:41] + b"\xff" + data[42:],
        lambda data: data * 40,
    ],
)
def test_what_is_no_beacon_is_refused(damage) -> None:  # type: ignore[no-untyped-def]
    data = encode(Beacon(ANNOUNCEMENT, PEER, (("10.1.2.9", 4555),)))
    with pytest.raises(WireError):
        decode(damage(data))


@given(st.binary(max_size=200))
def test_garbage_is_a_beacon_or_a_wire_error(data: bytes) -> None:
    for tried in (data, b"NARSWRM1\x01" + data):
        try:
            assert len(decode(tried).places) <= ADDRESSES_MAX
        except WireError:
            pass


def test_nobody_is_dialled_elsewhere_because_of_a_datagram() -> None:
    """Else whoever is on the network could send us all to a host of his choice."""
    places = (("8.8.8.8", 80), ("127.0.0.1", 22), ("10.1.2.9", 4555), ("224.0.0.1", 4555))
    assert list(hints(Beacon(ANNOUNCEMENT, PEER, places), HERE)) == [
        Address(PEER, "10.1.2.9", 4555)
    ]


def test_announcements_come_at_once_and_then_with_growing_pauses() -> None:
    pacing, chance, pauses = Pacing(100.0), random.Random(1), []
    assert pacing.next_at == 100.0
    for _ in range(10):
        now = pacing.next_at
        pacing.announced(now, chance)
        pauses.append(pacing.next_at - now)
    assert pauses[0] < 1.5 and pauses[3] > 2 * pauses[0]
    assert PAUSE_SECONDS_MAX * 0.7 < pauses[-1] < PAUSE_SECONDS_MAX * 1.3


def test_a_newcomer_is_answered_once_in_a_while() -> None:
    pacing = Pacing(0)
    assert pacing.answers(0, "10.0.0.1:5")
    assert not pacing.answers(ANSWER_SECONDS_MIN - 0.1, "10.0.0.1:5")
    assert pacing.answers(ANSWER_SECONDS_MIN, "10.0.0.1:5")


def test_a_flood_of_newcomers_gets_few_answers() -> None:
    pacing = Pacing(0)
    given = sum(pacing.answers(n / 1000, f"10.0.{n >> 8}.{n & 255}:9") for n in range(5000))
    assert given <= 5 * ANSWERS_PER_SECOND_MAX


def test_a_host_that_shouts_is_not_heard() -> None:
    pacing = Pacing(0)
    assert sum(pacing.hears(1, "10.0.0.1") for _ in range(1000)) == BEACONS_PER_HOST_MAX
    assert pacing.hears(1, "10.0.0.2")
    assert pacing.hears(1 + BEACONS_SECONDS, "10.0.0.1")
    assert sum(pacing.hears(1, f"x{n}") for n in range(HOSTS_MAX * 2)) <= HOSTS_MAX
