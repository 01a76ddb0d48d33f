"""Eight binary caches that nobody should have in a list, for tests and benchmarks.

| kind      | its narinfos                             | its NARs                                |
|-----------|------------------------------------------|-----------------------------------------|
| hangs     | no answer                                | no answer                               |
| down      | nobody listens                           | nobody listens                          |
| truncated | right                                    | the first half, as if it were the whole |
| redirects | right; a public name, behind a proxy     | a redirect to an address of this host   |
| unsigned  | another NarHash and no signature, fast   | other bytes                             |
| foreign   | the same, signed by a key nobody trusts  | other bytes                             |
| errors    | 500, or 404 for every other path         | 500                                     |
| slow      | right, after SLOW_SECONDS                | right, by drips                         |

    python -m benchmarks.bad_caches DIRECTORY ADDRESS DIRECT

serves so what is in DIRECTORY, a file:// cache: it prints one JSON object (options, environment),
and when its stdin ends another one, how often each kind was asked.
"""

from __future__ import annotations

import http.server
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from gateway.narinfo import fingerprint, parse
from gateway.signing import generate

KINDS = ("hangs", "down", "truncated", "redirects", "unsigned", "foreign", "errors", "slow")
PUBLIC_NAME = "cache.example.com"
SLOW_SECONDS = 1.0
DRIP_BYTES, DRIP_SECONDS = 16 * 1024, 0.25
OTHER_HASH = "1" * 52


class BadCaches:
    """All of them at `address`; `with` runs them. `urls` are by kind; a gateway that is to see the
    one with the public name needs `environment`."""

    def __init__(self, directory: Path, address: str = "127.0.0.1", direct: str = "") -> None:
        """`direct`: a host that is reached without the proxy, too."""
        self.directory = directory
        self.asked: Counter[str] = Counter()
        """By "KIND narinfo" and "KIND nar", and "private" for what a redirect led to."""
        self.released = threading.Event()
        self.key = generate("foreign-1")
        servers = {
            kind: _Server(self, kind, address) for kind in (*KINDS, "private") if kind != "down"
        }
        self._servers = tuple(servers.values())
        self._stack = ExitStack()
        self.urls = {kind: server.url for kind, server in servers.items() if kind != "private"}
        self.urls["down"] = f"http://{address}:{_unused_port(address)}"
        self.environment = {
            "http_proxy": self.urls["redirects"],
            "no_proxy": ",".join(filter(None, (address, direct))),
        }
        self.urls["redirects"] = f"http://{PUBLIC_NAME}"
        self.private_url = servers["private"].url

    @property
    def options(self) -> list[str]:
        """For a gateway: all are its upstreams."""
        return [word for kind in KINDS for word in ("--upstream", self.urls[kind])]

    def __enter__(self) -> BadCaches:
        for server in self._servers:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            self._stack.callback(thread.join)
            self._stack.callback(server.server_close)
            self._stack.callback(server.shutdown)
        self._stack.callback(self.released.set)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def _unused_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, caches: BadCaches, kind: str, address: str) -> None:
        super().__init__((address, 0), _Handler)
        self.caches = caches
        self.kind = kind
        self.url = f"http://{address}:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Gateways that go away are what this is about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        caches, kind = self.server.caches, self.server.kind
        target = self.path.removeprefix(f"http://{PUBLIC_NAME}").lstrip("/")
        is_nar = target.startswith("nar/")
        caches.asked[
            "private" if kind == "private" else f"{kind} {'nar' if is_nar else 'narinfo'}"
        ] += 1
        file = caches.directory / target
        body = file.read_bytes() if file.is_file() else None
        if kind == "hangs":
            caches.released.wait()
            self.close_connection = True
        elif kind == "redirects" and is_nar:
            self._answer(302, b"", f"{caches.private_url}/{target}")
        elif kind == "errors":
            self._answer(500 if is_nar or ord(target[0]) % 2 else 404, b"")
        elif body is None:
            self._answer(404, b"")
        elif kind in ("unsigned", "foreign"):
            self._answer(200, body[::-1] if is_nar else self._other(body))
        elif kind == "slow":
            self._drip(body, is_nar)
        else:
            self._answer(200, body[: len(body) // 2] if kind == "truncated" and is_nar else body)

    def _other(self, narinfo: bytes) -> bytes:
        """The same path with another NarHash, by nobody or by the wrong one."""
        text = re.sub(rb"(?m)^(NarHash: sha256:).*$", rb"\g<1>" + OTHER_HASH.encode(), narinfo)
        text = re.sub(rb"(?m)^Sig: .*\n", b"", text)
        if self.server.kind == "unsigned":
            return text
        info = parse(text)
        said = fingerprint(info.store_path, info.nar_hash, info.nar_size, info.references)
        return text + f"Sig: {self.server.caches.key.sign(said)}\n".encode()

    def _drip(self, body: bytes, is_nar: bool) -> None:
        if not is_nar:
            time.sleep(SLOW_SECONDS)
            self._answer(200, body)
            return
        self._head(200, len(body))
        for at in range(0, len(body), DRIP_BYTES):
            self.wfile.write(body[at : at + DRIP_BYTES])
            if self.server.caches.released.wait(DRIP_SECONDS):
                break

    def _answer(self, status: int, body: bytes, location: str = "") -> None:
        self._head(status, len(body), location)
        self.wfile.write(body)

    def _head(self, status: int, length: int, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if location:
            self.send_header("Location", location)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main() -> int:
    directory, address, direct = sys.argv[1:]
    with BadCaches(Path(directory), address, direct) as caches:
        print(
            json.dumps({"options": caches.options, "environment": caches.environment}), flush=True
        )
        sys.stdin.read()
        print(json.dumps(caches.asked))
    return 0


if __name__ == "__main__":
    sys.exit(main())
