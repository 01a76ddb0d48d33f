"""How one comes into a pool, over `/narswarm/join/1`: a frame each way, then the stream is closed.

    newcomer (has a join code)                         desk of whoever holds the pool key
    token, role, addresses            ----------->     token used up, then signed
                                      <-----------     description, certificate, members; or nothing
    member (before its certificate ends)
    certificate, role, addresses      ----------->     not revoked: signed anew

The code pins the desk's PeerId, which the connection proves, and the pool's key, which signs all
that comes back; the token (128 random bits, good once) proves that the newcomer was given the code.
Nothing of it can be used by one in the middle. The desk stores BLAKE3 of the token, not the token.
Whatever is wrong with a question, the answer is the same empty frame, and also that of a process
without a pool: a stranger learns nothing by asking.

    frame = u32 length | msgpack array
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack
import trio

from .certificates import (
    BLOB_BYTES_MAX,
    DESCRIPTION_BYTES_MAX,
    RENEWABLE_SECONDS,
    ROLES,
    CertificateRefused,
    Description,
    Member,
    PoolId,
    decode_certificate,
    decode_description,
    issue,
    sign,
    verify,
)
from .errors import NotHere, PeerError, SessionClosed, Unreachable, WireError
from .identity import Address, Identity, PeerId
from .introductions import Introductions
from .join_code import TOKEN_BYTES, token_digest
from .messages import ADDRESSES_MAX
from .transport import Stream, Transport

log = logging.getLogger(__name__)

JOIN_PROTOCOL = "/narswarm/join/1"
JOIN_SECONDS_MAX = 10.0
QUESTION_BYTES_MAX = 4 * 1024
ANSWER_BYTES_MAX = 256 * 1024
ADDRESS_CHARS_MAX = 128
MEMBERS_TOLD_MAX = 128
PEERS_AT_ONCE_MAX = 16
"""At the desk, with one question each."""
WRONG_MAX = 5
WRONG_SECONDS = 600.0
"""A peer that asked wrongly so often within this time is not looked at until it is over."""
WRONG_PEERS_MAX = 1024
VERSION = 1
_LENGTH = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Question:
    """Either a token or a certificate that is to be renewed; the other is empty."""

    token: bytes
    certificate: bytes
    role: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """`members`: certificates and addresses of some of the others, as hints."""

    description: bytes
    certificate: bytes
    members: tuple[tuple[bytes, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """An answer that was checked. `others`: members by certificate, and where they listen."""

    description: Description
    description_blob: bytes
    member: Member
    others: tuple[tuple[Member, tuple[str, ...]], ...]


class Register(Protocol):
    """What the desk reads and writes at once, before it answers."""

    def take(self, digest: bytes, now: float) -> PoolId | None:
        """Use up a token: of many that ask for the same, one gets the pool. None if there is no
        such token, or its time is over."""
        ...

    def key(self, pool: PoolId) -> Identity | None: ...


class MemoryRegister:
    def __init__(self) -> None:
        self.keys: dict[PoolId, Identity] = {}
        self.tokens: dict[bytes, tuple[PoolId, float]] = {}

    def take(self, digest: bytes, now: float) -> PoolId | None:
        pool, expiry = self.tokens.pop(digest, (None, 0.0))
        return pool if expiry > now else None

    def key(self, pool: PoolId) -> Identity | None:
        return self.keys.get(pool)


class WrongTries:
    """Who asked wrongly how often. Pure."""

    def __init__(self) -> None:
        self._first: dict[PeerId, tuple[float, int]] = {}

    def add(self, peer: PeerId, now: float) -> None:
        first, count = self._first.get(peer, (now, 0))
        if now >= first + WRONG_SECONDS:
            first, count = now, 0
        if len(self._first) >= WRONG_PEERS_MAX and peer not in self._first:
            del self._first[min(self._first, key=lambda known: self._first[known])]
        self._first[peer] = (first, count + 1)

    def too_many(self, peer: PeerId, now: float) -> bool:
        first, count = self._first.get(peer, (now, 0))
        return count >= WRONG_MAX and now < first + WRONG_SECONDS


class Desk:
    """Answers for the pools whose key is here."""

    def __init__(
        self, register: Register, introductions: Introductions, serial: Callable[[], int]
    ) -> None:
        self._register = register
        self._introductions = introductions
        self._serial = serial
        self._wrong = WrongTries()
        self._here: set[PeerId] = set()

    async def serve(self, stream: Stream) -> None:
        """One question. Never raises for what the other side does."""
        if stream.peer in self._here or len(self._here) >= PEERS_AT_ONCE_MAX:
            await stream.aclose()
            return
        self._here.add(stream.peer)
        try:
            with trio.move_on_after(JOIN_SECONDS_MAX):
                question = decode_question(await _receive(stream, QUESTION_BYTES_MAX))
                answer = self.decide(stream.peer, question)
                await _send(stream, encode_answer(answer))
                await stream.receive_some(1)  # until they have it and close
        except PeerError as error:
            log.info("%s asked to join: %s", stream.peer, error)
        finally:
            self._here.discard(stream.peer)
            await stream.aclose()

    def decide(self, peer: PeerId, question: Question) -> Answer | None:
        """`peer` is who the connection proved. None: no, whatever the reason."""
        now = self._introductions.clock()
        if self._wrong.too_many(peer, now):
            return None
        if question.token:
            pool = self._register.take(token_digest(question.token), now)
        else:
            pool = self._renewable(peer, question.certificate, now)
        key = None if pool is None else self._register.key(pool)
        if pool is None or key is None or pool not in self._introductions.membership.pools:
            self._wrong.add(peer, now)
            log.info("%s may not join", peer)
            return None
        return self._admit(pool, key, peer, question, now)

    def _renewable(self, peer: PeerId, blob: bytes, now: float) -> PoolId | None:
        membership = self._introductions.membership
        try:
            expiry = decode_certificate(blob).expiry
            if now >= expiry + RENEWABLE_SECONDS:
                return None
            member = verify(
                blob,
                pools=membership.pools,
                peer=peer,
                now=min(now, expiry - 1),
                revoked_since=membership.revoked_since,
            )
        except CertificateRefused as error:
            log.info("not renewed: %s", error)
            return None
        return member.certificate.pool

    def _admit(
        self, pool: PoolId, key: Identity, peer: PeerId, question: Question, now: float
    ) -> Answer:
        membership = self._introductions.membership
        since = membership.revoked_since(pool, peer)
        blob = issue(key, peer, question.role, now, self._serial(), since)
        told = self._members(pool, peer, now)
        membership.admit(
            verify(blob, pools={pool}, peer=peer, now=now, revoked_since=membership.revoked_since)
        )
        self._introductions.note(peer, question.addresses)
        log.warning("%s is now a member of pool %s", peer, membership.pools[pool].description.name)
        return Answer(sign(key, membership.pools[pool].description), blob, told)

    def _members(
        self, pool: PoolId, but: PeerId, now: float
    ) -> tuple[tuple[bytes, tuple[str, ...]], ...]:
        """This process first, then the others, last seen first."""
        introductions = self._introductions
        membership = introductions.membership
        own = [address.text for address in introductions.listens()][:ADDRESSES_MAX]
        told = [(membership.pools[pool].member.blob, tuple(own))]
        others = [
            (introductions.seen.get(peer, 0.0), peer)
            for of, peer in membership.members
            if of == pool and peer not in (but, membership.here)
            if membership.fault_of(pool, peer, now) is None
        ]
        for _, peer in sorted(others, reverse=True)[: MEMBERS_TOLD_MAX - 1]:
            where = tuple(address.text for address in introductions.addresses.get(peer, ()))
            told.append((membership.members[pool, peer].blob, where))
        return tuple(told)


async def ask(transport: Transport, where: Sequence[Address], question: Question) -> Answer:
    """Ask at the first address that answers. Raises Unreachable if none does, NotHere if the
    answer is no, or another PeerError where it breaks off."""
    failures = []
    for address in where:
        try:
            stream = await transport.open(address, JOIN_PROTOCOL)
        except Unreachable as error:
            failures.append(str(error))
            continue
        try:
            with trio.fail_after(JOIN_SECONDS_MAX):
                await _send(stream, encode_question(question))
                answer = decode_answer(await _receive(stream, ANSWER_BYTES_MAX))
        except trio.TooSlowError as error:
            raise Unreachable(f"{address.text} does not answer") from error
        finally:
            await stream.aclose()
        if answer is None:
            raise NotHere(f"{address.peer} refuses")
        return answer
    raise Unreachable("; ".join(failures) or "no address is known")


def accept(answer: Answer, pool: PoolId, here: PeerId, now: float) -> Joined:
    """What `answer` is worth to `here`, who wanted to be in `pool`. Raises CertificateRefused."""
    description = decode_description(answer.description)
    if description.pool != pool:
        raise CertificateRefused("foreign pool", "the answer is of another pool")
    member = verify(
        answer.certificate, pools={pool}, peer=here, now=now, revoked_since=_nobody_revoked
    )
    others = []
    for blob, addresses in answer.members:
        try:
            named = decode_certificate(blob).peer
            other = verify(blob, pools={pool}, peer=named, now=now, revoked_since=_nobody_revoked)
        except CertificateRefused as error:
            log.info("a member is passed over: %s", error)
            continue
        others.append((other, addresses))
    return Joined(description, answer.description, member, tuple(others))


def _nobody_revoked(pool: PoolId, peer: PeerId) -> None:
    """Of revocations one hears with the first session."""


# -- frames ------------------------------------------------------------------------------------


def encode_question(question: Question) -> bytes:
    return _packed(
        [VERSION, question.token, question.certificate, question.role, list(question.addresses)]
    )


def decode_question(data: bytes) -> Question:
    """Raises WireError."""
    version, token, certificate, role, addresses = _unpacked(data, 5)
    if version != VERSION or role not in ROLES:
        raise WireError("another version or role")
    if len(_bytes(token, TOKEN_BYTES)) not in (0, TOKEN_BYTES) or bool(token) == bool(certificate):
        raise WireError("neither a token nor a certificate")
    return Question(token, _bytes(certificate, BLOB_BYTES_MAX), role, _addresses(addresses))


def encode_answer(answer: Answer | None) -> bytes:
    if answer is None:
        return _packed([])
    members = [[blob, list(addresses)] for blob, addresses in answer.members]
    return _packed([answer.description, answer.certificate, members])


def decode_answer(data: bytes) -> Answer | None:
    """None is a no. Raises WireError."""
    if data == _packed([]):
        return None
    description, certificate, listed = _unpacked(data, 3)
    if type(listed) is not list:
        raise WireError("members that are no list")
    members = []
    for item in listed:
        if type(item) is not list or len(item) != 2:
            raise WireError("a member that is none")
        members.append((_bytes(item[0], BLOB_BYTES_MAX), _addresses(item[1])))
    return Answer(
        _bytes(description, DESCRIPTION_BYTES_MAX),
        _bytes(certificate, BLOB_BYTES_MAX),
        tuple(members),
    )


def _packed(fields: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    return packed


def _unpacked(data: bytes, count: int) -> list[Any]:
    try:
        fields = msgpack.unpackb(
            data, raw=False, max_array_len=MEMBERS_TOLD_MAX, max_map_len=0, max_ext_len=0
        )
    except Exception as error:  # msgpack raises a dozen types; all mean the same here
        raise WireError(f"a frame that is not msgpack: {error}") from error
    if type(fields) is not list or len(fields) != count:
        raise WireError("a frame with other fields")
    return fields


def _bytes(value: Any, most: int) -> bytes:
    if type(value) is not bytes or len(value) > most:
        raise WireError(f"not at most {most} bytes")
    return value


def _addresses(value: Any) -> tuple[str, ...]:
    if type(value) is not list or len(value) > ADDRESSES_MAX:
        raise WireError(f"not at most {ADDRESSES_MAX} addresses")
    for text in value:
        if type(text) is not str or len(text) > ADDRESS_CHARS_MAX or not text.isprintable():
            raise WireError("an address that is none")
    return tuple(value)


async def _send(stream: Stream, data: bytes) -> None:
    await stream.send_all(_LENGTH.pack(len(data)) + data)


async def _receive(stream: Stream, bytes_max: int) -> bytes:
    (length,) = _LENGTH.unpack(await _exactly(stream, _LENGTH.size))
    if length > bytes_max:
        raise WireError(f"a frame of {length} bytes")
    return await _exactly(stream, length)


async def _exactly(stream: Stream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        if not part:
            raise SessionClosed("the stream ended in a frame")
        data += part
    return bytes(data)
