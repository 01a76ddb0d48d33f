"""How much memory and time a gateway takes: for a NAR of 4 GiB, and for doing nothing.

    nginx -> gateway (upstream, store, SHA-256, delivery) -> a client that reads 20 MB/s

The NAR is noise, so that every byte passes through cutting and the store. At rest the gateway is
connected to one peer, which does nothing either.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import re
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.serving import nginx, served_url
from chunker.digest import NarHash, nix32_encode
from gateway.narinfo import fingerprint
from gateway.program import Program
from gateway.signing import SecretKey, generate
from peer.identity import load_or_create

NAR_BYTES = 4 * 1024**3
READ_MB_S = 20
PIECE_BYTES = 1024 * 1024
IDLE_SETTLE_SECONDS = 10
IDLE_SECONDS = 60
STORE_PATH = "/nix/store/" + "1" * 32 + "-four-gigabytes"

MEANING = {
    "rss_mb_4gib": "peak RSS with a NAR of 4 GiB and a client that reads 20 MB/s; at most 200",
    "idle_rss_mb": "RSS at rest, one peer connected; at most 150",
    "idle_cpu_percent": "of one core at rest, over a minute; at most 1.0",
}


def run() -> dict[str, float | None]:
    return {"rss_mb_4gib": four_gigabytes(), **idle()}


def four_gigabytes(nar_bytes: int = NAR_BYTES) -> float:
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="narswarm-bench-")))
        key = generate("bench-1")
        nar_hash, nar_size = _write_cache(top / "cache", key, nar_bytes)
        upstream = (top / "cache").as_uri()
        if shutil.which("nginx"):
            upstream = nginx(top, top / "cache", stack)
        words = ["gateway", "--no-nix-conf", "--trusted-public-key", key.public.text]
        gateway = Program.start([*words, "--upstream", upstream], top / "store")
        stack.callback(gateway.stop)
        found = _read_slowly(gateway.url, nar_size)
        assert found == nar_hash, "the gateway served something else"
        return round(_kilobytes(gateway, "VmHWM") / 1000)


def idle() -> dict[str, float | None]:
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="narswarm-bench-")))
        for name in ("peer", "gateway"):
            (top / name).mkdir(mode=0o700)
        ours = load_or_create(top / "gateway" / "identity").peer_id
        peer = Program.start(["peer", "--peer", ours], top / "peer")
        stack.callback(peer.stop)
        gateway = Program.start(["gateway", "--peer", peer.address], top / "gateway")
        stack.callback(gateway.stop)
        gateway.await_peers(1)
        time.sleep(IDLE_SETTLE_SECONDS)
        before = _cpu_seconds(gateway)
        time.sleep(IDLE_SECONDS)
        percent = 100 * (_cpu_seconds(gateway) - before) / IDLE_SECONDS
        return {
            "idle_rss_mb": round(_kilobytes(gateway, "VmRSS") / 1000),
            "idle_cpu_percent": round(percent, 2),
        }


def _write_cache(directory: Path, key: SecretKey, nar_bytes: int) -> tuple[NarHash, int]:
    """One NAR of noise in a cache; its hash and size."""
    (directory / "nar").mkdir(parents=True)
    head = b"".join(map(_word, (b"nix-archive-1", b"(", b"type", b"regular", b"contents")))
    digest, size, chance = hashlib.sha256(), 0, random.Random(4)
    with (directory / "nar" / "x.nar").open("wb") as file:

        def write(data: bytes) -> None:
            nonlocal size
            digest.update(data)
            size += len(data)
            file.write(data)

        write(head + nar_bytes.to_bytes(8, "little"))
        for _ in range(nar_bytes // PIECE_BYTES):
            write(chance.randbytes(PIECE_BYTES))
        write(_word(b")"))
    nar_hash = NarHash(digest.digest())
    signature = key.sign(fingerprint(STORE_PATH, nar_hash, size, ()))
    (directory / f"{STORE_PATH[11:43]}.narinfo").write_text(
        f"StorePath: {STORE_PATH}\nURL: nar/x.nar\nCompression: none\n"
        f"NarHash: sha256:{nix32_encode(nar_hash)}\nNarSize: {size}\nReferences: \n"
        f"Sig: {signature}\n"
    )
    return nar_hash, size


def _word(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


def _read_slowly(url: str, size: int) -> bytes:
    """SHA-256 of the NAR, read at READ_MB_S."""
    name = served_url(url, STORE_PATH[11:43])
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", f"/{name}")
    answer = connection.getresponse()
    digest, count, began = hashlib.sha256(), 0, time.monotonic()
    while data := answer.read(PIECE_BYTES):
        digest.update(data)
        count += len(data)
        ahead = count / (READ_MB_S * 1e6) - (time.monotonic() - began)
        time.sleep(max(0.0, ahead))
    connection.close()
    assert count == size, f"{count} of {size} bytes came"
    return digest.digest()


def _kilobytes(program: Program, name: str) -> int:
    text = Path(f"/proc/{program.process.pid}/status").read_text()
    match = re.search(rf"{name}:\s+(\d+) kB", text)
    assert match is not None
    return int(match[1])


def _cpu_seconds(program: Program) -> float:
    fields = Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
