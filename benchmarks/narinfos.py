"""Two caches of narinfos behind one nginx: TLS with HTTP/2, as real ones, and plain HTTP beside it.

Half of the paths are nowhere, a quarter is in either cache. What is there refers to others that are
there.
"""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from chunker.digest import ManifestId, NarHash, nix32_encode
from chunker.record import STORE_DIRECTORY, PathRecord
from gateway.narinfo import fingerprint, format
from gateway.signing import SecretKey

REFERENCES = 5
NAR_BYTES = 100_000
START_SECONDS_MAX = 10.0
STREAMS_MAX = 256

_SETTINGS = """
daemon off; pid {top}/nginx.pid; error_log {top}/nginx.log; worker_processes 1; user root;
events {{ worker_connections 4096; }}
http {{
  access_log off; log_not_found off; sendfile on; keepalive_requests 1000000;
  ssl_certificate {top}/certificate.pem; ssl_certificate_key {top}/key.pem;
  http2_max_concurrent_streams {streams};
  server {{ listen 127.0.0.1:{ports[0]} ssl http2; root {top}/one; }}
  server {{ listen 127.0.0.1:{ports[1]} ssl http2; root {top}/two; }}
  server {{ listen 127.0.0.1:{ports[2]}; root {top}/all; }}
}}
"""


@dataclass(frozen=True)
class Caches:
    top: Path
    names: list[str]
    """Store hashes, those that are there and those that are nowhere mixed."""
    there: list[str]
    ports: tuple[int, int, int]
    """Two caches with TLS; one without, which has all that is there."""

    @property
    def certificate(self) -> Path:
        return self.top / "certificate.pem"


def write(top: Path, key: SecretKey, count: int, stack: ExitStack) -> Caches:
    """The caches are served until `stack` ends."""
    chance = random.Random(count)
    for name in ("one", "two", "all"):
        (top / name).mkdir(parents=True)
    names, there = [], []
    paths: list[str] = []
    for number in range(count):
        record = _record(chance, number, paths)
        names.append(record.store_hash)
        if number % 2:
            continue
        there.append(record.store_hash)
        paths.append(record.store_path)
        signed = key.sign(
            fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
        )
        for place in ("one" if number % 4 else "two", "all"):
            (top / place / f"{record.store_hash}.narinfo").write_bytes(format(record, (signed,)))
    ports = _free_ports()
    caches = Caches(top, names, there, ports)
    _certificate(top)
    _serve(caches, stack)
    return caches


def _record(chance: random.Random, number: int, others: Sequence[str]) -> PathRecord:
    store_path = f"{STORE_DIRECTORY}/{nix32_encode(chance.randbytes(20))}-path-{number}"
    references = tuple(sorted(chance.sample(others, min(REFERENCES, len(others)))))
    nar_hash, manifest = NarHash(chance.randbytes(32)), ManifestId(bytes(32))
    return PathRecord(store_path, nar_hash, NAR_BYTES, references, (), "", manifest)


def _certificate(top: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", str(top / "key.pem"), "-out", str(top / "certificate.pem"),
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip


def _free_ports() -> tuple[int, int, int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        one, two, plain = (probe.getsockname()[1] for probe in probes)
    return one, two, plain


def _serve(caches: Caches, stack: ExitStack) -> None:
    top = caches.top
    settings = _SETTINGS.format(top=top, ports=caches.ports, streams=STREAMS_MAX)
    (top / "nginx.conf").write_text(settings)
    for directory in (top, top / "one", top / "two", top / "all"):
        directory.chmod(0o755)
    process = subprocess.Popen(["nginx", "-c", str(top / "nginx.conf"), "-p", str(top)])
    stack.callback(process.wait)
    stack.callback(process.terminate)
    deadline = time.monotonic() + START_SECONDS_MAX
    while not (top / "nginx.pid").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nginx did not start: {(top / 'nginx.log').read_text()}")
        time.sleep(0.05)


def curl_seconds(
    caches: Caches, urls: Sequence[str], names: Sequence[str], *, parallel: int
) -> float:
    """How long curl takes to ask each of `urls` for every path. Raises AssertionError where an
    answer is missing."""
    listing = caches.top / "curl.conf"
    asked = [f"{url}/{name}.narinfo" for name in names for url in urls]
    listing.write_text("".join(f'url = "{one}"\noutput = "/dev/null"\n' for one in asked))
    version = "--http2" if urls[0].startswith("https") else "--http1.1"
    command = ["curl", "--silent", "--parallel", "--parallel-max", str(parallel), version,
               "--cacert", str(caches.certificate), "--write-out", "%{http_code}\n",
               "--noproxy", "*", "--config", str(listing)]  # fmt: skip
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took = time.perf_counter() - began
    codes = done.stdout.split()
    there = set(caches.there)
    expected = sum(name in there for name in names)
    assert (codes.count("200"), codes.count("404")) == (expected, len(asked) - expected)
    return took
