"""What one process does on this machine, beside a peer or a limit in the same run.

    cutting, ingest, rebuild   here, on one thread
    session                    benchmarks.session: blocks between two processes, beside raw TCP
    serving                    benchmarks.serving: the gateway beside nginx
    memory                     benchmarks.memory: a NAR of 4 GiB, and a gateway at rest

The workload is the demo's closure, which imitates the shape of a real store.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks import memory, serving, session
from chunker.block import Block, Codec
from chunker.cut import Cutter
from chunker.ingest import Ingest
from chunker.packs import PackStore
from chunker.rebuild import rebuild
from gateway.demo_closure import make_closure, write_cache
from gateway.signing import generate

BYTES = 200_000_000
ROUNDS = 5
READ_BYTES = 1024 * 1024

MEANING = {
    "cut_hash_mb_s": "cutting and BLAKE3, MB/s of NAR on one core",
    "ingest_zstd_mb_s": "NAR to blocks on disk, zstd-3 at rest; the floor is 120",
    "ingest_raw_mb_s": "the same, raw at rest; the floor is 250",
    "rebuild_mb_s": "blocks on disk (zstd) to NAR, verified",
    **session.MEANING,
    **serving.MEANING,
    **memory.MEANING,
}


def run() -> dict[str, float | None]:
    with tempfile.TemporaryDirectory(prefix="narswarm-bench-") as directory:
        top = Path(directory)
        closure = write_cache(make_closure(1, 4, BYTES), top / "cache", generate("bench-1"))
        largest = max(closure, key=lambda path: path.nar_size)
        nar = serving.nar_file(top / "cache", largest).read_bytes()
        figures: dict[str, float | None] = {"cut_hash_mb_s": cut_hash(nar)}
        for codec in (Codec.ZSTD, Codec.RAW):
            figures[f"ingest_{codec.name.lower()}_mb_s"] = ingest(nar, top, codec)
        figures["rebuild_mb_s"] = rebuilt(nar, top)
    return {**figures, **session.run(), **serving.run(), **memory.run()}


def _best(size: int, work: Callable[[], object]) -> float:
    """MB/s of the fastest of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return round(size / 1e6 / best)


def cut_hash(nar: bytes) -> float:
    def work() -> None:
        cutter = Cutter()
        for at in range(0, len(nar), READ_BYTES):
            for block in cutter.feed(nar[at : at + READ_BYTES]):
                Block.of(block)
        for block in cutter.finish():
            Block.of(block)

    return _best(len(nar), work)


def ingest(nar: bytes, top: Path, codec: Codec) -> float:
    def work() -> None:
        store = PackStore.open(top / "ingest", codec=codec)
        pipeline = Ingest(store, ())
        pipeline.feed(nar)
        pipeline.finish_unchecked()
        store.close()
        shutil.rmtree(top / "ingest")

    return _best(len(nar), work)


def rebuilt(nar: bytes, top: Path) -> float:
    store = PackStore.open(top / "rebuild")
    pipeline = Ingest(store, ())
    pipeline.feed(nar)
    _, manifest = pipeline.finish_unchecked()
    store.flush()

    def work() -> None:
        for _ in rebuild(replace(manifest), (), store):
            pass

    speed = _best(len(nar), work)
    store.close()
    return speed
