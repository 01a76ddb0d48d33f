"""Verified blocks between two processes on one core, against raw trio TCP between the same two.

    parent: spawns `serve` and `fetch`, each pinned to one core, in turn with `send` and `receive`

The fetching process runs the product's own swarm: it asks for blocks, verifies the BLAKE3 of each
and puts it into a store that keeps nothing; the serving one reads and verifies each before it
sends. Contents are random, blocks raw, so nothing but moving and hashing is measured.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial

import trio

from chunker.block import Block, Codec, Encoded
from chunker.ingest import Ingest
from chunker.record import PathRecord, needles_of
from chunker.store import MemoryStore
from gateway.run import collect_seldom, keep_freed_memory
from peer.catalogue import Catalogue
from peer.fetch import Fetch
from peer.identity import Address, Identity, parse_address
from peer.policies import Policies
from peer.swarm import Swarm

NAR_BYTES = 256 * 1024 * 1024
PIECE_BYTES = 256 * 1024
ROUNDS = 7
CHILD_SECONDS_MAX = 120.0
STORE_PATH = "/nix/store/" + "0" * 32 + "-session"


class Discarding(MemoryStore):
    """Remembers which blocks it was given, and drops them: memory that grows would be measured."""

    def put(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            self.blocks[block.id] = Encoded(Codec.RAW, 0, b"")


POLICIES = Policies(
    serves=lambda _: True,
    asks=lambda _: True,
    knows=lambda _: True,
    trusted_manifest=lambda _: True,
    admits=lambda _: True,
)


MEANING = {
    "session_mb_s": "verified blocks between two processes pinned to one core",
    "tcp_mb_s": "raw trio TCP between the same two",
    "session_ratio": "the first over the second; the floor is 0.25",
}


def run() -> dict[str, float | None]:
    """{"session_mb_s", "tcp_mb_s", "session_ratio"}: medians of pairs in turn. Raw TCP takes 0.1 s
    and varies by half from one to the next; the best of few says what luck it had."""
    pairs = [(_pair("serve", "fetch"), _pair("send", "receive")) for _ in range(ROUNDS)]
    return {
        "session_mb_s": round(statistics.median(session for session, _ in pairs)),
        "tcp_mb_s": round(statistics.median(tcp for _, tcp in pairs)),
        "session_ratio": round(statistics.median(session / tcp for session, tcp in pairs), 2),
    }


def _pair(giver: str, taker: str) -> float:
    """MB/s that the taker saw."""
    command = [sys.executable, "-m", "benchmarks.session"]
    with subprocess.Popen(
        [*command, giver], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        where = process.stdout.readline().strip()
        try:
            taken = subprocess.run(
                [*command, taker, where],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=CHILD_SECONDS_MAX,
            )
        finally:
            process.stdin.close()  # the giver ends when nobody wants more
        return float(taken.stdout)


def _record() -> tuple[PathRecord, MemoryStore]:
    """The NAR that both know of; only the giver has its blocks."""
    store = MemoryStore(Codec.RAW)
    chance = random.Random(1)
    content = b"".join(chance.randbytes(PIECE_BYTES) for _ in range(NAR_BYTES // PIECE_BYTES))
    ingest = Ingest(store, needles_of(STORE_PATH, ()))
    for word in (b"nix-archive-1", b"(", b"type", b"regular", b"contents"):
        ingest.feed(_word(word))
    ingest.feed(_word(content) + _word(b")"))
    wanted, manifest = ingest.finish_unchecked()
    record = PathRecord(
        STORE_PATH, manifest.nar_hash, manifest.nar_size, (), ("bench:AAAA",), "", wanted
    )
    store.put_record(record)
    return record, store


def _word(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


def _swarm(identity: Identity, store: MemoryStore, role: str, others: list[Address]) -> Swarm:
    from peer.host import Libp2pTransport

    transport = Libp2pTransport(identity, [("127.0.0.1", 0)])
    catalogue = Catalogue(store, bytes(32), lambda asker, record: True)
    return Swarm(transport, store, catalogue, role, POLICIES, others, random.Random(1))


async def _until_parent_is_done() -> None:
    await trio.to_thread.run_sync(partial(sys.stdin.read), abandon_on_cancel=True)


async def serve() -> None:
    _, store = _record()
    swarm = _swarm(Identity(b"g" * 32), store, "seed", [])
    async with trio.open_nursery() as nursery:
        await nursery.start(swarm.run)
        print(swarm.addresses()[0].text, flush=True)
        await _until_parent_is_done()
        nursery.cancel_scope.cancel()


async def fetch(address: str) -> None:
    store = Discarding()
    swarm = _swarm(Identity(b"t" * 32), store, "gateway", [parse_address(address)])
    async with trio.open_nursery() as nursery:
        await nursery.start(swarm.run)
        await swarm.dialling.settled()
        offers = await swarm.questions.find("0" * 32, 5.0)
        began = time.perf_counter()
        opened = await Fetch.open(swarm, offers[0][1], offers)
        assert opened is not None
        last = len(opened.manifest.blocks)
        for index in range(last):
            await opened.arrived(index)
        took = time.perf_counter() - began
        print(offers[0][1].nar_size / 1e6 / took)
        nursery.cancel_scope.cancel()


async def send() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    stream = await listener.accept()
    piece = random.Random(1).randbytes(PIECE_BYTES)
    for _ in range(NAR_BYTES // PIECE_BYTES):
        await stream.send_all(piece)
    await stream.aclose()
    await _until_parent_is_done()


async def receive(port: str) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", int(port))
    began, count = time.perf_counter(), 0
    while data := await stream.receive_some(PIECE_BYTES):
        count += len(data)
    print(count / 1e6 / (time.perf_counter() - began))


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    collect_seldom()  # as the gateway does
    keep_freed_memory()
    role, *words = sys.argv[1:]
    trio.run({"serve": serve, "fetch": fetch, "send": send, "receive": receive}[role], *words)
