"""Joining: the code, the frames, the desk; what is wrong gets one and the same no."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import msgpack
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.certificates import (
    CERTIFICATE_SECONDS,
    RENEWABLE_SECONDS,
    CertificateRefused,
    decode_certificate,
    sign,
)
from peer.errors import NotHere, SessionClosed, Unreachable, WireError
from peer.identity import Address, Identity, PeerId
from peer.introductions import Introductions
from peer.join_code import JoinCode, NoJoinCode, parse_join_code, token_digest
from peer.joining import (
    ANSWER_BYTES_MAX,
    JOIN_PROTOCOL,
    MEMBERS_TOLD_MAX,
    PEERS_AT_ONCE_MAX,
    QUESTION_BYTES_MAX,
    WRONG_MAX,
    WRONG_PEERS_MAX,
    WRONG_SECONDS,
    Answer,
    Desk,
    MemoryRegister,
    Question,
    WrongTries,
    accept,
    ask,
    decode_answer,
    decode_question,
    encode_answer,
    encode_question,
)
from peer.pools import Membership
from peer.transport import MemoryNetwork, MemoryTransport, Stream
from tests.peer.office import Office, until
from tests.peer.test_pools import CLUB, OFFICE, START

SECONDS_MAX = 30.0
TOKEN = b"t" * 16
HOLDER, ALICE, BOB = Office.peer("holder"), Office.peer("alice"), Office.peer("bob")
CODE = JoinCode(
    OFFICE.id, HOLDER, TOKEN,
    (Address(HOLDER, "192.168.1.5", 4555), Address(HOLDER, "fd00::1", 4555)),
)  # fmt: skip
ASKED = Question(TOKEN, b"", "gateway", (f"/ip4/10.0.0.9/tcp/4555/p2p/{ALICE}",))


def test_a_code_is_one_word_and_comes_back() -> None:
    assert CODE.text.isalnum() and len(CODE.text) < 200
    assert parse_join_code(f"  {CODE.text[:50]}\n  {CODE.text[50:]} ") == CODE
    assert "t" * 16 not in repr(CODE)


@given(st.integers(4, len(CODE.text) - 1), st.sampled_from("123456789ABCDEFGHJKLMNPQRSTUVWXYZ"))
@settings(max_examples=200)
def test_a_changed_letter_is_found(at: int, letter: str) -> None:
    text = CODE.text[:at] + letter + CODE.text[at + 1 :]
    if text != CODE.text:
        with pytest.raises(NoJoinCode):
            parse_join_code(text)


@pytest.mark.parametrize(
    "text", ["", "nsw1", "nsw1!", CODE.text[:-1], CODE.text + "1", CODE.text[4:], "nsw1" * 1000]
)
def test_what_is_no_code_says_what_to_do(text: str) -> None:
    with pytest.raises(NoJoinCode, match="code"):
        parse_join_code(text)


class Place:
    """The desk of OFFICE's key, with one token out."""

    def __init__(self) -> None:
        self.now = START
        self.membership = Membership(HOLDER)
        self.membership.replace([OFFICE.mine(HOLDER)])
        self.introductions = Introductions(self.membership, lambda: self.now)
        self.register = MemoryRegister()
        self.register.keys[OFFICE.id] = OFFICE.key
        self.register.tokens[token_digest(TOKEN)] = (OFFICE.id, START + 100)
        self.desk = Desk(self.register, self.introductions, lambda: 5)

    def renew(self, peer: PeerId, blob: bytes) -> Answer | None:
        return self.desk.decide(peer, Question(b"", blob, "gateway", ()))


def test_a_token_brings_in_whoever_has_it_and_once() -> None:
    here = Place()
    answer = here.desk.decide(ALICE, ASKED)
    assert answer is not None
    joined = accept(answer, OFFICE.id, ALICE, here.now)
    assert joined.description == OFFICE.description
    assert joined.member.certificate.expiry == START + CERTIFICATE_SECONDS
    assert [other.certificate.peer for other, _ in joined.others] == [HOLDER]
    assert here.membership.pools_of(ALICE, here.now) == (OFFICE.id,)
    assert [a.text for a in here.introductions.addresses[ALICE]] == list(ASKED.addresses)
    assert here.desk.decide(BOB, ASKED) is None
    assert here.desk.decide(ALICE, ASKED) is None


def test_the_members_are_told_to_who_comes() -> None:
    here = Place()
    here.desk.decide(ALICE, ASKED)
    here.register.tokens[token_digest(b"u" * 16)] = (OFFICE.id, START + 100)
    answer = here.desk.decide(BOB, replace(ASKED, token=b"u" * 16, addresses=()))
    assert answer is not None
    others = accept(answer, OFFICE.id, BOB, here.now).others
    assert {other.certificate.peer: where for other, where in others}[ALICE] == ASKED.addresses


@pytest.mark.parametrize("reason", ["wrong", "over", "no key", "foreign pool"])
def test_a_token_that_does_not_hold(reason: str) -> None:
    here = Place()
    question = ASKED
    if reason == "wrong":
        question = replace(ASKED, token=b"x" * 16)
    elif reason == "over":
        here.now += 100
    elif reason == "no key":
        here.register.keys.clear()
    else:
        here.register.tokens[token_digest(TOKEN)] = (CLUB.id, START + 100)
    assert here.desk.decide(ALICE, question) is None
    assert not here.membership.members


def test_who_guesses_is_not_looked_at_for_a_while() -> None:
    here = Place()
    wrong = replace(ASKED, token=b"x" * 16)
    for _ in range(WRONG_MAX):
        assert here.desk.decide(ALICE, wrong) is None
    assert here.desk.decide(ALICE, ASKED) is None
    assert here.register.tokens, "the right token was used up by who guessed too often"
    here.now += WRONG_SECONDS
    here.register.tokens[token_digest(TOKEN)] = (OFFICE.id, here.now + 1)
    assert here.desk.decide(ALICE, ASKED) is not None


def test_guessing_by_one_does_not_keep_out_another() -> None:
    here = Place()
    for _ in range(50):
        here.desk.decide(BOB, replace(ASKED, token=b"x" * 16))
    assert here.desk.decide(ALICE, ASKED) is not None


def test_the_list_of_who_guessed_is_bounded() -> None:
    tries = WrongTries()
    for number in range(WRONG_PEERS_MAX + 10):
        tries.add(PeerId(str(number)), float(number) / 1000)
    assert len(tries._first) == WRONG_PEERS_MAX


def test_a_member_gets_a_new_certificate_and_after_its_end_for_a_while() -> None:
    here = Place()
    blob = OFFICE.certificate(ALICE)
    for passed in (CERTIFICATE_SECONDS / 2, CERTIFICATE_SECONDS + RENEWABLE_SECONDS - 1):
        here.now = START + passed
        answer = here.renew(ALICE, blob)
        assert answer is not None
        assert decode_certificate(answer.certificate).issued == int(here.now)
    here.now = START + CERTIFICATE_SECONDS + RENEWABLE_SECONDS
    assert here.renew(ALICE, blob) is None


def test_nobody_else_is_renewed() -> None:
    here = Place()
    blob = OFFICE.certificate(ALICE)
    assert here.renew(BOB, blob) is None
    assert here.renew(ALICE, CLUB.certificate(ALICE)) is None
    assert here.renew(ALICE, b"x" * 200) is None
    assert here.renew(ALICE, OFFICE.certificate(ALICE, START + 1000)) is None
    here.membership.heard([OFFICE.revoke(ALICE).blob], START)
    assert here.renew(ALICE, blob) is None
    here.now += CERTIFICATE_SECONDS
    assert here.renew(ALICE, blob) is None


def test_invited_anew_in_the_second_of_its_revocation() -> None:
    here = Place()
    here.membership.heard([OFFICE.revoke(ALICE).blob], START)
    assert here.desk.decide(ALICE, ASKED) is not None
    assert here.membership.pools_of(ALICE, here.now) == (OFFICE.id,)


def test_what_comes_back_is_checked_against_the_code() -> None:
    """Whoever stood between, or a holder that errs: the pool, its signatures and our own name."""
    here = Place()
    answer = here.desk.decide(ALICE, ASKED)
    assert answer is not None
    wrong = [
        (replace(answer, certificate=OFFICE.certificate(BOB)), "replayed"),
        (replace(answer, certificate=CLUB.certificate(ALICE)), "foreign pool"),
        (replace(answer, description=sign(CLUB.key, CLUB.description)), "foreign pool"),
        (replace(answer, description=b"x" * 100), "malformed"),
        (replace(answer, certificate=OFFICE.certificate(ALICE, START - 8 * 86400)), "expired"),
    ]
    for changed, fault in wrong:
        with pytest.raises(CertificateRefused) as caught:
            accept(changed, OFFICE.id, ALICE, here.now)
        assert caught.value.fault == fault
    with pytest.raises(CertificateRefused):
        accept(answer, CLUB.id, ALICE, here.now)
    nonsense = replace(answer, members=((b"x" * 100, ()), (CLUB.certificate(BOB), ())))
    assert accept(nonsense, OFFICE.id, ALICE, here.now).others == ()


# -- frames --------------------------------------------------------------------------------------


def test_frames_come_back_and_fit() -> None:
    renewal = Question(b"", b"c" * 1024, "seed", ("a" * 128,) * 8)
    for question in (ASKED, renewal):
        assert decode_question(encode_question(question)) == question
        assert len(encode_question(question)) <= QUESTION_BYTES_MAX
    assert decode_answer(encode_answer(None)) is None
    certificate = OFFICE.certificate(ALICE)
    most = Answer(b"d" * 8192, b"c" * 1024, ((certificate, ("a" * 128,) * 8),) * MEMBERS_TOLD_MAX)
    assert decode_answer(encode_answer(most)) == most
    assert len(encode_answer(most)) <= ANSWER_BYTES_MAX


BAD_QUESTIONS: dict[str, object] = {
    "nothing": [],
    "another version": [2, TOKEN, b"", "gateway", []],
    "a short token": [1, b"t", b"", "gateway", []],
    "both": [1, TOKEN, b"c", "gateway", []],
    "neither": [1, b"", b"", "gateway", []],
    "another role": [1, TOKEN, b"", "king", []],
    "a certificate of 1025 bytes": [1, b"", b"c" * 1025, "gateway", []],
    "nine addresses": [1, TOKEN, b"", "gateway", ["a"] * 9],
    "an address with a line break": [1, TOKEN, b"", "gateway", ["a\n"]],
    "a number": 7,
}


@pytest.mark.parametrize("name", sorted(BAD_QUESTIONS))
def test_bad_questions(name: str) -> None:
    with pytest.raises(WireError):
        decode_question(msgpack.packb(BAD_QUESTIONS[name]))


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_bytes_give_a_frame_or_its_own_error(data: bytes) -> None:
    for decode in (decode_question, decode_answer):
        try:
            decode(data)
        except WireError:
            pass


# -- over streams --------------------------------------------------------------------------------


@asynccontextmanager
async def desk() -> AsyncIterator[tuple[Place, MemoryNetwork]]:
    here, network = Place(), MemoryNetwork()
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            transport = MemoryTransport(network, HOLDER)
            await nursery.start(transport.run, {JOIN_PROTOCOL: here.desk.serve})
            yield here, network
            nursery.cancel_scope.cancel()


WHERE = [Address(HOLDER, "127.0.0.1", 1)]


async def test_of_many_at_once_one_comes_in() -> None:
    async with desk() as (_, network):
        outcomes: list[str] = []

        async def come(number: int) -> None:
            peer = Identity(number.to_bytes(32, "big")).peer_id
            try:
                answer = await ask(MemoryTransport(network, peer), WHERE, ASKED)
                outcomes.append(accept(answer, OFFICE.id, peer, START).description.name)
            except NotHere:
                outcomes.append("no")

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(come, number)
        assert sorted(outcomes) == ["no"] * 9 + ["office"]


async def test_the_first_address_that_answers_decides() -> None:
    async with desk() as (_, network):
        alice = MemoryTransport(network, ALICE)
        nobody = Address(BOB, "127.0.0.1", 1)
        assert await ask(alice, [nobody, *WHERE], ASKED)
        with pytest.raises(NotHere):
            await ask(alice, WHERE, ASKED)
        with pytest.raises(Unreachable):
            await ask(alice, [nobody], ASKED)


async def test_a_desk_without_pools_says_the_same_no() -> None:
    async with desk() as (here, network):
        alice = MemoryTransport(network, ALICE)
        here.membership.replace([])
        with pytest.raises(NotHere):
            await ask(alice, WHERE, ASKED)


async def test_silence_takes_few_places_and_nonsense_none() -> None:
    async with desk() as (here, network):
        ended = 0

        async def wait(stream: Stream) -> None:
            nonlocal ended
            assert await stream.receive_some(1) == b""
            ended += 1

        peers = [Identity(bytes([n]) * 32).peer_id for n in range(PEERS_AT_ONCE_MAX + 3)]
        async with trio.open_nursery() as nursery:
            # Each comes twice: one place is all that one peer gets.
            streams = [
                await MemoryTransport(network, peer).open(WHERE[0], JOIN_PROTOCOL)
                for peer in peers * 2
            ]
            for stream in streams:
                nursery.start_soon(wait, stream)
            left = len(streams) - PEERS_AT_ONCE_MAX
            await until(lambda: ended == left and len(here.desk._here) == PEERS_AT_ONCE_MAX)
            for stream in streams:
                with suppress(SessionClosed):
                    await stream.send_all(b"\xff\xff\xff\xff")
            await until(lambda: ended == len(streams) and not here.desk._here)
