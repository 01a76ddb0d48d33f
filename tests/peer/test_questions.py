"""Who has it, cheaply: what is not asked, what is asked together, and what is asked ahead."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import pytest
import trio
import trio.testing

from chunker.record import PathRecord
from chunker.store import MemoryStore
from peer.answering import Answering
from peer.asking import Asking
from peer.catalogue import prefix
from peer.identity import PeerId
from peer.messages import (
    Find,
    Found,
    GetSummary,
    Hello,
    Message,
    Refuse,
    Show,
    SummaryDelta,
    SummaryPart,
)
from tests.peer.office import Node, Office, hold, make_path, office, until

MEMBERS = 8


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PeerId, Message]]:
    """Everything that anybody asks anybody, with who is asked."""
    asked: list[tuple[PeerId, Message]] = []
    tell = Asking.tell

    def telling(self: Asking, message: Message) -> None:
        asked.append((self.peer, message))
        tell(self, message)

    monkeypatch.setattr(Asking, "tell", telling)
    return asked


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PeerId, Message]]:
    """Everything that anybody answers, with who gets it."""
    said: list[tuple[PeerId, Message]] = []
    say = Answering._say

    async def saying(self: Answering, message: Message) -> None:
        said.append((self.peer, message))
        await say(self, message)

    monkeypatch.setattr(Answering, "_say", saying)
    return said


def heard_all(node: Node, peers: int = 1) -> bool:
    """At least so many peers are met, and the summaries of all are here."""
    met = node.swarm._asking.values()
    return len(met) >= peers and all(asking._heard.is_whole for asking in met)


def held_by(place: Office, name: str, record: PathRecord) -> PathRecord:
    """`record`, kept at `name` with a NAR of its own."""
    nar = make_path(record.store_path[44:], 10)[1]
    record = hold(place.stores.setdefault(name, MemoryStore()), record, nar)
    if name in place.nodes:
        place.nodes[name].catalogue.add(record)
    return record


def claims(node: Node, record: PathRecord) -> bool:
    return any(asking.may_hold(record.store_hash) for asking in node.swarm._asking.values())


async def members(place: Office) -> Node:
    names = [f"member-{number}" for number in range(MEMBERS)]
    for name in names:
        await place.start(name, "gateway")
    me = await place.start("me", "gateway", *names)
    await until(lambda: heard_all(me, MEMBERS))
    return me


async def test_a_miss_sends_nothing(questions: list[tuple[PeerId, Message]]) -> None:
    async with office() as place:
        me = await members(place)
        questions.clear()
        for number in range(100):
            assert (
                await me.swarm.questions.find(make_path(f"absent-{number}", 1)[0].store_hash, 2)
                == []
            )
        assert questions == []


async def test_only_who_claims_a_path_is_asked(questions: list[tuple[PeerId, Message]]) -> None:
    async with office() as place:
        record = held_by(place, "member-3", make_path("path", 10)[0])
        me = await members(place)
        questions.clear()
        found = await me.swarm.questions.find(record.store_hash, 2)
        assert found == [(place.peer("member-3"), record)]
        assert [peer for peer, _ in questions] == [place.peer("member-3")]


async def test_what_comes_later_is_claimed_and_what_goes_is_not() -> None:
    async with office() as place:
        me = await members(place)
        record = held_by(place, "member-3", make_path("path", 10)[0])
        await until(lambda: claims(me, record))
        assert len(await me.swarm.questions.find(record.store_hash, 2)) == 1
        place.nodes["member-3"].catalogue.remove(record)
        await until(lambda: not claims(me, record))


async def test_whose_summary_is_not_there_is_asked(
    questions: list[tuple[PeerId, Message]],
) -> None:
    async with office() as place:
        me = await members(place)
        asking = next(iter(me.swarm._asking.values()))
        asking._heard.asks(0)
        questions.clear()
        assert await me.swarm.questions.find(make_path("absent", 1)[0].store_hash, 2) == []
        assert [peer for peer, _ in questions] == [asking.peer]


async def test_after_a_gap_the_summary_is_asked_for_anew(
    questions: list[tuple[PeerId, Message]],
) -> None:
    async with office() as place:
        me = await members(place)
        asking = next(iter(me.swarm._asking.values()))
        request = asking._heard._request
        assert request is not None
        questions.clear()
        await asking._dispatch(SummaryDelta(request, 99, b"", b""))
        assert [type(message) for _, message in questions] == [GetSummary]
        assert asking.may_hold(make_path("absent", 1)[0].store_hash)


def told(answers: list[tuple[PeerId, Message]], asker: PeerId) -> bytes:
    """All that summaries said to `asker`."""
    said = b""
    for peer, message in answers:
        if peer == asker and isinstance(message, SummaryPart):
            said += message.prefixes
        elif peer == asker and isinstance(message, SummaryDelta):
            said += message.added + message.removed
    return said


async def test_a_summary_tells_only_what_the_asker_may_have(
    answers: list[tuple[PeerId, Message]],
) -> None:
    async with office() as place:
        first = held_by(place, "holder", make_path("private-1", 10)[0])
        public = make_path("public", 10)[0]
        place.allowed = lambda asker, record: (
            asker == place.peer("friend") or record.store_hash == public.store_hash
        )
        holder = await place.start("holder", "gateway")
        friend = await place.start("friend", "gateway", "holder")
        other = await place.start("other", "gateway", "holder")
        await until(lambda: heard_all(friend) and heard_all(other))
        second = held_by(place, "holder", make_path("private-2", 10)[0])
        await until(lambda: claims(friend, second))
        holder.catalogue.remove(first)
        await until(lambda: not claims(friend, first))
        public = held_by(place, "holder", public)
        await until(lambda: claims(other, public) and claims(friend, public))
        salt = holder.catalogue.salt
        names = [prefix(salt, record.store_hash) for record in (first, second, first, public)]
        assert told(answers, friend.peer) == b"".join(names)
        assert told(answers, other.peer) == names[-1]


async def test_a_stranger_is_told_no_summary(answers: list[tuple[PeerId, Message]]) -> None:
    async with office() as place:
        held_by(place, "holder", make_path("path", 10)[0])
        await place.start("holder", "gateway")
        place.known = lambda peer: peer == place.peer("holder")
        stranger = await place.start("stranger", "gateway", "holder")
        asking = next(iter(stranger.swarm._asking.values()))
        await until(lambda: asking._heard._request is None)
        assert told(answers, stranger.peer) == b""
        kinds = [type(message) for _, message in answers]
        assert [kind for kind in kinds if kind not in (Hello, Show)] == [Refuse]


async def test_who_is_a_member_no_more_is_told_nothing_more(
    answers: list[tuple[PeerId, Message]],
) -> None:
    async with office() as place:
        await place.start("holder", "gateway")
        member = await place.start("member", "gateway", "holder")
        await until(lambda: heard_all(member))
        place.known = lambda peer: peer == place.peer("holder")
        held_by(place, "holder", make_path("path", 10)[0])
        await until(lambda: not heard_all(member))
        assert told(answers, member.peer) == b""


async def test_a_stranger_is_not_asked_for_a_summary(
    questions: list[tuple[PeerId, Message]],
) -> None:
    async with office() as place:
        await place.start("stranger", "gateway")
        place.known = lambda peer: False
        await place.start("me", "gateway", "stranger")
        assert not any(isinstance(message, GetSummary) for _, message in questions)


async def test_many_lookups_are_few_messages(questions: list[tuple[PeerId, Message]]) -> None:
    async with office() as place:
        records = [
            held_by(place, "member-0", make_path(f"path-{number}", 10)[0]) for number in range(100)
        ]
        me = await members(place)
        questions.clear()
        found: list[PathRecord] = []

        async def look_up(record: PathRecord) -> None:
            found.extend(offer for _, offer in await me.swarm.questions.find(record.store_hash, 5))

        async with trio.open_nursery() as nursery:
            for record in records:
                nursery.start_soon(look_up, record)
        assert sorted(r.store_path for r in found) == sorted(r.store_path for r in records)
        finds = [message for _, message in questions if isinstance(message, Find)]
        assert len(finds) <= 2
        assert sum(len(find.hashes) for find in finds) == len(records)


async def test_a_bad_answer_that_many_share_bans_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with office() as place:
        record = held_by(place, "member-0", make_path("path", 10)[0])
        me = await members(place)
        monkeypatch.setattr(
            Answering, "_found", lambda self, find: Found(find.request, 1, ((0, b"nonsense"),))
        )
        found: list[object] = []

        async def look_up() -> None:
            found.extend(await me.swarm.questions.find(record.store_hash, 5))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(look_up)
        assert found == [] and me.swarm.counters.bans == 1


async def test_askers_that_come_together_share_the_checks() -> None:
    """An office that starts at nine asks each member for its summary at once."""
    async with office() as place:
        for number in range(50):
            held_by(place, "holder", make_path(f"path-{number}", 10)[0])
        holder = await place.start("holder", "gateway")
        judged: list[str] = []

        def audience(record: PathRecord) -> int:
            judged.append(record.store_path)
            time.sleep(0.001)  # as a signature does, without the interpreter's lock
            return 0

        holder.catalogue._audience = audience
        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c", "d"):
                nursery.start_soon(place.start, name, "gateway", "holder")
        await until(lambda: all(heard_all(place.nodes[name]) for name in ("a", "b", "c", "d")))
        assert len(judged) <= 50 + 4


# -- records ahead ---------------------------------------------------------------------------


def closure(place: Office, name: str, levels: int, width: int) -> list[list[PathRecord]]:
    """Level by level from the top; each path refers to all of the level below."""
    below: tuple[str, ...] = ()
    found: list[list[PathRecord]] = []
    for level in reversed(range(levels)):
        records = [
            replace(make_path(f"closure-{level}-{number}", 10)[0], references=below)
            for number in range(width if level else 1)
        ]
        found.insert(0, [held_by(place, name, record) for record in records])
        below = tuple(sorted(record.store_path for record in records))
    return found


def finds_by_peer(questions: list[tuple[PeerId, Message]]) -> Counter[PeerId]:
    return Counter(peer for peer, message in questions if isinstance(message, Find))


async def test_the_rest_of_a_closure_is_there_before_it_is_asked_for(
    questions: list[tuple[PeerId, Message]],
) -> None:
    async with office() as place:
        levels = closure(place, "member-0", levels=4, width=20)
        me = await members(place)
        questions.clear()
        holder = place.peer("member-0")
        top = levels[0][0]
        assert await me.swarm.questions.look_up(top.store_hash, 2) == [(holder, top)]
        bottom = [record.store_hash for record in levels[-1]]
        ahead = me.swarm.questions._ahead
        await until(lambda: all(ahead.offer(trio.current_time(), name) for name in bottom))
        assert finds_by_peer(questions) == {holder: len(levels)}
        questions.clear()
        for level in levels[1:]:
            for record in level:
                assert await me.swarm.questions.look_up(record.store_hash, 2) == [(holder, record)]
        assert questions == []


async def test_what_is_here_or_nowhere_is_not_asked_for_ahead(
    questions: list[tuple[PeerId, Message]],
) -> None:
    async with office() as place:
        levels = closure(place, "member-0", levels=2, width=5)
        for record in levels[1][:3]:
            held_by(place, "me", record)
        place.stores["member-0"]._records.pop(levels[1][4].store_hash)
        me = await members(place)
        questions.clear()
        await me.swarm.questions.look_up(levels[0][0].store_hash, 2)
        ahead = me.swarm.questions._ahead
        wanted = levels[1][3].store_hash
        await until(lambda: ahead.offer(trio.current_time(), wanted) is not None)
        asked = [h for _, message in questions if isinstance(message, Find) for h in message.hashes]
        assert len(asked) == 2


async def test_what_no_trusted_key_signed_leads_to_no_questions(
    questions: list[tuple[PeerId, Message]],
) -> None:
    async with office() as place:
        levels = closure(place, "member-0", levels=2, width=5)
        me = await members(place)
        policies = replace(me.swarm.policies, admits=lambda record: False)
        me.swarm.questions._policies = policies
        questions.clear()
        assert len(await me.swarm.questions.look_up(levels[0][0].store_hash, 2)) == 1
        await trio.testing.wait_all_tasks_blocked()
        assert sum(finds_by_peer(questions).values()) == 1


async def test_an_offer_of_a_peer_that_left_does_not_count() -> None:
    async with office() as place:
        levels = closure(place, "member-0", levels=2, width=1)
        me = await members(place)
        await me.swarm.questions.look_up(levels[0][0].store_hash, 2)
        ahead, name = me.swarm.questions._ahead, levels[1][0].store_hash
        await until(lambda: ahead.offer(trio.current_time(), name) is not None)
        place.network.cut(place.peer("member-0"))
        await until(lambda: place.peer("member-0") not in me.swarm.sessions())
        assert await me.swarm.questions.look_up(name, 2) == []


async def test_a_forged_offer_ahead_hides_nobody_elses() -> None:
    async with office() as place:
        top, bottom = (level[0] for level in closure(place, "member-0", levels=2, width=1))
        honest = held_by(place, "member-1", make_path(bottom.store_path[44:], 10)[0])
        forged = replace(bottom, signatures=("forged-1:AAAA",))
        place.stores["member-0"].put_record(forged)
        me = await members(place)
        policies = replace(me.swarm.policies, admits=lambda record: record != forged)
        me.swarm.questions._policies = policies
        assert len(await me.swarm.questions.look_up(top.store_hash, 2)) == 1
        nursery = me.swarm.questions._nursery
        assert nursery is not None
        await until(lambda: not nursery.child_tasks)
        found = await me.swarm.questions.look_up(bottom.store_hash, 2)
        assert (place.peer("member-1"), honest) in found
