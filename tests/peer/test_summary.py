"""Summaries: whatever comes, goes or is lost, both sides agree in the end or begin anew."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunker.digest import nix32_encode
from chunker.record import PathRecord
from peer.catalogue import prefix
from peer.errors import RemoteError
from peer.messages import (
    DELTA_PREFIXES_MAX,
    PREFIX_BYTES,
    SUMMARY_PART_PREFIXES_MAX,
    Message,
    Refuse,
    SummaryDelta,
    SummaryPart,
)
from peer.summary import (
    CHANGES_MAX,
    DELTA_SECONDS,
    PREFIXES_MAX,
    SUMMARY_SECONDS_MIN,
    Change,
    Heard,
    Telling,
    Whole,
)
from tests.peer.office import make_path

SALT = b"salt".ljust(32)
PATHS = [make_path(f"path-{number}", 1)[0] for number in range(8)]


def name(number: int) -> str:
    return nix32_encode(hashlib.sha256(str(number).encode()).digest()[:20])


def told(number: int) -> bytes:
    return number.to_bytes(PREFIX_BYTES, "big")


@dataclass
class Pair:
    """A teller and a hearer, and the messages between them."""

    held: set[str] = field(default_factory=set)
    telling: Telling = field(default_factory=Telling)
    heard: Heard = field(default_factory=lambda: Heard(SALT))
    on_the_way: list[Message] = field(default_factory=list)
    now: float = 1000.0
    requests: int = 0

    def ask(self) -> None:
        self.requests += 1
        self.heard.asks(self.requests)
        self.telling.asked(self.requests)

    def change(self, record: PathRecord, held: bool) -> None:
        (self.held.add if held else self.held.discard)(record.store_hash)
        self.telling.changed(record, held)

    def tell(self) -> None:
        """What the shell does: look up what the machine wants, hand it what is visible."""
        step = self.telling.next(self.now)
        if isinstance(step, Whole):
            held = sorted(prefix(SALT, store_hash) for store_hash in self.held)
            self.on_the_way += self.telling.whole(held)
        elif step is not None:
            added, removed = (
                [prefix(SALT, c.record.store_hash) for c in step if c.held is held]
                for held in (True, False)
            )
            delta = self.telling.delta(added, removed)
            self.on_the_way += [] if delta is None else [delta]

    def hear(self, message: Message) -> None:
        if isinstance(message, SummaryPart | SummaryDelta):
            if not self.heard.hear(message):
                self.ask()
        else:
            assert isinstance(message, Refuse)
            assert self.heard.refused(message.request)

    def settle(self) -> None:
        """Nothing more is lost, and time passes."""
        for _ in range(4):
            self.now += SUMMARY_SECONDS_MIN
            self.tell()
            while self.on_the_way:
                self.hear(self.on_the_way.pop(0))

    def agrees(self) -> bool:
        return self.heard.is_whole and all(
            self.heard.may_hold(record.store_hash) is (record.store_hash in self.held)
            for record in PATHS
        )


STEPS = st.one_of(
    st.tuples(st.just("change"), st.sampled_from(PATHS), st.booleans()),
    st.tuples(st.sampled_from(["tell", "hear", "lose", "twice", "swap"])),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.1, DELTA_SECONDS, SUMMARY_SECONDS_MIN])),
)


@settings(max_examples=400)
@given(st.sets(st.sampled_from([record.store_hash for record in PATHS])), st.lists(STEPS))
def test_whatever_is_lost_both_agree_or_begin_anew(held: set[str], steps: list[tuple]) -> None:  # type: ignore[type-arg]
    pair = Pair(set(held))
    pair.ask()
    for step in steps:
        match step:
            case ("change", record, is_held):
                pair.change(record, is_held)
            case ("tell",):
                pair.tell()
            case ("hear",) if pair.on_the_way:
                pair.hear(pair.on_the_way.pop(0))
            case ("lose",) if pair.on_the_way:
                pair.on_the_way.pop(0)
            case ("twice",) if pair.on_the_way:
                pair.on_the_way.insert(0, pair.on_the_way[0])
            case ("swap",) if len(pair.on_the_way) > 1:
                pair.on_the_way.insert(1, pair.on_the_way.pop(0))
            case ("wait", seconds):
                pair.now += seconds
    # The last message of all may have been lost: one more shows the gap.
    pair.change(PATHS[0], PATHS[0].store_hash not in pair.held)
    pair.settle()
    assert pair.agrees()


def test_parts_are_bounded_and_in_order() -> None:
    telling = Telling()
    telling.asked(7)
    assert telling.next(0) == Whole(7)
    parts = list(telling.whole([told(n) for n in range(2 * SUMMARY_PART_PREFIXES_MAX + 1)]))
    sizes = [len(part.prefixes) // 8 for part in parts if isinstance(part, SummaryPart)]
    assert sizes == [SUMMARY_PART_PREFIXES_MAX, SUMMARY_PART_PREFIXES_MAX, 1]
    lasts = [part.last for part in parts if isinstance(part, SummaryPart)]
    assert lasts == [False, False, True]


def test_a_change_leaves_at_once_and_those_after_it_together() -> None:
    pair = Pair()
    pair.ask()
    pair.settle()
    pair.change(PATHS[0], True)
    assert pair.telling.next(pair.now) == [Change(PATHS[0], True)]
    pair.change(PATHS[1], True)
    pair.change(PATHS[2], True)
    pair.change(PATHS[1], False)
    assert pair.telling.next(pair.now + DELTA_SECONDS / 2) is None
    assert pair.telling.next(pair.now + DELTA_SECONDS) == [
        Change(PATHS[2], True), Change(PATHS[1], False),
    ]  # fmt: skip
    assert pair.telling.wake_at == float("inf")


def test_many_changes_do_not_wait() -> None:
    pair = Pair()
    pair.ask()
    pair.settle()
    pair.change(PATHS[0], True)
    pair.tell()
    for number in range(DELTA_PREFIXES_MAX + 1):
        pair.change(make_path(f"many-{number}", 1)[0], True)
    batch = pair.telling.next(pair.now)
    assert isinstance(batch, list) and len(batch) == DELTA_PREFIXES_MAX
    assert pair.telling.next(pair.now) is None


def test_an_asker_gets_one_summary_in_ten_seconds() -> None:
    telling = Telling()
    telling.asked(1)
    assert telling.next(100) == Whole(1)
    for request in range(2, 1000):
        telling.asked(request)
        assert telling.next(100 + SUMMARY_SECONDS_MIN / 2) is None
    assert telling.next(100 + SUMMARY_SECONDS_MIN) == Whole(999)


def test_changes_that_pile_up_make_the_asker_begin_anew() -> None:
    pair = Pair()
    pair.ask()
    pair.settle()
    record = PATHS[0]
    for number in range(CHANGES_MAX + 10):
        path = f"/nix/store/{name(number)}-path"
        pair.telling.changed(
            PathRecord(path, record.nar_hash, 1, (), (), "", record.manifest), True
        )
    assert len(pair.telling._changes) <= CHANGES_MAX
    pair.tell()
    pair.hear(pair.on_the_way.pop())
    assert not pair.heard.is_whole and pair.requests == 2
    pair.settle()
    assert pair.agrees()


def test_who_holds_too_much_refuses_and_is_asked_each_time() -> None:
    pair = Pair()
    pair.ask()
    pair.telling.next(pair.now)
    pair.on_the_way += pair.telling.whole([told(n) for n in range(PREFIXES_MAX + 1)])
    assert pair.on_the_way == [Refuse(1, "over-limit", ())]
    pair.settle()
    assert not pair.heard.is_whole and pair.heard.may_hold(name(1))
    pair.change(PATHS[0], True)
    assert pair.telling.wake_at == float("inf")


def test_a_teller_cannot_fill_our_memory() -> None:
    heard = Heard(SALT)
    heard.asks(1)
    tracemalloc.start()
    try:
        for number in range(2 * PREFIXES_MAX // SUMMARY_PART_PREFIXES_MAX):
            first = number * SUMMARY_PART_PREFIXES_MAX
            body = b"".join(told(first + n) for n in range(SUMMARY_PART_PREFIXES_MAX))
            assert heard.hear(SummaryPart(1, number, False, body))
            assert len(heard) <= PREFIXES_MAX
        assert tracemalloc.get_traced_memory()[1] < 24 * PREFIXES_MAX
    finally:
        tracemalloc.stop()
    assert heard.may_hold(name(1)) and not heard.is_whole


def test_a_large_summary_with_many_changes_is_exact() -> None:
    """Changes are merged into the sorted whole from time to time."""
    heard = Heard(SALT)
    heard.asks(1)
    numbers = {int.from_bytes(prefix(SALT, name(n)), "big"): name(n) for n in range(20_000)}
    first = sorted(numbers)[:8000]
    assert heard.hear(SummaryPart(1, 0, True, b"".join(map(told, first))))
    held, count = set(first), 1
    everything = sorted(numbers)
    for at in range(0, 20_000, 100):
        added, removed = everything[at : at + 100], everything[at : at + 50]
        held = (held | set(added)) - set(removed)
        delta = SummaryDelta(1, count, b"".join(map(told, added)), b"".join(map(told, removed)))
        assert heard.hear(delta)
        count += 1
    assert len(heard) == len(held)
    assert {n for n, text in numbers.items() if heard.may_hold(text)} == held


BAD = {
    "not ascending": [SummaryPart(1, 0, True, told(2) + told(1))],
    "twice the same": [SummaryPart(1, 0, True, told(1) + told(1))],
    "parts overlap": [SummaryPart(1, 0, False, told(5)), SummaryPart(1, 1, True, told(5))],
    "a delta too early": [SummaryDelta(1, 0, told(1), b"")],
    "a part too late": [SummaryPart(1, 0, True, told(1)), SummaryPart(1, 1, True, told(2))],
}


@pytest.mark.parametrize("messages", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_is_the_tellers_fault(messages: list[SummaryPart | SummaryDelta]) -> None:
    heard = Heard(SALT)
    heard.asks(1)
    with pytest.raises(RemoteError):
        for message in messages:
            assert heard.hear(message)


def test_answers_to_an_older_question_are_ignored() -> None:
    heard = Heard(SALT)
    heard.asks(1)
    heard.asks(2)
    assert heard.hear(SummaryPart(1, 0, True, told(1)))
    assert not heard.is_whole
    assert not heard.refused(1)
    assert heard.hear(SummaryPart(2, 0, True, b""))
    assert heard.is_whole and not heard.may_hold(name(1))
