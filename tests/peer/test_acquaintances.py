"""Who is dialled and who is kept; at the end an office of many in virtual time."""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from dataclasses import dataclass, field

import pytest

from peer.acquaintances import (
    ACQUAINTANCES_MAX,
    ADDRESSES_PER_PEER_MAX,
    CONNECTIONS_MAX,
    DIALS_AT_ONCE_MAX,
    FAILURES_MAX,
    FULL_SECONDS,
    PAUSE_SECONDS_MAX,
    STEADY_SECONDS,
    USEFUL_SECONDS,
    YIELD_SECONDS,
    Acquaintances,
    pair_number,
)
from peer.identity import Address, PeerId

CHANCE = 0.5
ME = PeerId("m-me")


def at(name: str, host: str = "10.0.0.1") -> Address:
    return Address(PeerId(name), host, 4555)


def machine(*configured: Address, most: int = CONNECTIONS_MAX) -> Acquaintances:
    return Acquaintances(ME, configured, most)


def by_number(count: int) -> list[PeerId]:
    """So many peers, the one that counts least to us first."""
    return sorted((PeerId(f"p{n}") for n in range(count)), key=lambda peer: pair_number(ME, peer))


def test_a_configured_peer_is_dialled_at_once_then_with_growing_pauses_and_never_given_up() -> None:
    who = machine(at("c"))
    now, pauses = 0.0, []
    assert who.due(now) == [at("c")]
    for _ in range(12):
        assert who.due(now) == []
        who.dialled(now, PeerId("c"), CHANCE)
        pauses.append(who.next_at() - now)
        now = who.next_at()
        assert who.due(now) == [at("c")]
    assert pauses[0] < 1 and pauses[3] > pauses[0]
    assert PAUSE_SECONDS_MAX / 2 <= max(pauses[7:]) <= PAUSE_SECONDS_MAX * 1.5


def test_a_bare_peer_id_waits_for_an_address() -> None:
    who = machine(Address(PeerId("c"), None, None))
    assert who.due(0) == []
    who.heard(5, at("c"), CHANCE)
    assert who.due(5 + 2 * YIELD_SECONDS) == [at("c")]


def test_of_two_that_hear_of_each_other_one_waits() -> None:
    who = machine()
    who.heard(0, at("z"), CHANCE)
    who.heard(0, at("a"), CHANCE)
    assert who.due(0) == [at("z")]
    assert who.due(2 * YIELD_SECONDS) == [at("a")]


def test_a_peer_that_moved_is_dialled_at_once_where_it_was_heard_last() -> None:
    who = machine(at("z", "10.0.0.1"))
    now = 0.0
    for _ in range(8):
        who.due(now)
        who.dialled(now, PeerId("z"), CHANCE)
        now = who.next_at()
    now -= PAUSE_SECONDS_MAX / 4
    who.heard(now, at("z", "10.0.0.9"), CHANCE)
    assert who.due(now) == [at("z", "10.0.0.9")]
    who.dialled(now, PeerId("z"), CHANCE)
    assert who.due(who.next_at()) == [at("z", "10.0.0.1")], "the old address has its turn"


def test_hints_do_not_drive_out_a_configured_address() -> None:
    who = machine(at("z", "10.0.0.1"))
    for number in range(50):
        who.heard(0, at("z", f"10.66.6.{number}"), CHANCE)
    dialled, now = set(), 0.0
    for _ in range(ADDRESSES_PER_PEER_MAX + 1):
        now = max(now, who.next_at())
        (address,) = who.due(now)
        dialled.add(address)
        who.dialled(now, PeerId("z"), CHANCE)
    assert at("z", "10.0.0.1") in dialled and len(dialled) == ADDRESSES_PER_PEER_MAX + 1


def test_a_name_that_nobody_answers_to_rests_until_it_is_heard_again_and_its_pause_is_over() -> (
    None
):
    who = machine()
    who.heard(0, at("z"), CHANCE)
    now = 0.0
    for _ in range(FAILURES_MAX):
        now = max(now, who.next_at())
        assert who.due(now) == [at("z")]
        who.dialled(now, PeerId("z"), CHANCE)
    assert who.due(now + 1000) == []
    who.heard(now, at("z"), CHANCE)
    assert who.due(now) == []
    assert who.due(now + 1000) == [at("z")]


def test_who_was_met_is_not_forgotten() -> None:
    who = machine()
    who.heard(0, at("z"), CHANCE)
    assert who.due(0)
    who.joined(0, PeerId("z"))
    who.left(PeerId("z"))
    who.dialled(STEADY_SECONDS + 1, PeerId("z"), CHANCE)
    for _ in range(20):
        now = who.next_at()
        assert who.due(now) == [at("z")]
        who.dialled(now, PeerId("z"), CHANCE)


def test_after_sleep_everybody_is_dialled_at_once() -> None:
    who = machine(at("c"), at("d", "10.0.0.2"))
    now = 0.0
    for _ in range(10):
        for address in who.due(now):
            who.dialled(now, address.peer, CHANCE)
        now = who.next_at()
    now = 1000.0
    for address in who.due(now):
        who.dialled(now, address.peer, CHANCE)
    assert who.due(now) == []
    who.woke(now)
    assert sorted(address.peer for address in who.due(now)) == ["c", "d"]


def test_few_dials_at_once_and_configured_peers_first() -> None:
    who = machine(at("c"))
    for number in range(100):
        who.heard(0, at(f"z{number}"), CHANCE)
    first = who.due(0)
    assert len(first) == DIALS_AT_ONCE_MAX and first[0] == at("c")
    assert who.next_at() == float("inf"), "nothing to do until a dial ends"
    who.dialled(1, first[1].peer, CHANCE)
    assert len(who.due(1)) == 1


def test_a_flood_of_names_is_bounded_and_drives_out_nobody_we_know() -> None:
    who = machine(at("c"))
    who.heard(0, at("z-friend"), CHANCE)
    who.joined(0, PeerId("z-friend"))
    for number in range(ACQUAINTANCES_MAX * 2):
        who.heard(number, at(f"liar{number}"), CHANCE)
    assert len(who._known) <= ACQUAINTANCES_MAX
    assert {"c", "z-friend"} <= who._known.keys()


def test_at_the_limit_configured_peers_come_first_then_useful_ones() -> None:
    peers = by_number(40)
    low, useful, last = peers[0], peers[1], peers[-1]
    who = machine(at(low), most=3)
    who.heard(0, at(useful), CHANCE)
    assert who.joined(0, low) is None and who.joined(0, useful) is None
    assert who.joined(0, peers[5]) is None
    who.used(10, useful)
    assert who.joined(11, last) == peers[5], "it gave nothing and is not configured"
    who.left(peers[5])
    assert who.joined(12, peers[4]) == peers[4], "the newcomer counts least: it goes itself"
    who.left(peers[4])
    assert who.joined(10 + USEFUL_SECONDS, peers[20]) == useful, "that was long ago"


def test_one_peer_with_several_sessions_counts_once() -> None:
    who = machine(most=2)
    for _ in range(4):
        assert who.joined(0, PeerId("p1")) is None
    assert who.joined(0, PeerId("p2")) is None
    for _ in range(3):
        who.left(PeerId("p1"))
    assert who.connected() == ("p1", "p2")
    who.left(PeerId("p1"))
    assert who.connected() == ("p2",)


def test_a_full_house_does_not_dial_those_who_would_have_to_go_again() -> None:
    peers = by_number(10)
    who = machine(most=2)
    who.joined(0, peers[5])
    who.joined(0, peers[6])
    who.heard(0, at(peers[0]), CHANCE)
    who.heard(0, at(peers[9]), CHANCE)
    assert who.due(YIELD_SECONDS * 2) == [at(peers[9])]
    who.left(peers[5])
    who.dialled(1, peers[9], CHANCE)
    assert at(peers[0]) in who.due(YIELD_SECONDS * 2 + FULL_SECONDS)


def test_we_do_not_dial_ourselves() -> None:
    who = machine()
    who.heard(0, at(ME), CHANCE)
    assert who.due(10) == []


# -- an office -----------------------------------------------------------------------------------

BEACON_SECONDS = 60.0
DIAL_SECONDS = 0.01


@dataclass
class Office:
    """Everybody hears of everybody again and again; a session takes 10 ms to begin and to end."""

    seed: int
    now: float = 0.0
    dials: int = 0
    refused: int = 0
    broken: int = 0
    most: int = 0
    people: dict[PeerId, Acquaintances] = field(default_factory=dict)
    links: dict[frozenset[PeerId], bool] = field(default_factory=dict)
    """Connections, and whether they are still up."""
    sessions: dict[tuple[PeerId, PeerId], bool] = field(default_factory=dict)
    """(who dialled, whom), and whether the dialler counts it too."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.queue: list[tuple[float, int, str, PeerId, PeerId]] = []
        self.tickets = 0
        self.waking: dict[PeerId, float] = {}

    def after(self, seconds: float, what: str, one: PeerId, other: PeerId) -> None:
        self.tickets += 1
        heapq.heappush(self.queue, (self.now + seconds, self.tickets, what, one, other))

    def arrive(self, number: int) -> PeerId:
        name = PeerId(hashlib.sha256(f"{self.seed}/{number}".encode()).hexdigest())
        self.people[name] = Acquaintances(name, ())
        self.beacon(name, name)
        return name

    def beacon(self, name: PeerId, _: PeerId) -> None:
        for other, who in self.people.items():
            if other != name:
                who.heard(self.now, at(name), self.chance.random())
                self.people[name].heard(self.now, at(other), self.chance.random())
                self.wake(other)
        self.wake(name)
        self.after(BEACON_SECONDS * (0.5 + self.chance.random()), "beacon", name, name)

    def run(self, until: float) -> None:
        while self.queue and self.queue[0][0] <= until:
            self.now, _, what, one, other = heapq.heappop(self.queue)
            getattr(self, what)(one, other)
        self.now = until

    def look(self, one: PeerId, _: PeerId) -> None:
        for address in self.people[one].due(self.now):
            self.dials += 1
            self.after(DIAL_SECONDS, "answered", one, address.peer)
        self.waking.pop(one, None)
        self.wake(one)

    def wake(self, name: PeerId) -> None:
        when = max(self.now, self.people[name].next_at()) + 0.001
        if when < self.waking.get(name, math.inf):
            self.waking[name] = when
            self.after(when - self.now, "look", name, name)

    def answered(self, one: PeerId, other: PeerId) -> None:
        """`other` sees the session first; only when it may stay does `one` count it."""
        if not self.links.setdefault(frozenset((one, other)), True):
            self.people[one].dialled(self.now, other, self.chance.random())  # hung up on just now
            return
        last = self.people[other].joined(self.now, one)
        self.sessions[one, other] = last != one
        self.drop(other, last)
        if last == one:
            self.refused += 1
        else:
            self.broken += last is not None
            last = self.people[one].joined(self.now, other)
            self.broken += last is not None
            self.drop(one, last)
        self.people[other].heard(self.now, Address(one, None, None), self.chance.random())
        self.wake(other)
        self.most = max(self.most, *(self.degree(name) for name in (one, other)))

    def degree(self, name: PeerId) -> int:
        return sum(is_up and name in link for link, is_up in self.links.items())

    def drop(self, one: PeerId, other: PeerId | None) -> None:
        if other is not None and self.links[frozenset((one, other))]:
            self.links[frozenset((one, other))] = False
            self.after(DIAL_SECONDS, "ended", one, other)

    def ended(self, one: PeerId, other: PeerId) -> None:
        del self.links[frozenset((one, other))]
        for asker, asked in ((one, other), (other, one)):
            counts = self.sessions.pop((asker, asked), None)
            if counts is not None:
                self.people[asked].left(asker)
                if counts:
                    self.people[asker].left(asked)
                self.people[asker].dialled(self.now, asked, self.chance.random())
                self.wake(asker)


@pytest.mark.parametrize(("count", "seed"), [(20, 1), (40, 1), (40, 2)])
def test_an_office_settles_and_a_latecomer_finds_a_place(count: int, seed: int) -> None:
    office = Office(seed)
    for number in range(count):
        office.arrive(number)
    office.run(300)
    before = office.broken
    latecomer = office.arrive(count)
    office.run(600)
    settled = office.broken
    office.run(1200)
    degrees = sorted(office.degree(name) for name in office.people)
    assert office.most <= CONNECTIONS_MAX
    if count < CONNECTIONS_MAX:
        assert degrees == [count] * (count + 1)
        assert office.broken == office.refused == 0
        return
    assert office.degree(latecomer) >= CONNECTIONS_MAX * 3 // 4
    assert degrees[0] >= CONNECTIONS_MAX * 3 // 4
    assert settled - before <= 4 * CONNECTIONS_MAX, "a latecomer moves few others"
    assert office.broken == settled, "and then it is quiet"
