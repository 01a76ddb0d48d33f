"""The gateway serving a stored NAR, beside nginx serving the same file to the same client.

The three take turns, and each round gives a ratio; the figure is the median of the rounds, because
nginx needs 30 ms for the whole and a single round says little.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from gateway.demo_closure import CachedPath, make_closure, write_cache
from gateway.program import Program
from gateway.signing import generate

BYTES = 200_000_000
ROUNDS = 15
READ_BYTES = 1024 * 1024
NGINX_SECONDS_MAX = 10.0

MEANING = {
    "serve_zstd_mb_s": "the gateway serving a stored NAR, zstd at rest",
    "serve_raw_mb_s": "the same, raw at rest",
    "nginx_mb_s": "nginx serving the same NAR to the same client",
    "serve_ratio_zstd": "gateway over nginx, zstd; the floor is 0.18",
    "serve_ratio_raw": "gateway over nginx, raw; the floor is 0.40",
}


def run() -> dict[str, float | None]:
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="narswarm-bench-")))
        key = generate("bench-1")
        closure = write_cache(make_closure(1, 4, BYTES), top / "cache", key)
        largest = max(closure, key=lambda path: path.nar_size)
        trust = ["--no-nix-conf", "--trusted-public-key", key.public.text]
        urls: dict[str, str] = {}
        for codec in ("zstd", "raw"):
            store = top / f"serve-{codec}"
            words = ["--block-codec", codec, *trust]
            Program.start(["seed", (top / "cache").as_uri(), *words], store).stop()
            program = Program.start(["gateway", *words], store)
            stack.callback(program.stop)
            urls[codec] = f"{program.url}/{served_url(program.url, largest.store_hash)}"
        if shutil.which("nginx"):
            name = nar_file(top / "cache", largest).name
            urls["nginx"] = f"{nginx(top, top / 'cache', stack)}/nar/{name}"
        rounds: list[dict[str, float]] = []
        for _ in range(ROUNDS):
            rounds.append({kind: download(url, largest.nar_size) for kind, url in urls.items()})
    figures: dict[str, float | None] = {}
    for kind in ("zstd", "raw", "nginx"):
        name = "nginx_mb_s" if kind == "nginx" else f"serve_{kind}_mb_s"
        took = statistics.median(one[kind] for one in rounds) if kind in urls else None
        figures[name] = None if took is None else round(largest.nar_size / 1e6 / took)
    for kind in ("zstd", "raw"):
        ratios = [one["nginx"] / one[kind] for one in rounds if "nginx" in one]
        figures[f"serve_ratio_{kind}"] = round(statistics.median(ratios), 2) if ratios else None
    return figures


def nar_file(cache: Path, path: CachedPath) -> Path:
    text = (cache / f"{path.store_hash}.narinfo").read_text()
    return cache / next(line[5:] for line in text.splitlines() if line.startswith("URL: "))


def download(url: str, size: int) -> float:
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


def served_url(url: str, store_hash: str) -> str:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", f"/{store_hash}.narinfo")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next(line[5:] for line in lines if line.startswith("URL: "))


def nginx(top: Path, root: Path, stack: ExitStack) -> str:
    """The URL of an nginx that serves `root`, until `stack` ends."""
    probe = stack.enter_context(socket.socket())
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    (top / "nginx.conf").write_text(
        f"daemon off; pid {top}/nginx.pid; error_log {top}/nginx.log; worker_processes 1;\n"
        f"events {{}} http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:{port};\n"
        f"root {root}; }} }}\n"
    )
    for directory in (top, root, root / "nar"):
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
