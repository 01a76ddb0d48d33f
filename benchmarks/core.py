"""The hot paths of one process: cutting, ingest, rebuild, and the gateway beside nginx.

The workload is the demo's closure, which imitates the shape of a real store. Serving compares the
gateway with nginx on the same NAR, same client, in turn, best of several.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from chunker.block import Block, Codec
from chunker.cut import Cutter
from chunker.ingest import Ingest
from chunker.packs import PackStore
from chunker.rebuild import rebuild
from gateway.demo_closure import make_closure, write_cache
from gateway.program import Program
from gateway.signing import generate

BYTES = 200_000_000
ROUNDS = 5
READ_BYTES = 1024 * 1024
NGINX_SECONDS_MAX = 10.0

MEANING = {
    "cut_hash_mb_s": "cutting and BLAKE3, MB/s of NAR on one core",
    "ingest_zstd_mb_s": "NAR to blocks on disk, zstd-3 at rest; the floor is 120",
    "ingest_raw_mb_s": "the same, raw at rest",
    "rebuild_mb_s": "blocks on disk (zstd) to NAR, verified",
    "serve_zstd_mb_s": "the gateway serving a stored NAR, zstd at rest",
    "serve_raw_mb_s": "the same, raw at rest",
    "nginx_mb_s": "nginx serving the same NAR to the same client",
    "serve_ratio_zstd": "gateway over nginx, zstd; the floor to reach is 0.18",
    "serve_ratio_raw": "gateway over nginx, raw; the floor to reach is 0.40",
}


def run() -> dict[str, float | None]:
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="narswarm-bench-")))
        key = generate("bench-1")
        closure = write_cache(make_closure(1, 4, BYTES), top / "cache", key)
        largest = max(closure, key=lambda path: path.nar_size)
        name = next(
            line[5:]
            for line in (top / "cache" / f"{largest.store_hash}.narinfo").read_text().splitlines()
            if line.startswith("URL: ")
        )
        nar = (top / "cache" / name).read_bytes()
        figures: dict[str, float | None] = {"cut_hash_mb_s": cut_hash(nar)}
        for codec in (Codec.ZSTD, Codec.RAW):
            figures[f"ingest_{codec.name.lower()}_mb_s"] = ingest(nar, top, codec)
        figures["rebuild_mb_s"] = rebuilt(nar, top)
        trust = ["--no-nix-conf", "--trusted-public-key", key.public.text]
        urls: dict[str, str] = {}
        for codec in ("zstd", "raw"):
            store = top / f"serve-{codec}"
            words = ["--block-codec", codec, *trust]
            Program.start(["seed", (top / "cache").as_uri(), *words], store).stop()
            program = Program.start(["gateway", *words], store)
            stack.callback(program.stop)
            urls[codec] = f"{program.url}/{_served_url(program.url, largest.store_hash)}"
        if shutil.which("nginx"):
            urls["nginx"] = f"{_nginx(top, stack)}/{name}"
        seconds = {kind: float("inf") for kind in urls}
        for _ in range(ROUNDS):
            for kind, url in urls.items():
                seconds[kind] = min(seconds[kind], _download(url, len(nar)))
        speed = {kind: len(nar) / 1e6 / took for kind, took in seconds.items()}
        for codec in ("zstd", "raw"):
            figures[f"serve_{codec}_mb_s"] = round(speed[codec])
        nginx = speed.get("nginx")
        figures["nginx_mb_s"] = None if nginx is None else round(nginx)
        for codec in ("zstd", "raw"):
            ratio = None if nginx is None else round(speed[codec] / nginx, 2)
            figures[f"serve_ratio_{codec}"] = ratio
        return figures


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


def _download(url: str, size: int) -> float:
    """Seconds for the whole; raises AssertionError where it is not whole."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    began = time.perf_counter()
    connection.request("GET", parts.path)
    answer = connection.getresponse()
    count, buffer = 0, bytearray(READ_BYTES)
    while got := answer.readinto(buffer):
        count += got
    took = time.perf_counter() - began
    connection.close()
    assert (answer.status, count) == (200, size)
    return took


def _served_url(url: str, store_hash: str) -> str:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", f"/{store_hash}.narinfo")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next(line[5:] for line in lines if line.startswith("URL: "))


def _nginx(top: Path, stack: ExitStack) -> str:
    probe = stack.enter_context(socket.socket())
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    (top / "nginx.conf").write_text(
        f"daemon off; pid {top}/nginx.pid; error_log {top}/nginx.log; worker_processes 1;\n"
        f"events {{}} http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:{port};\n"
        f"root {top}/cache; }} }}\n"
    )
    for directory in (top, top / "cache", top / "cache" / "nar"):
        directory.chmod(0o755)
    process = subprocess.Popen(["nginx", "-c", str(top / "nginx.conf"), "-p", str(top)])
    stack.callback(process.wait)
    stack.callback(process.terminate)
    deadline = time.monotonic() + NGINX_SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()
            break
        except OSError:
            time.sleep(0.05)
    return f"http://127.0.0.1:{port}"
