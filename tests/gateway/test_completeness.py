"""A path that only peers have is served when its closure can be had; unknown is not absent."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from chunker.record import PathRecord
from chunker.store import MemoryStore
from gateway import completeness
from gateway.closures import WALK_SECONDS_MAX, Closures
from gateway.completeness import (
    HELD_SECONDS,
    NOWHERE_SECONDS,
    UNDECIDED_SECONDS,
    WHOLE_SECONDS,
    Answer,
    Held,
    Memory,
    Verdict,
    Walk,
    Word,
)
from gateway.errors import UpstreamError
from gateway.narinfo import Narinfo, fingerprint
from gateway.upstream import FileCache
from tests.gateway.test_substituter import KEY, border, signed_path, write_cache
from tests.peer.office import hold, make_path, office

World = Mapping[str, Answer]


def path(name: str) -> str:
    return make_path(name, 8)[0].store_path


def held(*names: str) -> Held:
    return Held(tuple(map(path, names)))


def world(**answers: Answer) -> dict[str, Answer]:
    return {path(name): answer for name, answer in answers.items()}


def walked(root: str, answers: World) -> tuple[Walk, Counter[str]]:
    """The walk to its verdict, and how often each path was asked about."""
    first, asked = answers[root], Counter[str]()
    assert isinstance(first, Held)
    walk = Walk(root, first.references)
    while walk.verdict is None:
        batch = walk.wants()
        assert batch, "neither asks nor decides"
        asked.update(batch)
        for store_path in batch:
            walk.said(store_path, answers[store_path])
    return walk, asked


def test_a_closure_that_peers_have_is_complete_and_each_part_is_asked_once() -> None:
    answers = world(a=held("a", "b", "c"), b=held("c", "d"), c=held("d"), d=held("b"))
    walk, asked = walked(path("a"), answers)
    assert walk.verdict is Verdict.COMPLETE and walk.paths() == answers.keys()
    assert asked == Counter(map(path, "bcd"))


def test_below_what_an_upstream_has_nobody_is_asked() -> None:
    _, asked = walked(path("a"), world(a=held("b"), b=Word.WHOLE))
    assert asked == Counter([path("b")])


def test_a_part_that_is_nowhere_is_named() -> None:
    walk, _ = walked(path("a"), world(a=held("b"), b=held("c"), c=Word.NOWHERE))
    assert walk.verdict is Verdict.INCOMPLETE and walk.missing == path("c")


def test_unknown_is_neither_complete_nor_absent() -> None:
    walk, _ = walked(path("a"), world(a=held("b"), b=Word.UNDECIDED))
    assert walk.verdict is Verdict.UNKNOWN
    walk, _ = walked(path("a"), world(a=held("b", "c"), b=Word.UNDECIDED, c=Word.NOWHERE))
    assert walk.verdict is Verdict.INCOMPLETE


def test_a_walk_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completeness, "PATHS_MAX", 10)
    names = [f"n{number}" for number in range(100)]
    answers = {path(one): held(next_one) for one, next_one in itertools.pairwise(names)}
    walk, asked = walked(path("n0"), answers)
    assert walk.verdict is Verdict.UNKNOWN and len(asked) == 9


def test_any_graph_is_judged_as_its_closure_is() -> None:
    words = (Word.WHOLE, Word.NOWHERE, Word.UNDECIDED)
    seen = set()
    for seed in range(300):
        chance = random.Random(seed)
        names = [str(number) for number in range(chance.randint(1, 12))]
        answers: dict[str, Answer] = {
            name: chance.choice(words)
            if chance.random() < 0.15
            else Held(tuple(chance.sample(names, chance.randint(0, min(3, len(names))))))
            for name in names
        }
        root = answers["0"]
        if not isinstance(root, Held):
            continue
        reached, left = {"0"}, ["0"]
        while left:
            answer = answers[left.pop()]
            for name in answer.references if isinstance(answer, Held) else ():
                if name not in reached:
                    reached.add(name)
                    left.append(name)
        found = {answers[name] for name in reached}
        right = (
            Verdict.INCOMPLETE if Word.NOWHERE in found
            else Verdict.UNKNOWN if Word.UNDECIDED in found
            else Verdict.COMPLETE
        )  # fmt: skip
        assert walked("0", answers)[0].verdict is right, seed
        seen.add(right)
    assert seen == set(Verdict)


def test_answers_are_remembered_for_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[tuple[Answer, float]] = [
        (Word.WHOLE, WHOLE_SECONDS), (Word.NOWHERE, NOWHERE_SECONDS),
        (Word.UNDECIDED, UNDECIDED_SECONDS), (Held(()), HELD_SECONDS),
    ]  # fmt: skip
    for answer, seconds in times:
        memory = Memory()
        memory.learn(5.0, "a", answer)
        assert memory.answer(4.9 + seconds, "a") == answer
        assert memory.answer(5.0 + seconds, "a") is None
    monkeypatch.setattr(completeness, "REMEMBERED_MAX", 2)
    for name in "abc":
        memory.learn(0.0, name, Word.WHOLE)
    assert [memory.answer(0.0, name) for name in "abc"] == [None, Word.WHOLE, Word.WHOLE]


class Asked:
    """Answers as `world` says, None for never; counts what it was asked."""

    def __init__(self, answers: Mapping[str, Answer | None], upstream: bool = False) -> None:
        self.answers = answers
        self.upstream = upstream
        self.asked: Counter[str] = Counter()
        self.upstream_asked = 0
        self.closures = Closures(self.find, self.has_upstream)

    async def find(self, store_path: str) -> Answer:
        self.asked[store_path] += 1
        answer = self.answers[store_path]
        if answer is None:
            await trio.sleep_forever()
        assert answer is not None
        return answer

    async def has_upstream(self, wanted: str) -> bool:
        self.upstream_asked += 1
        return self.upstream

    async def may_serve(self, name: str) -> bool:
        answer = self.answers[path(name)]
        references = answer.references if isinstance(answer, Held) else ()
        return await self.closures.may_serve(replace(make_path(name, 8)[0], references=references))


async def test_the_parts_of_a_closure_cost_one_walk() -> None:
    asked = Asked(world(a=held("b", "c"), b=held("c"), c=held()))
    for name in ("a", "b", "c", "a"):
        assert await asked.may_serve(name)
    assert asked.asked == Counter(map(path, "bc")) and asked.upstream_asked == 0


async def test_what_is_incomplete_is_not_served_for_a_while(autojump_clock: MockClock) -> None:
    asked = Asked(world(a=held("b"), b=held("c"), c=Word.NOWHERE))
    for _ in range(3):
        assert not await asked.may_serve("a")
    assert asked.asked == Counter(map(path, "bc")) and asked.upstream_asked == 1
    assert asked.closures.incomplete == 3
    await trio.sleep(NOWHERE_SECONDS)
    asked.answers = world(a=held("b"), b=held("c"), c=held())
    assert await asked.may_serve("a")


async def test_an_upstream_that_has_the_path_itself_stands_behind_it() -> None:
    for upstream in (True, False):
        asked = Asked(world(a=held("b"), b=Word.NOWHERE), upstream)
        assert await asked.may_serve("a") is upstream


async def test_who_says_nothing_costs_one_wait_and_no_path(autojump_clock: MockClock) -> None:
    """The second path needs what is known to be undecided, and does not wait again."""
    asked = Asked({**world(a=held("b"), b=held("c")), path("c"): None})
    began = trio.current_time()
    assert await asked.may_serve("a")
    assert trio.current_time() - began == pytest.approx(WALK_SECONDS_MAX)
    assert await asked.may_serve("b") and await asked.may_serve("a")
    assert trio.current_time() - began == pytest.approx(WALK_SECONDS_MAX)


def needing(name: str, *references: str) -> tuple[PathRecord, bytes]:
    """A signed path with references."""
    record, nar = signed_path(name, size=1000)
    record = replace(record, references=tuple(sorted(references)))
    text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    return replace(record, signatures=(KEY.sign(text),)), nar


class Failing(FileCache):
    """Has what is in its directory, and cannot say of anything else that it is not there."""

    async def narinfo(self, store_hash: str) -> Narinfo | None:
        found = await super().narinfo(store_hash)
        if found is None:
            raise UpstreamError("it is down")
        return found


@pytest.mark.parametrize(
    ("at_seed", "at_upstream", "status"),
    [("top middle", "", 404), ("top middle leaf", "", 200), ("top middle", "leaf", 200),
     ("top middle", "top", 200)],
)  # fmt: skip
async def test_nix_is_told_of_a_path_at_peers_if_its_closure_can_be_had(
    tmp_path: Path, at_seed: str, at_upstream: str, status: int
) -> None:
    leaf = needing("leaf")
    middle = needing("middle", leaf[0].store_path)
    top = needing("top", middle[0].store_path)
    paths = {"leaf": leaf, "middle": middle, "top": top}
    async with office() as place:
        for name in at_seed.split():
            hold(place.stores.setdefault("seed", MemoryStore()), *paths[name])
        for name in at_upstream.split():
            write_cache(tmp_path, *paths[name])
        await place.start("seed", "seed")
        async with border(
            place, "seed", upstreams=(FileCache(f"file://{tmp_path}", tmp_path),)
        ) as me:
            assert await me.narinfo(top[0]) == status


async def test_what_an_upstream_has_is_served_without_a_look_at_its_closure(
    tmp_path: Path,
) -> None:
    record, nar = needing("top", path("leaf"))
    cache = write_cache(tmp_path, record, nar)
    async with office() as place, border(place, upstreams=(cache,)) as me:
        assert await me.narinfo(record) == 200
        assert me.substituter.closures.walks == 0


async def test_a_part_that_an_upstream_could_not_be_asked_for_may_be_there(tmp_path: Path) -> None:
    record, nar = needing("top", path("leaf"))
    down = Failing(f"file://{tmp_path}", tmp_path)
    async with office() as place:
        hold(place.stores.setdefault("seed", MemoryStore()), record, nar)
        await place.start("seed", "seed")
        async with border(place, "seed", upstreams=(down,)) as me:
            assert await me.narinfo(record) == 200
            assert me.substituter.closures.walks == 1
