"""A client such as Nix is one: narinfo, then NAR, several paths at once, each body checked.

    python -m benchmarks.client URL PATHS PARALLEL RETRY_SECONDS

PATHS is a JSON file: [[store hash, SHA-256 in hex, size], ...]. It prints "ready", waits for a line
on stdin so that many clients can start at one moment, and ends with one JSON object: seconds to the
last byte, paths that failed, and how often a body had to be continued. With RETRY_SECONDS > 0 a
broken request is continued where it broke (Range), as Nix does it, until so much time has passed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pycurl

BUFFER_BYTES = 512 * 1024
STALLED_SECONDS_MAX = 300
"""stalled-download-timeout of nix.conf, as it is by default."""
RETRY_PAUSE_SECONDS = 0.25
ERRORS_SHOWN_MAX = 5

_thread = threading.local()


@dataclass
class Result:
    failed: int = 0
    continued: int = 0
    errors: list[str] = field(default_factory=list)

    def fail(self, why: str) -> None:
        self.failed += 1
        self.errors = [*self.errors, why][:ERRORS_SHOWN_MAX]


class Failed(Exception):
    """An answer that is not what was asked for."""


def main() -> int:
    url, file, parallel, retry = sys.argv[1:]
    paths: list[tuple[str, str, int]] = json.loads(Path(file).read_text())
    result = Result()
    with ThreadPoolExecutor(int(parallel)) as pool:
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        deadline = began + float(retry)
        for _ in pool.map(lambda path: _fetch(url, path, deadline, result), paths):
            pass
        seconds = time.monotonic() - began
    print(json.dumps({"seconds": seconds, **vars(result)}))
    return 0


def _fetch(url: str, path: tuple[str, str, int], deadline: float, result: Result) -> None:
    name, digest, size = path
    found, received = hashlib.sha256(), 0

    def keep(data: bytes) -> None:
        nonlocal received
        received += len(data)
        found.update(data)

    target = ""
    while True:
        try:
            target = target or _nar_target(f"{url}/{name}.narinfo")
            _get(f"{url}/{target}", keep, received)
        except (pycurl.error, Failed) as error:
            if time.monotonic() < deadline:
                result.continued += 1
                time.sleep(RETRY_PAUSE_SECONDS)
                continue
            result.fail(f"{target or name}, byte {received}: {error}")
        else:
            if (received, found.hexdigest()) != (size, digest):
                result.fail(f"{name}: the hash of {received} of {size} bytes does not match")
        return


def _nar_target(url: str) -> str:
    body = bytearray()
    _get(url, body.extend, 0)
    for line in body.decode().splitlines():
        if line.startswith("URL: "):
            return line[5:]
    raise Failed(f"{url} names no NAR")


def _get(url: str, keep: Callable[[bytes], None], start: int) -> None:
    """Raises pycurl.error where the body broke, Failed for another answer."""
    if not hasattr(_thread, "curl"):
        _thread.curl = pycurl.Curl()
    curl = _thread.curl
    curl.setopt(pycurl.URL, url)
    curl.setopt(pycurl.PROXY, "")
    curl.setopt(pycurl.NOSIGNAL, 1)
    curl.setopt(pycurl.BUFFERSIZE, BUFFER_BYTES)
    curl.setopt(pycurl.FAILONERROR, 1)
    curl.setopt(pycurl.LOW_SPEED_LIMIT, 1)
    curl.setopt(pycurl.LOW_SPEED_TIME, STALLED_SECONDS_MAX)
    curl.setopt(pycurl.RANGE, f"{start}-") if start else curl.unsetopt(pycurl.RANGE)
    curl.setopt(pycurl.WRITEFUNCTION, keep)
    curl.perform()
    status = curl.getinfo(pycurl.RESPONSE_CODE)
    if status != (206 if start else 200):
        raise Failed(f"{url} was answered {status}")


if __name__ == "__main__":
    sys.exit(main())
