"""The origin of a benchmark: a signed binary cache of noise, and an nginx on a host that serves it.

Noise, because what does not compress moves the same bytes in every form. How much nginx sent is
read from its access log, the bodies of NARs alone.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hosts import Host
from chunker.digest import ManifestId, NarHash, nix32_encode
from chunker.record import STORE_DIRECTORY, PathRecord
from gateway.narinfo import fingerprint, format, nar_url
from gateway.signing import SecretKey

START_SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.05
PORT = 80


@dataclass(frozen=True, slots=True)
class Noise:
    """A path of the cache, as much as a client must know to ask for it and to check it."""

    store_hash: str
    nar_hash: NarHash
    nar_size: int


def write_cache(
    directory: Path, key: SecretKey, count: int, content_bytes: int, seed: int
) -> list[Noise]:
    """`count` paths, each one file of `content_bytes` of noise; another seed, another noise."""
    (directory / "nar").mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    return [_write_path(directory, key, chance, content_bytes) for _ in range(count)]


def _write_path(directory: Path, key: SecretKey, chance: random.Random, size: int) -> Noise:
    words = (b"nix-archive-1", b"(", b"type", b"regular", b"contents")
    content = chance.randbytes(size)
    nar = b"".join(map(_word, (*words, content, b")")))
    nar_hash = NarHash(hashlib.sha256(nar).digest())
    store_path = f"{STORE_DIRECTORY}/{nix32_encode(nar_hash[:20])}-noise"
    record = PathRecord(store_path, nar_hash, len(nar), (), (), "", ManifestId(bytes(32)))
    signature = key.sign(fingerprint(store_path, nar_hash, len(nar), ()))
    (directory / nar_url(record)).write_bytes(nar)
    (directory / f"{record.store_hash}.narinfo").write_bytes(format(record, (signature,)))
    return Noise(record.store_hash, nar_hash, len(nar))


def _word(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


class Nginx:
    """Serves `root` on `host` until `stop`; its own files are in `directory`."""

    def __init__(self, host: Host, root: Path, directory: Path) -> None:
        self.url = f"http://{host.address}:{PORT}"
        self._log = directory / "access.log"
        directory.mkdir(exist_ok=True)
        settings = directory / "nginx.conf"
        settings.write_text(_SETTINGS.format(directory=directory, root=root, port=PORT))
        command = [*host.within, "nginx", "-c", str(settings), "-p", str(directory)]
        self._process = subprocess.Popen(command)
        try:
            self._await_start(directory)
        except BaseException:
            self.stop()
            raise

    def _await_start(self, directory: Path) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not (directory / "nginx.pid").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nginx did not start: {(directory / 'error.log').read_text()}")
            time.sleep(POLL_SECONDS)

    def nar_bytes_sent(self, paths: Sequence[Noise]) -> int:
        """Bodies of these NARs that were answered to an end, whole or cut."""
        wanted = {nix32_encode(path.nar_hash) for path in paths}
        lines = map(json.loads, self._log.read_text().splitlines())
        return sum(
            line["body_bytes"]
            for line in lines
            if line["uri"].startswith("/nar/") and line["uri"][:-4].rpartition("-")[2] in wanted
        )

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


_SETTINGS = """
user root; daemon off; worker_processes 1;
pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
  log_format bytes escape=json '{{"uri":"$uri","status":$status,"body_bytes":$body_bytes_sent}}';
  access_log {directory}/access.log bytes;
  sendfile on; keepalive_requests 100000;
  server {{ listen {port} backlog=511; root {root}; }}
}}
"""
