"""What one served peer may ask for, and in which order it gets it."""

from __future__ import annotations

from chunker.digest import ManifestId
from peer.messages import Cancel, Refuse, Urgency, Want
from peer.serving import (
    AHEAD_BYTES_MAX,
    QUEUED_WANTS_MAX,
    SPARE_AFTER_SECONDS,
    SPARE_AFTER_TURNS,
    SPARE_SECONDS_MAX,
    TURN_PATIENCE,
    TURN_SECONDS_MAX,
    TURNS_MAX,
    Due,
    Serving,
    Uplink,
)

M = ManifestId(b"m" * 32)


LENGTHS = (100, 200, 300, 400)


def take(serving: Serving, bytes_max: int = 1) -> list[Due]:
    first = serving.first()
    return serving.take(first[0], bytes_max) if first else []


def test_in_order_and_once() -> None:
    serving = Serving()
    assert serving.want(Want(1, M, (3, 1)), True, LENGTHS) == []
    assert serving.want(Want(2, M, (0,)), True, LENGTHS) == []
    assert [take(serving) for _ in range(4)] == [
        [Due(1, M, 3, 400)], [Due(1, M, 1, 200)], [Due(2, M, 0, 100)], [],
    ]  # fmt: skip


def test_several_at_once_within_the_bytes_allowed() -> None:
    serving = Serving()
    serving.want(Want(1, M, (0, 1, 2, 3)), True, LENGTHS)
    assert [due.index for due in take(serving, 300)] == [0, 1]
    assert [due.index for due in take(serving, 699)] == [2]
    assert [due.index for due in take(serving, 0)] == [3]


def test_what_may_not_be_seen_or_is_not_there_is_refused_alike() -> None:
    serving = Serving()
    refusal = [Refuse(1, "not-here", ())]
    assert serving.want(Want(1, M, (3,)), False, LENGTHS) == refusal
    assert serving.want(Want(1, M, (10,)), True, LENGTHS) == refusal
    assert len(serving) == 0


def test_a_flood_is_refused_instead_of_queued() -> None:
    serving, refused = Serving(), 0
    for request in range(100):
        refused += len(serving.want(Want(request, M, tuple(range(64))), True, (1,) * 64))
    assert len(serving) <= QUEUED_WANTS_MAX
    assert refused == 100 - QUEUED_WANTS_MAX // 64


def test_cancel_takes_only_its_own() -> None:
    serving = Serving()
    serving.want(Want(1, M, (1, 2)), True, LENGTHS)
    serving.want(Want(2, M, (3,)), True, LENGTHS)
    serving.cancel(Cancel(1))
    assert take(serving) == [Due(2, M, 3, 400)]
    serving.cancel(Cancel(99))
    assert take(serving) == []


def test_cancel_of_some_leaves_the_others() -> None:
    serving = Serving()
    serving.want(Want(1, M, (0, 1, 2)), True, LENGTHS)
    serving.cancel(Cancel(1, (0, 2)))
    assert [due.index for due in take(serving)] == [1]


def uplink(*wants: tuple[Want, ...]) -> Uplink:
    """Sessions 0, 1, ... that want these; nobody has had a block yet."""
    made = Uplink()
    for session, messages in enumerate(wants):
        serving = Serving()
        for want in messages:
            assert serving.want(want, True, (100_000,) * 64) == []
        made.join(session, serving)
    return made


def order(uplink: Uplink, turns: int, now: float = 10.0) -> list[tuple[int, int]]:
    """(session, index) of so many turns, each over before the next."""
    found = []
    for _ in range(turns):
        turn = uplink.next(now)
        if turn is None:
            break
        session, dues = turn
        found += [(session, due.index) for due in dues]
        uplink.over(now + 0.1, session)  # slow: turns stay small
    return found


def test_what_nobody_has_goes_before_what_somebody_has() -> None:
    """Else everybody gets the same block, and nobody has one to pass on."""
    one = tuple(Want(request, M, (index,)) for request, index in enumerate((1, 2)))
    two = tuple(Want(request, M, (index,)) for request, index in enumerate((1, 3)))
    assert [index for _, index in order(uplink(one, two), 4)][:3] in ([1, 3, 2], [1, 2, 3])


def test_bytes_are_shared_evenly_whoever_asks_for_more() -> None:
    flood = tuple(Want(request, M, tuple(range(32))) for request in range(16))
    made = uplink(flood, flood, (Want(0, M, tuple(range(32))),))
    sessions = [session for session, _ in order(made, 90)]
    behind = AHEAD_BYTES_MAX // 100_000 + 2
    assert sessions.count(2) >= len(sessions) / 3 - behind


def test_who_wants_only_what_others_had_is_not_left_behind_by_who_wants_what_is_new() -> None:
    """What nobody has goes first, but not for ever."""
    every, lengths = tuple(range(64)), (100_000,) * 64
    made = uplink((Want(0, M, every),))
    assert len(order(made, 64)) == 64
    made.leave(0)
    new, old = Serving(), Serving()
    for number in range(10):
        new.want(Want(number, ManifestId(bytes([number]) * 32), every), True, lengths)
    old.want(Want(0, M, every), True, lengths)
    made.join(1, new)
    made.join(2, old)
    sessions = [session for session, _ in order(made, 60)]
    behind = AHEAD_BYTES_MAX // 100_000 + 2
    assert sessions.count(2) >= len(sessions) / 2 - behind


def test_a_reader_goes_before_who_fetches_ahead() -> None:
    ahead = (Want(0, M, (1,), Urgency.FIRM),)
    reads = (Want(0, M, (2,), Urgency.SOON),)
    assert order(uplink(ahead, reads), 1) == [(1, 2)]


def test_spare_wants_wait_until_nothing_else_was_wanted_for_a_while() -> None:
    made = uplink((Want(0, M, (1,), Urgency.SPARE),), (Want(0, M, (2,)),))
    assert order(made, 2, now=5.0) == [(1, 2)]
    assert made.next(5.0 + SPARE_AFTER_SECONDS / 2) is None
    turn = made.next(5.1 + SPARE_AFTER_SECONDS)
    assert turn is not None and turn[0] == 0


def test_a_slow_uplink_has_longer_gaps_between_firm_wants() -> None:
    made = uplink((Want(0, M, (1,), Urgency.SPARE),), (Want(0, M, tuple(range(2, 14))),))
    now = 5.0
    while (turn := made.next(now)) is not None:
        assert turn[0] == 1
        now += 0.2
        made.over(now, 1)
    assert now > 6.0 and made.next(now + SPARE_AFTER_SECONDS) is None
    turn = made.next(now + SPARE_AFTER_TURNS * 0.2)
    assert turn is not None and turn[0] == 0


def test_who_wants_without_end_does_not_keep_out_who_waits_for_room() -> None:
    """The fellow whose part it is does not bring it: then the polite would starve."""
    flood = tuple(Want(request, M, tuple(range(32))) for request in range(16))
    made = uplink(flood, (Want(0, M, (40,), Urgency.SPARE),))
    assert (1, 40) not in order(made, 20, now=5.0)
    assert (1, 40) in order(made, 20, now=5.0 + SPARE_SECONDS_MAX)


def test_few_turns_at_once_and_none_waits_for_a_peer_that_does_not_read() -> None:
    made = uplink(*[(Want(0, M, (index, 40)),) for index in range(2 * TURNS_MAX)])
    begun = [made.next(1.0) for _ in range(TURNS_MAX)]
    assert None not in begun
    assert made.next(1.1) is None
    assert made.next(1.0 + TURN_SECONDS_MAX) is not None


def test_turns_of_a_slow_uplink_are_waited_for() -> None:
    """Each takes two seconds: to begin more of them would make all slower."""
    made = uplink(*[(Want(0, M, (index, 40)),) for index in range(4 * TURNS_MAX)])
    for second in range(0, 20, 2):
        turn = made.next(float(second))
        assert turn is not None
        made.over(second + 2.0, turn[0])
    assert None not in [made.next(20.0) for _ in range(TURNS_MAX)]
    assert made.next(20.0 + TURN_SECONDS_MAX) is None
    assert made.next(20.0 + 2.0 * TURN_PATIENCE) is not None


def test_who_waits_long_is_told_so_once_a_second() -> None:
    wants = [(Want(0, M, (index,)),) for index in range(TURNS_MAX + 1)]
    made = uplink(*wants, (Want(0, M, (40,), Urgency.SPARE),))
    begun = [made.next(5.0) for _ in range(TURNS_MAX)]
    assert None not in begun and made.signs(5.9) == []
    assert made.signs(6.0) == [(TURNS_MAX, M)], "the last one; what is spare has no turn to come"
    assert made.signs(6.9) == []
    assert made.signs(7.0) == [(TURNS_MAX, M)]
    made.leave(TURNS_MAX)
    assert made.signs(9.0) == []


def test_who_left_is_not_served() -> None:
    made = uplink((Want(0, M, (1,)),))
    made.leave(0)
    assert made.next(1.0) is None
    made.over(1.0, 0)


def test_who_wanted_nothing_for_long_does_not_catch_up() -> None:
    every = tuple(range(64))
    idle, busy, made = Serving(), Serving(), Uplink()
    made.join(0, idle)
    made.join(1, busy)
    for request in range(10):
        busy.want(Want(request, M, every), True, (100_000,) * 64)
    assert {session for session, _ in order(made, 300)} == {1}
    for request in range(10):
        idle.want(Want(request, M, every), True, (100_000,) * 64)
    sessions = [session for session, _ in order(made, 60)]
    behind = AHEAD_BYTES_MAX // 100_000 + 2
    assert sessions.count(1) >= 30 - behind
