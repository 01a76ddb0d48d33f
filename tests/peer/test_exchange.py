"""The exchange, one event at a time."""

from __future__ import annotations

from chunker.block import Block, Codec, encode
from chunker.digest import ManifestId
from peer.effects import Ban, Effect, Keep, SendCancel, SendWant, Stuck
from peer.exchange import Exchange
from peer.identity import PeerId
from peer.picker import FELLOW_SILENCE_SECONDS_MAX, WINDOW_BYTES
from peer.standing import REST_SECONDS, SILENCE_SECONDS_MIN, TELLS_SECONDS
from tests.golden.samples import sample_bytes

ME = PeerId("ME")
A, B, C = PeerId("A"), PeerId("B"), PeerId("C")
M, N = ManifestId(b"m" * 32), ManifestId(b"n" * 32)
BLOCKS = [Block.of(sample_bytes(5000, str(number))) for number in range(40)]
IDS = tuple(block.id for block in BLOCKS)
LENGTHS = tuple(len(block.data) for block in BLOCKS)
EVERY = range(len(BLOCKS))


def wants(effects: list[Effect]) -> dict[PeerId, list[int]]:
    found: dict[PeerId, list[int]] = {}
    for effect in effects:
        if isinstance(effect, SendWant):
            found.setdefault(effect.peer, []).extend(effect.indexes)
    return found


def answer(exchange: Exchange, now: float, want: SendWant) -> list[Effect]:
    effects: list[Effect] = []
    for index in want.indexes:
        sent = encode(BLOCKS[index].data, Codec.RAW)
        effects += exchange.arrived(now, want.peer, want.request, index, sent)
    return effects


def started(*holders: PeerId) -> tuple[Exchange, list[Effect]]:
    exchange = Exchange(ME)
    exchange.start(0.0, M, IDS, LENGTHS, EVERY)
    effects: list[Effect] = []
    for peer in holders:
        effects += exchange.has(0.0, peer, M, EVERY, False)
    return exchange, effects


def finish(exchange: Exchange, effects: list[Effect], now: float = 0.1) -> list[int]:
    """Answer every want; the indexes kept, in order."""
    kept: list[int] = []
    queue = list(effects)
    while queue:
        effect = queue.pop(0)
        if isinstance(effect, Keep):
            kept += [index for _, index in effect.places]
        elif isinstance(effect, SendWant):
            queue += answer(exchange, now, effect)
            now += 0.01
    return kept


def test_a_download_from_one_holder_comes_in_order_and_once() -> None:
    exchange, effects = started(A)
    assert finish(exchange, effects) == list(EVERY)
    assert exchange.owed_by(A) == 0


def test_two_holders_share_and_no_block_is_asked_twice() -> None:
    exchange, effects = started()
    effects = exchange.has(0.0, A, M, EVERY, False)
    effects += exchange.has(0.0, B, M, EVERY, False)
    asked = wants(effects)
    assert not set(asked[A]) & set(asked.get(B, []))
    assert sorted(finish(exchange, effects)) == list(EVERY)


def test_nothing_is_asked_of_who_does_not_hold_it() -> None:
    exchange, _ = started()
    assert wants(exchange.has(0.0, A, M, [3, 4], False)) == {A: [3, 4]}


def test_a_block_in_two_downloads_is_asked_once_and_counts_for_both() -> None:
    exchange, effects = started(A)
    more = exchange.start(0.0, N, IDS[:2], LENGTHS[:2], [0, 1])
    more += exchange.has(0.0, B, N, [0, 1], False)
    assert B not in wants(more)
    first = next(effect for effect in effects if isinstance(effect, SendWant))
    kept = next(effect for effect in answer(exchange, 0.1, first) if isinstance(effect, Keep))
    assert set(kept.places) == {(M, 0), (N, 0)}


def test_a_bad_block_bans_its_sender_and_is_asked_of_another() -> None:
    exchange, effects = started(A, B)
    want = next(e for e in effects if isinstance(e, SendWant) and e.peer == A)
    bad = encode(b"x" * 5000, Codec.RAW)
    after = exchange.arrived(0.1, A, want.request, want.indexes[0], bad)
    assert [effect.peer for effect in after if isinstance(effect, Ban)] == [A]
    assert not any(isinstance(effect, Keep) for effect in after)
    assert exchange.is_banned(A)
    assert exchange.has(0.2, A, M, EVERY, False) == []
    kept = finish(exchange, [e for e in effects if getattr(e, "peer", "") != A] + after)
    assert sorted(kept) == list(EVERY)


def test_a_late_answer_to_a_cancelled_want_is_no_crime() -> None:
    exchange, effects = started(A)
    want = next(effect for effect in effects if isinstance(effect, SendWant))
    assert SendCancel(A, want.request) in exchange.stop(0.1, M)
    bad = encode(b"late and wrong", Codec.RAW)
    assert exchange.arrived(0.2, A, want.request, want.indexes[0], bad) == []
    assert not exchange.is_banned(A)


def test_a_download_that_ends_cancels_only_what_no_other_wants() -> None:
    exchange, effects = started(A)
    (want,) = [effect for effect in effects if isinstance(effect, SendWant)]
    exchange.start(0.1, N, IDS[:1], LENGTHS[:1], [0])
    assert want.indexes[0] == 0
    assert exchange.stop(0.2, M) == [SendCancel(A, want.request, want.indexes[1:])]
    assert exchange.owed_by(A) == 1
    sent = encode(BLOCKS[0].data, Codec.RAW)
    kept = exchange.arrived(0.3, A, want.request, 0, sent)
    assert [effect.places for effect in kept if isinstance(effect, Keep)] == [((N, 0),)]


def test_what_a_lost_peer_owed_is_asked_of_others() -> None:
    exchange, effects = started(A, B)
    owed = set(wants(effects)[A])
    after = exchange.peer_gone(0.1, A)
    kept = finish(exchange, [e for e in effects if getattr(e, "peer", "") == B] + after)
    assert owed <= set(kept) and sorted(kept) == list(EVERY)


def test_a_silent_peer_loses_what_it_owes_and_rests() -> None:
    exchange, effects = started(A)
    exchange.has(0.0, B, M, [], False)
    now = SILENCE_SECONDS_MIN + 0.1
    after = exchange.tick(now)
    cancelled = {effect.request for effect in after if isinstance(effect, SendCancel)}
    assert cancelled == {effect.request for effect in effects if isinstance(effect, SendWant)}
    assert A not in wants(after)
    assert B in wants(exchange.has(now, B, M, EVERY, False))
    exchange.peer_gone(now, B)
    assert A in wants(exchange.tick(now + REST_SECONDS + 0.1))


def test_who_says_only_that_it_lives_is_given_time() -> None:
    """Others are served first, and our turn will come."""
    exchange, _ = started(A)
    exchange.has(SILENCE_SECONDS_MIN, A, M, [])
    assert exchange.tick(SILENCE_SECONDS_MIN + TELLS_SECONDS - 0.1) == []
    assert exchange.tick(SILENCE_SECONDS_MIN + TELLS_SECONDS + 0.1) != []


def test_a_dripping_peer_loses_what_it_owes() -> None:
    exchange, effects = started(A)
    due = [(e.request, index) for e in effects if isinstance(e, SendWant) for index in e.indexes]
    lost: list[Effect] = []
    for second in range(1, 13):
        request, index = due.pop(0)
        sent = encode(BLOCKS[index].data, Codec.RAW)
        for effect in exchange.arrived(second, A, request, index, sent):
            if isinstance(effect, SendWant):
                due += [(effect.request, index) for index in effect.indexes]
        lost += [e for e in exchange.tick(second + 0.5) if isinstance(e, SendCancel)]
    assert lost


def test_refused_blocks_are_asked_of_others_and_not_again() -> None:
    exchange, effects = started(A)
    want = next(effect for effect in effects if isinstance(effect, SendWant))
    after = exchange.refused(0.1, A, want.request, "not-here", (want.indexes[0],))
    assert want.indexes[0] not in wants(after).get(A, [])
    assert wants(exchange.has(0.2, B, M, [want.indexes[0]], False)) == {B: [want.indexes[0]]}


def test_a_refusal_of_all_leaves_the_peer_nothing() -> None:
    exchange, effects = started(A)
    for effect in effects:
        if isinstance(effect, SendWant):
            exchange.refused(0.1, A, effect.request, "not-here", ())
    assert exchange.owed_by(A) == 0 or not exchange.covered(M)


def test_stuck_is_said_once_and_a_holder_ends_it() -> None:
    exchange = Exchange(ME)
    assert exchange.start(0.0, M, IDS, LENGTHS, EVERY) == [Stuck(M)]
    assert exchange.tick(1.0) == []
    assert exchange.has(1.0, A, M, [], True) == []
    assert exchange.peer_gone(2.0, A) == [Stuck(M)]


def test_covered_means_every_missing_block_has_a_live_holder() -> None:
    exchange, _ = started()
    assert not exchange.covered(M)
    exchange.has(0.0, A, M, range(39), False)
    assert not exchange.covered(M)
    exchange.has(0.0, B, M, [39], False)
    assert exchange.covered(M)
    exchange.peer_gone(0.0, B)
    assert not exchange.covered(M)
    exchange.has(0.0, C, M, [], True)
    assert exchange.covered(M)
    exchange.has(0.0, C, M, [], False)
    assert not exchange.covered(M)


def test_the_reader_is_served_first() -> None:
    exchange = Exchange(ME)
    exchange.start(0.0, M, IDS, LENGTHS, EVERY)
    exchange.moved(0.0, M, 30)
    assert wants(exchange.has(0.0, A, M, EVERY, False))[A][0] == 30


def test_the_window_comes_first_in_order_and_what_is_beyond_it_after() -> None:
    blocks = [Block.of(number.to_bytes(4, "big") * 8192) for number in range(1000)]
    lengths = (524_288,) * len(blocks)
    every = range(len(blocks))
    exchange = Exchange(ME)
    exchange.start(0.0, M, tuple(block.id for block in blocks), lengths, every)
    asked: list[int] = []
    for number in range(300):
        for indexes in wants(exchange.has(0.0, PeerId(f"{number}"), M, every, False)).values():
            asked += indexes
    window = WINDOW_BYTES // 524_288 + 1
    assert asked[:window] == list(range(window))
    assert len(asked) == len(set(asked))


def test_fellows_that_all_lack_a_block_do_not_wait_for_each_other_for_ever() -> None:
    """The only source has gone: nobody gets anything, and everybody still says that it fills."""
    exchange, _ = started(A)
    exchange.has(0.0, B, M, [], True)
    exchange.has(0.0, C, M, [], True)
    assert Stuck(M) not in exchange.peer_gone(0.1, A)
    assert exchange.tick(FELLOW_SILENCE_SECONDS_MAX / 2) == []
    assert exchange.tick(FELLOW_SILENCE_SECONDS_MAX) == [Stuck(M)]


def test_fellows_of_a_liar_are_not_hoped_for_until_one_tells_of_a_block() -> None:
    """They had the same source. Waiting for them cost every member three seconds."""
    exchange, _ = started(A)
    exchange.has(0.0, B, M, [], True)
    assert Stuck(M) in exchange.ban(0.1, A)
    exchange.has(0.2, B, M, [0], None)
    exchange.peer_gone(0.3, C)
    assert exchange.tick(0.4) == []


def test_the_owner_of_a_growing_manifest_is_hoped_for_while_it_is_there() -> None:
    exchange = Exchange(ME)
    exchange.start(0.0, M, (), (), (), blocks_max=40, nar_bytes=sum(LENGTHS), source=A)
    exchange.has(0.0, A, M, [], True)
    assert exchange.grow(0.0, M, IDS[:2], LENGTHS[:2], [0, 1], whole=False) == []
    assert exchange.tick(100.0) == []
    assert exchange.peer_gone(101.0, A) == [Stuck(M)]


def test_what_another_download_waits_for_is_not_cancelled() -> None:
    """M and N share block 0, which was asked for as a block of M, in one Want with others."""
    exchange, effects = started(A)
    want = next(effect for effect in effects if isinstance(effect, SendWant))
    assert want.indexes[0] == 0 and len(want.indexes) > 1
    exchange.start(0.0, N, IDS[:1], LENGTHS[:1], [0])
    cancels = [e for e in exchange.stop(0.1, M) if isinstance(e, SendCancel)]
    assert SendCancel(A, want.request, want.indexes[1:]) in cancels
    sent = encode(BLOCKS[0].data, Codec.RAW)
    kept = exchange.arrived(0.2, A, want.request, 0, sent)
    assert [e.places for e in kept if isinstance(e, Keep)] == [((N, 0),)]


def grown(exchange: Exchange, first: int, last: int, whole: bool = False) -> list[Effect]:
    new = range(first, last)
    return exchange.grow(0.0, M, IDS[first:last], LENGTHS[first:last], new, whole=whole)


def test_a_growing_download_asks_as_it_grows_and_is_covered_only_when_whole() -> None:
    exchange = Exchange(ME)
    exchange.start(0.0, M, (), (), (), blocks_max=100, nar_bytes=sum(LENGTHS), source=A)
    assert wants(exchange.has(0.0, A, M, range(10), None)) == {}
    assert set(wants(grown(exchange, 0, 2))[A]) == {0, 1}
    assert not exchange.covered(M)
    exchange.has(0.0, A, M, EVERY, None)
    effects = grown(exchange, 2, len(IDS), whole=True)
    assert exchange.covered(M) and not any(isinstance(effect, Stuck) for effect in effects)


def test_a_fellow_that_claims_blocks_that_do_not_exist_holds_no_others() -> None:
    exchange = Exchange(ME)
    exchange.start(0.0, M, (), (), (), blocks_max=100, nar_bytes=sum(LENGTHS), source=A)
    exchange.has(0.0, B, M, range(40, 100), None)
    grown(exchange, 0, len(IDS), whole=True)
    assert wants(exchange.has(0.1, B, M, range(45, 99), None)) == {}
    assert not exchange.covered(M)
