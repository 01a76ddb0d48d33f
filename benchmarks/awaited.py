"""python -m benchmarks.awaited URL URL CERTIFICATE KEY FILE ASKERS: a process that looks paths up.

What a gateway does between Nix's question and its answer: both caches asked, narinfos parsed and
united, signatures verified. FILE holds the store hashes; ASKERS tasks each await one after the
other. Seconds and how many were found are one line on stdout.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import trio

from chunker.record import PathRecord
from gateway.access import Access
from gateway.breaker import Guarded
from gateway.lookup import admitted_by
from gateway.lookups import Lookups
from gateway.policy import any_of
from gateway.run import collect_seldom
from gateway.scout import Scout
from gateway.signing import KeyRing, PublicKey
from gateway.transfers import Transfers
from gateway.trust import Admitted
from gateway.upstream import open_cache

SECONDS_MAX = 60.0


async def main(
    urls: list[str], certificate: Path, key: PublicKey, names: list[str], askers: int
) -> None:
    policy, transfers = any_of(KeyRing((key,))), Transfers()
    scout = Scout(policy.keys.seals, [policy.keys])
    access = Access(tls_roots=certificate)
    caches = [Guarded(open_cache(url, access, transfers, scout)) for url in urls]

    def admits(record: PathRecord, sources: frozenset[str]) -> Admitted | None:
        return admitted_by(record, [policy])

    lookups, found = Lookups(caches, admits), 0
    collect_seldom()

    async def ask(left: Iterator[str]) -> None:
        nonlocal found
        for name in left:
            known = await lookups.look_up(name, SECONDS_MAX)
            found += known is not None and bool(known.text)

    async with trio.open_nursery() as nursery:
        await nursery.start(transfers.run)
        await nursery.start(scout.run)
        await nursery.start(lookups.run)
        began = time.perf_counter()
        left = iter(names)
        async with trio.open_nursery() as asking:
            for _ in range(askers):
                asking.start_soon(ask, left)
        print(time.perf_counter() - began, found)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    one, two, certificate, key, file, askers = sys.argv[1:]
    names = Path(file).read_text().split()
    trio.run(main, [one, two], Path(certificate), PublicKey.parse(key), names, int(askers))
