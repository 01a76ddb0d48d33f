"""What is read when a turn comes: a block, or a refusal, and never an end of the process."""

from __future__ import annotations

from collections.abc import Sequence

import trio
import trio.testing

from chunker.block import Block, Codec, Encoded, verify
from chunker.digest import Bytes, ManifestId, block_id
from chunker.store import MemoryStore
from peer.growing import Growing
from peer.identity import PeerId
from peer.messages import Message, Refuse, Sent, Want
from peer.sending import Sending
from peer.serving import Due, Serving
from peer.wire import Decoder
from tests.peer.office import make_path


def test_a_growing_manifest_that_began_anew_refuses_what_it_does_not_know_yet() -> None:
    """Its owner was lost and is followed again, while others still wait for blocks of before."""
    store, block = MemoryStore(), Block.of(b"b" * 40_000)
    store.put([block])
    growing = Growing(make_path("path", 10)[0], PeerId("owner"))
    growing.extend([block.id], [40_000])
    sending = Sending(store, lambda _: growing)
    dues = [Due(1, growing.id, index, 40_000) for index in (0, 7)]
    answers = [sending._read(due) for due in dues]
    assert isinstance(answers[0], Sent)
    assert answers[1] == Refuse(1, "not-here", (7,))


class Taker:
    """A session that keeps what it is sent."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        """Until what was sent has left."""
        self.serving = Serving()
        self.taken: list[Message] = []
        self.counted = (0, 0)
        self.signs = 0

    async def send(self, messages: Sequence[Sequence[Bytes]]) -> None:
        decoder = Decoder()
        self.taken += [one for parts in messages for one in decoder.feed(b"".join(parts))]

    async def flush(self) -> None:
        await trio.sleep(self.seconds)

    def sent(self, blocks: int, payload_bytes: int) -> None:
        self.counted = blocks, payload_bytes

    def will_serve(self, manifest: ManifestId) -> None:
        self.signs += 1

    def stop(self) -> None:
        raise AssertionError("it is neither broken nor slow")


async def test_what_came_in_just_now_is_not_read_again() -> None:
    """Here it could not be: the store has only the other one."""
    store, came, old = MemoryStore(), b"c" * 40_000, Block.of(b"o" * 50_000)
    store.put([old])
    growing = Growing(make_path("path", 10)[0], PeerId("owner"))
    growing.extend([block_id(came), old.id], [40_000, 50_000])
    sending, taker = Sending(store, lambda _: growing), Taker()
    sending.recent.put([verify(block_id(came), Encoded(Codec.RAW, 40_000, came))])
    session = sending.join(taker)
    for index in (0, 1):
        await sending._turn(session, [Due(1, growing.id, index, 40_000)])
    assert [one.encoded.payload for one in taker.taken if isinstance(one, Sent)][:1] == [came]
    assert [type(one) for one in taker.taken] == [Sent, Sent]
    assert taker.counted[0] == 1
    await sending._turn(session, [Due(1, growing.id, 0, 40_000), Due(1, growing.id, 2, 40_000)])
    assert taker.taken[-1] == Refuse(1, "not-here", (2,))


async def test_who_waits_for_its_turn_hears_that_we_live(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Thirty askers on a slow uplink: the last are served after seconds."""
    came = b"c" * 40_000
    growing = Growing(make_path("path", 10)[0], PeerId("owner"))
    growing.extend([block_id(came)], [40_000])
    sending, takers = Sending(MemoryStore(), lambda _: growing), [Taker(2.0) for _ in range(30)]
    sending.recent.put([verify(block_id(came), Encoded(Codec.RAW, 40_000, came))])  # no threads
    for taker in takers:
        sending.join(taker)
        taker.serving.want(Want(1, growing.id, (0,)), True, [40_000])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sending.run)
        await trio.sleep(60.0)
        nursery.cancel_scope.cancel()
    assert all(taker.taken for taker in takers)
    assert takers[0].signs == 0 and takers[-1].signs >= 2
