"""What is read when a turn comes: a block, or a refusal, and never an end of the process."""

from __future__ import annotations

from chunker.block import Block
from chunker.store import MemoryStore
from peer.growing import Growing
from peer.identity import PeerId
from peer.messages import Refuse, Sent
from peer.sending import Sending
from peer.serving import Due
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
