"""Hosts in network namespaces, for tests marked `netns`; skips where none can be made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

from benchmarks.hosts import Host, Link, NoHosts, hosts


@contextmanager
def hosts_or_skip(links: Sequence[Link]) -> Iterator[tuple[Host, ...]]:
    with ExitStack() as stack:
        try:
            made = stack.enter_context(hosts(links))
        except NoHosts as error:
            pytest.skip(str(error))
        yield made
