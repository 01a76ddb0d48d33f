"""Pools among real shells on streams in memory: who is recognised, what a stranger hears, how a
revocation travels."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio

from chunker.digest import Bytes
from chunker.record import PathRecord
from chunker.store import MemoryStore
from peer.catalogue import Catalogue
from peer.certificates import (
    CERTIFICATE_SECONDS,
    REVOKED_SECONDS,
    Certificate,
    CertificateRefused,
    Description,
    PoolId,
    Revocation,
    sign,
    verify,
)
from peer.errors import NotHere
from peer.identity import Address, Identity, PeerId
from peer.introductions import MEET_AGAIN_SECONDS, SHOW_AGAIN_SECONDS, Introductions
from peer.messages import PROTOCOL_VERSION, Hello, Revoked, Show
from peer.policies import Policies
from peer.pools import REVOCATIONS_PER_POOL_MAX, Known, Membership, Mine
from peer.swarm import Swarm
from peer.transport import MemoryNetwork, MemoryStream, MemoryTransport
from peer.wire import Decoder, encode
from tests.peer.office import Office, hold, make_path, until

SECONDS_MAX = 30.0
START = 1_800_000_000.0


@dataclass
class Pool:
    name: str
    key: Identity = field(init=False)
    description: Description = field(init=False)

    def __post_init__(self) -> None:
        self.key = Identity(self.name.encode().ljust(32, b"."))
        word = self.name.encode().ljust(32, b"w")
        self.description = Description(
            PoolId(self.key.public), self.name, ("test-1:AAAA",), word, Office.peer("holder")
        )

    @property
    def id(self) -> PoolId:
        return self.description.pool

    def certificate(self, peer: PeerId, issued: float = START, **more: object) -> bytes:
        certificate = Certificate(
            self.id, peer, "gateway", int(issued), int(issued) + CERTIFICATE_SECONDS, 1
        )
        return sign(self.key, replace(certificate, **more))  # type: ignore[arg-type]

    def mine(self, peer: PeerId) -> Mine:
        member = verify(
            self.certificate(peer), pools={self.id}, peer=peer, now=START,
            revoked_since=lambda pool, peer: None,
        )  # fmt: skip
        return Mine(self.description, member)

    def revoke(self, peer: PeerId, since: float = START) -> Known:
        revocation = Revocation(self.id, peer, int(since))
        return Known(revocation, sign(self.key, revocation))


@dataclass
class Node:
    swarm: Swarm
    membership: Membership
    introductions: Introductions
    transport: MemoryTransport
    store: MemoryStore

    @property
    def peer(self) -> PeerId:
        return self.transport.peer

    def takes(self, peer: PeerId) -> bool:
        """Whether `peer` counts as a member here."""
        return bool(self.membership.pools_of(peer, self.introductions.clock()))


class Place:
    """Nobody is configured anywhere: who is in no common pool is a stranger."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = MemoryNetwork()
        self.now = START
        self.nodes: dict[str, Node] = {}
        self._nursery = nursery

    async def start(
        self, name: str, *pools: Pool, role: str = "gateway", serves: bool = False
    ) -> Node:
        peer = Office.peer(name)
        transport, store = MemoryTransport(self.network, peer), MemoryStore()
        membership = Membership(peer)
        membership.replace(pool.mine(peer) for pool in pools)
        introductions = Introductions(membership, lambda: self.now)

        def knows(other: PeerId) -> bool:
            return bool(membership.pools_of(other, self.now))

        swarm = Swarm(
            transport, store,
            Catalogue(store, name.encode().ljust(32), lambda asker, _: knows(asker)),
            role,
            Policies(serves=lambda _: serves, asks=knows, knows=knows,
                     trusted_manifest=lambda _: False, admits=lambda _: True),
            [], random.Random(name), introductions,
        )  # fmt: skip
        self.nodes[name] = Node(swarm, membership, introductions, transport, store)
        await self._nursery.start(swarm.run)
        return self.nodes[name]

    async def meet(self, one: Node, other: Node) -> None:
        """`one` hears where `other` is, and both have sessions to each other."""
        one.swarm.discovered(Address(other.peer, "127.0.0.1", 1))
        await until(
            lambda: other.peer in one.swarm.sessions() and one.peer in other.swarm.sessions()
        )


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            yield Place(nursery)
            nursery.cancel_scope.cancel()


OFFICE, CLUB = Pool("office"), Pool("club")


async def test_members_find_out_that_they_are_and_have_what_members_may() -> None:
    async with place() as here:
        one, two = await here.start("one", OFFICE, CLUB), await here.start("two", OFFICE)
        record, nar = make_path("path", 1000)
        two_record = hold(two.store, record, nar)
        two.swarm.catalogue.add(two_record)
        await here.meet(one, two)
        assert one.membership.pools_of(two.peer, here.now) == (OFFICE.id,)
        assert two.membership.pools_of(one.peer, here.now) == (OFFICE.id,)
        assert [peer for peer, _ in await one.swarm.questions.find(record.store_hash, 2)] == [
            two.peer
        ]


async def test_several_pools_at_once() -> None:
    async with place() as here:
        one, two = await here.start("one", OFFICE, CLUB), await here.start("two", CLUB, OFFICE)
        await here.meet(one, two)
        assert set(one.membership.pools_of(two.peer, here.now)) == {OFFICE.id, CLUB.id}


async def converse(stream: MemoryStream, *said: Hello | Show | Revoked) -> list[object]:
    """What the other side answers until it closes or says nothing more for a while."""
    heard: list[object] = []
    decoder = Decoder()
    for message in said:
        await stream.send_all(encode(message))
        with trio.move_on_after(0.3):
            while data := await stream.receive_some(65536):
                heard += decoder.feed(data)
            return [*heard, "closed"]
    return heard


def recorded(node: Node, other: PeerId) -> bytearray:
    """Every byte that `node` sends to `other` from now on."""
    log = bytearray()
    plain = MemoryStream.send_all

    async def send_all(self: MemoryStream, *parts: Bytes) -> None:
        if self.here == node.peer and self.peer == other:
            log.extend(b"".join(parts))
        await plain(self, *parts)

    MemoryStream.send_all = send_all  # type: ignore[method-assign]
    return log


@pytest.fixture
def streams_restored() -> Iterator[None]:
    plain = MemoryStream.send_all
    yield
    MemoryStream.send_all = plain  # type: ignore[method-assign]


def learns_nothing(log: bytes, node: Node, *pools: Pool) -> None:
    """Neither ids, names, words, keys nor certificates, nor a tag that can be told from chance."""
    for pool in pools:
        mine = node.membership.pools[pool.id]
        for secret in (
            pool.id, pool.name.encode(), pool.description.word, mine.member.blob[:64],
            mine.member.blob[64:], pool.description.keys[0].encode(),
        ):  # fmt: skip
            assert secret not in log


@pytest.mark.usefixtures("streams_restored")
async def test_a_stranger_that_dials_hears_not_a_word() -> None:
    """The recorded session of a process in two pools is that of one in none: nothing at all."""
    said = []
    for pools in ((OFFICE, CLUB), ()):
        async with place() as here:
            node = await here.start("node", *pools)
            stranger = MemoryTransport(here.network, Office.peer("stranger"))
            log = recorded(node, stranger.peer)
            stream = await stranger.open(Address(node.peer, "127.0.0.1", 1))
            hello = Hello(PROTOCOL_VERSION, "gateway", b"s" * 32, "x", (b"t" * 16,) * 8)
            assert isinstance(stream, MemoryStream)
            assert await converse(stream, hello) == ["closed"]
            said.append(bytes(log))
    assert said == [b"", b""]


@pytest.mark.usefixtures("streams_restored")
async def test_a_stranger_that_is_dialled_cannot_tell_pools() -> None:
    """A Hello with 8 tags, each new with every process, and an empty Show; in two pools or none."""
    async with place() as here:
        node = await here.start("node", OFFICE, CLUB)
        stranger = MemoryTransport(here.network, Office.peer("stranger"))
        log = recorded(node, stranger.peer)
        arrived: list[MemoryStream] = []

        async def listen(stream: MemoryStream) -> None:
            arrived.append(stream)
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            await nursery.start(stranger.run, {"/narswarm/blocks/1": listen})
            node.swarm.discovered(Address(stranger.peer, "127.0.0.1", 1))
            await until(lambda: bool(arrived))
            hello = Hello(PROTOCOL_VERSION, "gateway", b"s" * 32, "x", (b"t" * 16,) * 8)
            heard = await converse(arrived[0], hello, Show((OFFICE.certificate(node.peer),), ()))
            nursery.cancel_scope.cancel()
        assert [type(message).__name__ for message in heard[:2]] == ["Hello", "Show"]
        assert heard[1:] == [Show((), ()), "closed"]
        assert isinstance(heard[0], Hello) and len(heard[0].tags) == 8
        learns_nothing(bytes(log), node, OFFICE, CLUB)


@pytest.mark.usefixtures("streams_restored")
async def test_a_stranger_that_is_served_publicly_learns_of_no_pool() -> None:
    async with place() as here:
        node = await here.start("node", OFFICE, serves=True)
        other = await here.start("other", CLUB, serves=True)
        log = recorded(node, other.peer)
        stream = await other.transport.open(Address(node.peer, "127.0.0.1", 1))
        ours = other.introductions.hello_to(node.peer, other.swarm.hello)
        assert isinstance(stream, MemoryStream)
        heard = await converse(stream, ours, Show((CLUB.certificate(other.peer),), ()))
        assert [type(message) for message in heard] == [Hello, Show] and heard[1] == Show((), ())
        learns_nothing(bytes(log), node, OFFICE)
        # With the word it would know these tags, and with the PeerIds it would not: no two alike.
        assert isinstance(heard[0], Hello)
        again = node.introductions.hello_to(other.peer, node.swarm.hello, ())
        assert not set(again.tags) & set(heard[0].tags)


async def test_a_member_shows_nothing_to_one_that_knows_the_word_alone() -> None:
    """Whoever left the pool still knows its word; it gets no certificate for it."""
    async with place() as here:
        node = await here.start("node", OFFICE)
        former = Membership(Office.peer("former"))
        former.replace([OFFICE.mine(former.here)])
        transport = MemoryTransport(here.network, former.here)
        node.membership.heard([OFFICE.revoke(former.here).blob], here.now)
        tags = former.tags(node.peer, b"s" * 32, [OFFICE.id], b"p" * 128)
        hello = Hello(PROTOCOL_VERSION, "gateway", b"s" * 32, "x", tags)
        for shown in ((), (OFFICE.certificate(former.here),)):
            stream = await transport.open(Address(node.peer, "127.0.0.1", 1))
            assert isinstance(stream, MemoryStream)
            heard = await converse(stream, hello, Show(shown, ()))
            assert [type(message) for message in heard] == [Hello, str]


async def test_who_was_revoked_is_shown_nothing_when_it_is_dialled() -> None:
    async with place() as here:
        node = await here.start("node", OFFICE)
        node.membership.heard([OFFICE.revoke(Office.peer("former")).blob], here.now)
        former = Membership(Office.peer("former"))
        former.replace([OFFICE.mine(former.here)])
        transport = MemoryTransport(here.network, former.here)
        arrived: list[MemoryStream] = []

        async def listen(stream: MemoryStream) -> None:
            arrived.append(stream)
            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run, {"/narswarm/blocks/1": listen})
            node.swarm.discovered(Address(former.here, "127.0.0.1", 1))
            await until(lambda: bool(arrived))
            tags = former.tags(node.peer, b"s" * 32, [OFFICE.id], b"p" * 128)
            hello = Hello(PROTOCOL_VERSION, "gateway", b"s" * 32, "x", tags)
            certificate = OFFICE.certificate(former.here)
            heard = await converse(arrived[0], hello, Show((certificate,), ()))
            nursery.cancel_scope.cancel()
        assert heard[1:] == [Show((), ()), "closed"]


REFUSED = {
    "expired": OFFICE.certificate(Office.peer("two"), START - CERTIFICATE_SECONDS),
    "not yet valid": OFFICE.certificate(Office.peer("two"), START + 301),
    "foreign pool": CLUB.certificate(Office.peer("two")),
    "replayed": OFFICE.certificate(Office.peer("three")),
    "malformed": b"x" * 200,
    "revoked": OFFICE.certificate(Office.peer("two"), START - 1),
}


@pytest.mark.parametrize("fault", sorted(REFUSED))
async def test_a_certificate_that_is_wrong_opens_nothing(fault: str) -> None:
    async with place() as here:
        one = await here.start("one", OFFICE)
        if fault == "revoked":
            one.membership.heard([OFFICE.revoke(Office.peer("two"), START - 1).blob], START)
        two = Membership(Office.peer("two"))
        two.replace([OFFICE.mine(two.here)])
        transport = MemoryTransport(here.network, two.here)
        stream = await transport.open(Address(one.peer, "127.0.0.1", 1))
        tags = two.tags(one.peer, b"s" * 32, [OFFICE.id], b"p" * 128)
        hello = Hello(PROTOCOL_VERSION, "gateway", b"s" * 32, "x", tags)
        assert isinstance(stream, MemoryStream)
        heard = await converse(stream, hello, Show((REFUSED[fault],), ()))
        assert [type(message) for message in heard] == [Hello, str]
        assert not one.takes(two.here)


async def test_a_tag_is_of_no_use_to_another_or_backwards() -> None:
    """Tags name both PeerIds and the direction, so that they cannot be passed on or sent back."""
    one, two, three = (Membership(Office.peer(name)) for name in ("one", "two", "three"))
    for one_of_them in (one, two, three):
        one_of_them.replace([OFFICE.mine(one_of_them.here)])
    tags = one.tags(two.here, b"s" * 32, [OFFICE.id], b"p" * 128)
    assert two.recognised(one.here, b"s" * 32, tags) == (OFFICE.id,)
    assert two.recognised(one.here, b"t" * 32, tags) == ()
    assert two.recognised(three.here, b"s" * 32, tags) == ()
    assert three.recognised(one.here, b"s" * 32, tags) == ()
    assert one.recognised(two.here, b"s" * 32, tags) == ()


async def line(here: Place) -> tuple[Node, Node, Node]:
    """a - b - c: a and c do not know where the other is."""
    a, b, c = [await here.start(name, OFFICE) for name in ("a", "b", "c")]
    await here.meet(a, b)
    await here.meet(b, c)
    return a, b, c


async def test_a_revocation_travels_and_ends_sessions_at_once() -> None:
    async with place() as here:
        a, b, c = await line(here)
        out = await here.start("out", OFFICE)
        await here.meet(out, c)
        known = OFFICE.revoke(out.peer)
        assert a.membership.add(known, here.now)
        a.introductions.announce([known])
        await until(lambda: out.peer not in c.swarm.sessions())
        assert b.membership.revoked_since(OFFICE.id, out.peer) == int(START)
        assert not c.takes(out.peer) and c.introductions.news == [known]
        assert not any(session.peer == out.peer for session in c.swarm.inbound._sessions)
        # It comes again with the same certificate, and nobody answers.
        here.now += 2 * MEET_AGAIN_SECONDS
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.5):
            await here.meet(out, c)
        assert {a.peer, c.peer} <= set(b.swarm.sessions())


async def test_who_was_away_hears_of_it_when_it_comes() -> None:
    async with place() as here:
        a = await here.start("a", OFFICE)
        known = OFFICE.revoke(Office.peer("out"))
        a.membership.add(known, here.now)
        late = await here.start("late", OFFICE)
        await here.meet(late, a)
        await until(lambda: late.introductions.news == [known])
        seed = await here.start("seed", OFFICE, role="seed")
        late.swarm.discovered(Address(seed.peer, "127.0.0.1", 1))
        await until(lambda: seed.introductions.news == [known])


async def test_a_revocation_that_the_pool_did_not_sign_ends_the_session_that_brought_it() -> None:
    async with place() as here:
        a, b, c = await line(here)
        forged = CLUB.revoke(c.peer).blob
        forged = forged[:64] + forged[64:].replace(CLUB.id, OFFICE.id)
        to_b = next(s for s in a.swarm._asking.values() if s.peer == b.peer)
        to_b.tell(Revoked((forged,)))
        await until(lambda: to_b not in a.swarm._asking.values())
        assert b.takes(c.peer) and not b.introductions.news


async def test_the_end_of_a_certificate_ends_the_session() -> None:
    async with place() as here:
        one, two = await here.start("one", OFFICE), await here.start("two", OFFICE)
        await here.meet(one, two)
        here.now += CERTIFICATE_SECONDS
        one.introductions.end_lapsed()
        await until(lambda: not one.swarm.sessions() and not two.swarm.sessions())


async def test_a_renewed_certificate_is_shown_while_the_session_lasts() -> None:
    async with place() as here:
        one, two = await here.start("one", OFFICE), await here.start("two", OFFICE)
        await here.meet(one, two)
        here.now += CERTIFICATE_SECONDS / 2
        renewed = verify(
            OFFICE.certificate(two.peer, here.now), pools={OFFICE.id}, peer=two.peer,
            now=here.now, revoked_since=lambda pool, peer: None,
        )  # fmt: skip
        two.membership.pools[OFFICE.id] = Mine(OFFICE.description, renewed)
        one.introductions.show_again()
        key = (OFFICE.id, two.peer)
        await until(lambda: one.membership.members[key].certificate == renewed.certificate)
        assert SHOW_AGAIN_SECONDS < CERTIFICATE_SECONDS / 2


async def test_leaving_ends_sessions_and_forgets() -> None:
    async with place() as here:
        one, two = await here.start("one", OFFICE), await here.start("two", OFFICE)
        await here.meet(one, two)
        one.membership.replace([])
        one.introductions.end_lapsed()
        await until(lambda: not one.swarm.sessions())
        assert not one.membership.members


async def test_a_stranger_is_not_dialled_again_and_again() -> None:
    async with place() as here:
        one, two = await here.start("one", OFFICE), await here.start("two", CLUB)
        dialled = lambda: sum(stream.peer == two.peer for stream in here.network.streams)  # noqa: E731
        one.swarm.discovered(Address(two.peer, "127.0.0.1", 1))
        await until(lambda: dialled() == 1)
        await until(lambda: two.peer not in one.swarm._opening)
        for _ in range(5):
            one.swarm.discovered(Address(two.peer, "127.0.0.1", 1))
            await one.swarm._session(Address(two.peer, "127.0.0.1", 1))
        assert dialled() == 1
        here.now += MEET_AGAIN_SECONDS
        one.swarm.discovered(Address(two.peer, "127.0.0.1", 1))
        await until(lambda: dialled() == 2)


async def test_a_path_of_members_is_absent_for_everybody_else() -> None:
    async with place() as here:
        node = await here.start("node", OFFICE, serves=True)
        record, nar = make_path("private", 1000)
        held: PathRecord = hold(node.store, record, nar)
        node.swarm.catalogue.add(held)
        other = await here.start("other", CLUB)
        other.swarm.policies = replace(other.swarm.policies, asks=lambda _: True)
        other.swarm.discovered(Address(node.peer, "127.0.0.1", 1))
        await until(lambda: bool(other.swarm.sessions()))
        assert await other.swarm.questions.find(record.store_hash, 1, public=True) == []
        asking = next(iter(other.swarm._asking.values()))
        with pytest.raises(NotHere):
            await asking.manifest(held.manifest)


def test_the_list_of_revoked_is_bounded_and_forgets_what_is_over() -> None:
    membership = Membership(Office.peer("here"))
    membership.replace([OFFICE.mine(membership.here)])
    for number in range(REVOCATIONS_PER_POOL_MAX + 5):
        peer = Identity(number.to_bytes(32, "big")).peer_id
        known = Known(Revocation(OFFICE.id, peer, int(START) + number), b"")
        assert membership.add(known, START)
    assert len(membership.revocations) == REVOCATIONS_PER_POOL_MAX
    assert min(k.revocation.since for k in membership.revocations.values()) == int(START) + 5
    late = START + REVOKED_SECONDS + 2 * REVOCATIONS_PER_POOL_MAX
    assert not membership.add(OFFICE.revoke(Office.peer("old")), late)
    assert membership.add(OFFICE.revoke(Office.peer("new"), late), late)
    assert len(membership.revocations) == 1


def test_a_revocation_of_another_pool_is_nothing_to_us() -> None:
    membership = Membership(Office.peer("here"))
    membership.replace([OFFICE.mine(membership.here)])
    assert membership.heard([CLUB.revoke(Office.peer("x")).blob], START) == []
    with pytest.raises(CertificateRefused):
        membership.heard([b"x" * 100], START)


def test_where_a_member_says_it_listens_is_its_own_and_a_number() -> None:
    """No name is looked up and no third is dialled because a member says so."""
    here, two = Membership(Office.peer("here")), Office.peer("two")
    here.replace([OFFICE.mine(here.here)])
    introductions = Introductions(here, lambda: START)
    good = f"/ip4/10.0.0.2/tcp/4555/p2p/{two}"
    said = (
        f"/dns/internal.example/tcp/80/p2p/{two}",
        f"/ip4/10.0.0.3/tcp/4555/p2p/{Office.peer('three')}",
        two, "nonsense", good,
    )  # fmt: skip
    introductions.shown(two, Show((OFFICE.certificate(two),), said))
    assert [address.text for address in introductions.addresses[two]] == [good]
    introductions.shown(Office.peer("x"), Show((), (good,)))
    assert set(introductions.addresses) == {two}
