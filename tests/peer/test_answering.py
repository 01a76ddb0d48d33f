"""What an answering session says unasked, as it stands on the wire."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from chunker.digest import Bytes, ManifestId
from peer.answering import UNTOLD_MESSAGES_MAX, Answering
from peer.messages import HaveMore, Message
from peer.wire import Decoder

M = ManifestId(b"m" * 32)


async def test_who_waits_is_told_so_and_who_takes_nothing_no_more() -> None:
    heard: list[Message] = []

    async def send_all(*parts: Bytes) -> None:
        heard.extend(Decoder().feed(b"".join(parts)))

    stream = SimpleNamespace(peer="them", send_all=send_all)
    session = Answering(cast(Any, stream), cast(Any, None))
    for _ in range(UNTOLD_MESSAGES_MAX + 10):
        session.will_serve(M)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session._send_news)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert heard == [HaveMore(M, ())] * UNTOLD_MESSAGES_MAX
