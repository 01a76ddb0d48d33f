"""python -m tests.interop.dying DIRECTORY: an upstream that stands still in mid-body.

It prints its URL, and "held" once BEFORE_BYTES of a NAR above twice that are sent; the rest never
comes. Whoever started it ends it as a crash would.
"""

from __future__ import annotations

import http.server
import os
import sys
import threading
from pathlib import Path

BEFORE_BYTES = 1_500_000


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        file = Path(sys.argv[1]) / self.path.lstrip("/")
        body = file.read_bytes() if file.is_file() else b""
        self.send_response(200 if file.is_file() else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path.startswith("/nar/") and len(body) > 2 * BEFORE_BYTES:
            self.wfile.write(body[:BEFORE_BYTES])
            self.wfile.flush()
            # In one write, for Nix may hold several such NARs at once.
            os.write(sys.stdout.fileno(), b"held\n")
            threading.Event().wait()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
