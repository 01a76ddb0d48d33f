"""What is told at once, what waits, and that nothing is told twice or forgotten."""

from __future__ import annotations

from chunker.digest import ManifestId
from peer.news import FRESH_SECONDS, STALE_SECONDS, News

M, N = ManifestId(b"m" * 32), ManifestId(b"n" * 32)


def told_at(news: News, now: float) -> dict[ManifestId, list[int]]:
    assert news.due <= now
    return news.take(now)[0]


def test_nothing_is_due_where_nothing_came() -> None:
    assert News().due == float("inf")


def test_after_a_quiet_time_both_kinds_are_told_at_once() -> None:
    for fresh in (False, True):
        news = News()
        news.note(M, 1, fresh=fresh)
        assert told_at(news, 10.0) == {M: [1]}


def test_what_came_from_a_source_does_not_wait_for_what_came_from_fellows() -> None:
    news = News()
    news.note(M, 0, fresh=False)
    news.take(10.0)
    news.note(M, 1, fresh=False)
    assert news.due == 10.0 + STALE_SECONDS
    news.note(M, 2, fresh=True)
    assert news.due == 10.0 + FRESH_SECONDS
    news.note(N, 3, fresh=False)
    assert told_at(news, 10.0 + FRESH_SECONDS) == {M: [1, 2], N: [3]}
    news.note(M, 4, fresh=False)
    assert news.due == 10.0 + FRESH_SECONDS + STALE_SECONDS


def test_what_is_restated_is_told_soon() -> None:
    news = News()
    news.note(M, 0, fresh=False)
    news.take(10.0)
    news.restate(N)
    assert news.due == 10.0 + FRESH_SECONDS
    assert news.take(11.0) == ({}, {N})
    assert news.due == float("inf")


def test_an_office_is_told_more_often_of_what_only_we_have() -> None:
    """A fellow of sixteen: each second 20 blocks come, of which 1.3 from the source."""
    news, messages, told = News(), 0, set()
    for step in range(24 * 20):
        now = step / 20
        if news.due <= now:
            messages += 1
            told |= set(told_at(news, now)[M])
        news.note(M, step, fresh=step % 15 == 0)
    assert messages <= 24 * 20 / 15 + 24 / STALE_SECONDS
    assert len(told) >= 23 * 20
