"""Which block to ask of whom, one decision at a time."""

from __future__ import annotations

from sortedcontainers import SortedSet

from chunker.digest import BlockId, ManifestId
from peer.identity import PeerId
from peer.messages import Urgency
from peer.picker import (
    COPIES_FREE,
    COPIES_SHARE_MAX,
    DEALT_BYTES_MIN,
    DEPUTY_SECONDS,
    ENDGAME_BLOCKS,
    ENDGAME_PATIENCE_SECONDS,
    ENDGAME_SECONDS,
    FELLOW_SECONDS_MAX,
    LATE_SECONDS,
    LONG_BLOCKS,
    MEET_SECONDS,
    PATIENCE_SECONDS_MAX,
    PATIENCE_SECONDS_MIN,
    SPARE_BLOCKS,
    URGENT_BLOCKS,
    WINDOW_BYTES,
    Download,
    Flight,
    choose,
    second_holder,
)
from peer.standing import DEPTH_BLOCKS_MIN, Standing

M = ManifestId(b"m" * 32)
ME, A, B, SEED = PeerId("ME"), PeerId("A"), PeerId("B"), PeerId("SEED")
LENGTH = 131_072
Choice = tuple[int, PeerId, Urgency]


def download(blocks: int, cursor: int = 0, nar_bytes: int | None = None) -> Download:
    every = range(blocks)
    return Download(
        M, [BlockId(n.to_bytes(32, "big")) for n in every], [LENGTH] * blocks, set(every),
        SortedSet(every), blocks * LENGTH if nar_bytes is None else nar_bytes, blocks,
        cursor=cursor,
    )  # fmt: skip


def holder(indexes: object, filling: bool = False, depth: int = 1000) -> Standing:
    state = Standing(holds={M: indexes}, depth_blocks=depth)  # type: ignore[dict-item]
    if filling:
        state.filling.add(M)
    return state


def chosen(
    work: Download, peers: dict[PeerId, Standing], now: float = 0.0, most: int = 10_000
) -> list[Choice]:
    """As the exchange books them."""
    found: list[Choice] = []
    for index, name, urgency in choose(now, ME, work, peers):
        found.append((index, name, urgency))
        state = peers[name]
        if urgency is Urgency.SPARE:
            state.spare[1, index] = work.blocks[index]
        else:
            state.owed[1, index] = work.blocks[index]
            state.owed_bytes += LENGTH
        work.open.discard(index)
        work.waits.pop(index, None)
        if len(found) == most:
            break
    return found


def test_from_the_reader_on_in_order_and_what_was_passed_over_last() -> None:
    order = [index for index, *_ in chosen(download(100, cursor=90), {A: holder(range(100))})]
    assert order == [*range(90, 100), *range(90)]


def test_a_reader_is_waiting_for_the_first_few() -> None:
    found = chosen(download(40, cursor=10), {A: holder(range(40))}, most=20)
    assert [urgency for *_, urgency in found] == (
        [Urgency.SOON] * URGENT_BLOCKS + [Urgency.FIRM] * (20 - URGENT_BLOCKS)
    )


def test_each_block_of_who_would_bring_it_first() -> None:
    fast, slow = holder(range(90)), holder(range(90))
    fast.rate, slow.rate = 8e6, 1e6
    found = chosen(download(90), {A: slow, B: fast})
    assert 78 <= sum(name == B for _, name, _ in found) <= 82


def test_beyond_the_window_what_fewest_hold_comes_first() -> None:
    window = WINDOW_BYTES // LENGTH + 1
    work = download(window + 20)
    peers = {A: holder(range(window + 20)), B: holder(set(range(window + 10)))}
    order = [index for index, *_ in chosen(work, peers)]
    assert order[:window] == list(range(window))
    assert order[window:] == [*range(window + 10, window + 20), *range(window, window + 10)]


def test_of_a_source_each_fellow_asks_its_own_part() -> None:
    def part(me: PeerId, fellow: PeerId) -> set[int]:
        peers = {SEED: holder(range(40)), fellow: holder(set(), filling=True)}
        return {i for i, _, u in choose(0.0, me, download(40), peers) if u is not Urgency.SPARE}

    mine, theirs = part(ME, A), part(A, ME)
    assert mine | theirs == set(range(40)) and not mine & theirs


def test_what_a_fellow_has_is_asked_of_no_source_while_it_can_bring_it() -> None:
    """Who comes late leaves the source's uplink to what it holds alone."""
    work = download(40)
    peers = {SEED: holder(range(40)), A: holder(set(range(20)), filling=True, depth=2)}
    of_source = [index for index, name, _ in chosen(work, peers) if name == SEED]
    assert len(of_source) == 10 and min(of_source) >= 20
    peers[A].rest(0.0)
    of_source = [index for index, name, _ in chosen(work, peers, now=0.1) if name == SEED]
    assert len(of_source) >= 9 and max(of_source) < 20


def test_at_the_beginning_every_member_may_follow_the_owner_too() -> None:
    """Else each of a crowd asks the owner for the first blocks, before it hears of the others."""

    def asked(me: PeerId, now: float) -> set[int]:
        work = download(40)
        work.source, work.since, work.members = SEED, 10.0, frozenset({A, B, ME, SEED} - {me})
        peers = {SEED: holder(set(range(40)), filling=True)}
        return {i for i, _, u in choose(now, me, work, peers) if u is not Urgency.SPARE}

    parts = [asked(me, 10.0) for me in (ME, A, B)]
    assert set().union(*parts) == set(range(40)) and sum(map(len, parts)) == 40
    assert asked(ME, 10.0 + MEET_SECONDS) == set(range(40))


def test_small_nars_are_not_dealt_out() -> None:
    work = download(40, nar_bytes=DEALT_BYTES_MIN - 1)
    peers = {SEED: holder(range(40)), A: holder(set(), filling=True)}
    assert len(chosen(work, peers)) == 40


def test_the_owner_of_a_growing_manifest_is_a_source_though_it_fills() -> None:
    work = download(40)
    work.source = SEED
    peers = {SEED: holder(set(range(40)), filling=True), A: holder(set(), filling=True)}
    assert len(chosen(work, peers)) == 20


def test_a_fellow_is_asked_for_anything_unless_it_would_take_too_long() -> None:
    work = download(20)
    peers = {SEED: holder(range(20)), A: holder(set(range(20)), filling=True)}
    assert {index for index, *_ in chosen(work, peers)} == set(range(20))
    peers = {SEED: holder(range(20)), A: holder(set(range(20)), filling=True)}
    peers[A].rate = 16_384
    peers[A].owed_bytes = 1_000_000
    found = chosen(download(20), peers)
    assert {name for _, name, _ in found} == {SEED} and len(found) == 10


def test_what_no_fellow_brings_is_asked_of_the_source_as_spare_after_a_while() -> None:
    work = download(20)
    peers = {SEED: holder(range(20)), A: holder(set(), filling=True)}
    assert len(chosen(work, peers, now=1.0)) == 10
    assert chosen(work, peers, now=1.0 + PATIENCE_SECONDS_MIN / 2) == []
    late = chosen(work, peers, now=1.0 + PATIENCE_SECONDS_MAX)
    assert len(late) == 10 and {urgency for *_, urgency in late} == {Urgency.SPARE}


def test_who_lacks_the_head_asks_no_source_for_the_tail_though_it_has_room() -> None:
    """Fellows bring the head as fast as the link carries it; others wait for the tail."""
    work = download(200)
    peers = {SEED: holder(range(200)), A: holder(set(range(100)), filling=True, depth=2)}
    chosen(work, peers)
    near = work.open[:SPARE_BLOCKS]
    late = chosen(work, peers, now=PATIENCE_SECONDS_MAX)
    assert late and {urgency for *_, urgency in late} == {Urgency.SPARE}
    assert {index for index, *_ in late} <= set(near)


def test_of_a_slow_fellow_one_block_at_a_time_is_asked() -> None:
    """What would wait there goes to whoever has it and is free."""
    slow = holder(range(40), filling=True, depth=DEPTH_BLOCKS_MIN)
    other = holder(range(20, 40), filling=True, depth=DEPTH_BLOCKS_MIN)
    assert chosen(download(40), {A: slow}) == [(0, A, Urgency.SOON)]
    assert [name for _, name, _ in chosen(download(40), {A: slow, B: other})] == [B]
    alone = holder(range(40), depth=DEPTH_BLOCKS_MIN)
    assert len(chosen(download(40), {SEED: alone})) == DEPTH_BLOCKS_MIN


def test_at_the_end_a_source_is_asked_soon_for_what_no_fellow_brings() -> None:
    def is_asked(missing: int, whole: bool, blocks: int = LONG_BLOCKS) -> bool:
        work = download(blocks)
        work.missing, work.open = set(range(missing)), SortedSet(range(missing))
        work.whole = whole
        source = holder(range(blocks))
        source.answers_seconds = 4.0
        peers = {SEED: source, A: holder(set(), filling=True)}
        chosen(work, peers)
        late = chosen(work, peers, now=ENDGAME_PATIENCE_SECONDS)
        return bool(late) and all(urgency is Urgency.SPARE for *_, urgency in late)

    assert is_asked(2 * ENDGAME_BLOCKS, whole=True)
    assert not is_asked(2 * ENDGAME_BLOCKS + 1, whole=True)
    assert not is_asked(2 * ENDGAME_BLOCKS, whole=False)
    assert not is_asked(2 * ENDGAME_BLOCKS, whole=True, blocks=LONG_BLOCKS - 1)


def test_nobody_is_asked_who_rests_or_has_enough_to_do() -> None:
    resting, full = holder(range(9)), holder(range(9), depth=1)
    resting.rests_until = 5.0
    full.owed[1, 0] = BlockId(bytes(32))
    assert chosen(download(9), {A: resting, B: full}, now=4.0) == []
    assert len(chosen(download(9), {A: resting, B: full}, now=5.0)) == 9


def flight(index: int, peer: PeerId = A) -> Flight:
    return Flight(peer, 1, M, index, LENGTH, since=0.0, spare=False, due=1.0)


def test_a_late_block_at_the_reader_has_a_second_holder_and_not_before() -> None:
    work = download(100)
    peers = {A: holder(range(100)), B: holder(range(100)), SEED: holder({5})}
    late = 1.0 + LATE_SECONDS
    assert second_holder(late - 0.01, work, flight(0), peers) is None
    assert second_holder(late, work, flight(0), peers) == (B, peers[B])
    assert second_holder(late, work, flight(0, B), peers) == (A, peers[A])
    assert second_holder(late, work, flight(50), peers) is None
    peers[B].rests_until = 9.0
    assert second_holder(late, work, flight(0), peers) is None


def test_a_source_is_spared_second_copies_of_what_was_dealt_out() -> None:
    """Fifteen fellows that each ask it twice for a few blocks keep all of them waiting."""
    work = download(100)
    peers = {A: holder(set(range(100)), True), B: holder({0}, True), SEED: holder(range(100))}
    late = 1.0 + LATE_SECONDS
    assert second_holder(late, work, flight(0), peers) == (B, peers[B])
    assert second_holder(late, work, flight(1), peers) is None
    assert second_holder(1.0 + FELLOW_SECONDS_MAX, work, flight(1), peers) == (SEED, peers[SEED])


def test_at_the_end_any_late_block_has_one_unless_more_may_grow() -> None:
    work = download(100)
    work.open.clear()
    work.missing = set(range(80, 80 + ENDGAME_BLOCKS))
    peers = {A: holder(range(100)), B: holder(range(100))}
    assert second_holder(9.0, work, flight(90), peers) is not None
    work.whole = False
    assert second_holder(9.0, work, flight(90), peers) is None


def test_at_the_end_no_holder_is_waited_for_long_and_a_source_helps() -> None:
    """One holder of the last few would send them to everybody, while all others are idle."""
    work = download(100)
    work.open.clear()
    work.source, work.missing = SEED, {90, 91}
    peers = {
        A: holder({90}, filling=True), B: holder({90}, filling=True), SEED: holder(set(range(100)))
    }  # fmt: skip
    asked = flight(91, A).since
    assert second_holder(asked + ENDGAME_SECONDS - 0.01, work, flight(91, A), peers) is None
    found = second_holder(asked + ENDGAME_SECONDS, work, flight(91, A), peers)
    assert found == (SEED, peers[SEED])
    work.open.add(92)
    assert second_holder(asked + ENDGAME_SECONDS, work, flight(91, A), peers) is None


def test_what_an_owner_has_waits_for_no_slow_fellow() -> None:
    """One that let the owner rest held up a fifteenth of the NAR for ten seconds."""
    work = download(2 * ENDGAME_BLOCKS)
    work.source, work.whole = SEED, False
    peers = {SEED: holder(set(range(40)), filling=True), A: holder(set(), filling=True)}
    mine = {index for index, _, u in chosen(work, peers) if u is not Urgency.SPARE}
    others = set(range(2 * ENDGAME_BLOCKS)) - mine
    assert others and not asked_firmly(work, peers, FELLOW_SECONDS_MAX - 0.01) & others
    assert others <= asked_firmly(work, peers, FELLOW_SECONDS_MAX)
    work.whole = True
    assert not asked_firmly(work, peers, DEPUTY_SECONDS - 0.01) & others
    assert others <= asked_firmly(work, peers, DEPUTY_SECONDS)
    work.missing |= {2 * ENDGAME_BLOCKS}
    assert not asked_firmly(work, peers, DEPUTY_SECONDS) & others  # that is not the end yet


def asked_firmly(work: Download, peers: dict[PeerId, Standing], now: float) -> set[int]:
    """Without booking it."""
    return {i for i, _, u in choose(now, ME, work, peers) if u is not Urgency.SPARE}


def test_copies_are_few() -> None:
    work = download(100)
    peers = {A: holder(range(100)), B: holder(range(100))}
    work.asked = 1000
    for _ in range(1000):
        if second_holder(9.0, work, flight(0), peers) is not None:
            work.copies += 1
    assert work.copies <= COPIES_FREE + 1000 * COPIES_SHARE_MAX + 1
