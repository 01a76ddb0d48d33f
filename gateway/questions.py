"""Questions to upstreams, all at once, each answered by a call.

    ask -> each upstream -> hear: what it has, or why that is unknown

A task for each question cost more than libcurl does. An upstream that only a task can ask, a
directory for example, is asked by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Generic, TypeVar

import trio

from .breaker import by_call
from .narinfo import Narinfo
from .upstream import Upstream

log = logging.getLogger(__name__)

Q = TypeVar("Q")
"""Whatever the answers are for."""
Hear = Callable[[Q, str, Narinfo | Exception | None], None]
"""What an upstream, named by its URL, said. An UpstreamError is its failure, any other ours."""


class Questions(Generic[Q]):
    def __init__(self, upstreams: Iterable[Upstream], hear: Hear[Q]) -> None:
        self._upstreams = [(upstream, by_call(upstream)) for upstream in upstreams]
        self._hear = hear
        self._nursery: trio.Nursery | None = None

    def begin(self, nursery: trio.Nursery) -> None:
        """Where tasks may ask."""
        self._nursery = nursery

    def end(self) -> None:
        """Nobody listens any more."""
        self._nursery = None

    def ask(self, question: Q, store_hash: str) -> None:
        """May be answered before this returns: with why an upstream is not asked."""
        assert self._nursery is not None, "begin was not called"
        for upstream, ask in self._upstreams:
            if ask is None:
                self._nursery.start_soon(self._in_task, question, upstream, store_hash)
                continue
            try:
                ask(store_hash, partial(self._answered, question, upstream.url))
            except Exception as error:
                self._answered(question, upstream.url, error)

    async def _in_task(self, question: Q, upstream: Upstream, store_hash: str) -> None:
        answer: Narinfo | Exception | None
        try:
            answer = await upstream.narinfo(store_hash)
        except Exception as error:
            answer = error
        self._answered(question, upstream.url, answer)

    def _answered(self, question: Q, url: str, answer: Narinfo | Exception | None) -> None:
        if self._nursery is None:
            return
        try:
            self._hear(question, url, answer)
        except Exception:  # ours; it must end nothing that others ask
            log.exception("what %s said was not heard", url)
