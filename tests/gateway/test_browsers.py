"""DNS rebinding: what a browser's page can send, and what one real browser can read.

| who asks                                   | how it is told                       | answer |
|--------------------------------------------|--------------------------------------|--------|
| Nix, curl                                  | our Host, none of what follows       | 200    |
| a page of evil.example, bound to 127.0.0.1 | its own name in Host                 | 403    |
| a page elsewhere that names 127.0.0.1      | Origin; without one: Sec-Fetch-Site  | 403    |
| a person who types the address             | Sec-Fetch-Site: none                 | 200    |

A Referer decides nothing: a page can leave it out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio

from gateway.requests import Request
from gateway.responses import Response
from gateway.server import serve

SECRET = b"what-nix-may-know"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
BROWSER_SECONDS_MAX = 60


async def answer(request: Request) -> Response:
    return Response(200, (("Content-Type", "text/plain"),), SECRET, len(SECRET))


async def status_of(port: int, method: str, *headers: str) -> int:
    """Of one request; a browser's page may read nothing, whatever it is."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        lines = [f"{method} /nix-cache-info HTTP/1.1", *headers, "Connection: close"]
        await stream.send_all(("\r\n".join(lines) + "\r\n\r\n").encode())
        data = b"".join([bytes(part) async for part in stream])
    assert b"access-control" not in data.lower()
    status = int(data.split()[1])
    assert (SECRET in data) == (status == 200 and method == "GET")
    return status


HOSTS = {
    "127.0.0.1:{port}": True,
    "localhost:{port}": True,
    "LOCALHOST:{port}": True,
    "[::1]:{port}": True,
    "127.0.0.1": True,
    "evil.example:{port}": False,
    "evil.example": False,
    "127.0.0.1.evil.example:{port}": False,
    "localhost.evil.example:{port}": False,
    "evil.example#localhost:{port}": False,
    "localhost:{port}@evil.example": False,
    "localhost,evil.example": False,
    "127.0.0.1:1": False,
    "127.1:{port}": False,
    "2130706433:{port}": False,
    "0.0.0.0:{port}": False,
    "localhost.:{port}": False,
    "": False,
}
MORE = {
    (): True,
    ("Origin: http://evil.example",): False,
    ("Origin: http://127.0.0.1:{port}",): False,
    ("Origin: null",): False,
    ("Origin: ",): False,
    ("oRIGIN: http://evil.example",): False,
    ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"): False,
    ("Sec-Fetch-Site: same-site",): False,
    ("Sec-Fetch-Site: same-origin",): False,
    ("Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"): True,
    ("Referer: http://evil.example/",): True,
    ("Host: 127.0.0.1:{port}",): False,
    ("Access-Control-Request-Method: PUT", "Access-Control-Request-Private-Network: true"): True,
}  # a Host here is a second one
METHODS = {"GET": 200, "HEAD": 200, "PUT": 405, "POST": 405, "DELETE": 405, "OPTIONS": 405}


async def test_the_matrix_of_headers() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    names = ("127.0.0.1", "localhost", "[::1]")
    hosts = frozenset({*names, *(f"{name}:{port}" for name in names)})
    stopping, wrong, tried = trio.Event(), [], 0

    async def run() -> None:
        await serve(listeners, answer, allowed_hosts=hosts, stopping=stopping)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for host, ours in HOSTS.items():
            for more, harmless in MORE.items():
                for method, status in METHODS.items():
                    lines = [line.format(port=port) for line in (f"Host: {host}", *more)]
                    found, tried = await status_of(port, method, *lines), tried + 1
                    refused = 400 if any("Host" in line for line in lines[1:]) else 403
                    expected = status if ours and harmless else refused
                    if found != expected:
                        wrong.append((method, lines, found, expected))
        stopping.set()
    assert not wrong and tried == len(HOSTS) * len(MORE) * len(METHODS)


PAGE = """<!doctype html><title>waiting</title><body><script>
const said = [];
async function attempt(name, url, options) {
  try {
    const answer = await fetch(url, options);
    said.push(name + "=" + answer.type + ":" + answer.status + ":" + await answer.text());
  } catch (error) { said.push(name + "=failed"); }
}
const gateway = GATEWAY;
(async () => {
  for (const host of ["127.0.0.1", "localhost", "rebound.example"]) {
    const url = "http://" + host + ":" + gateway + "/nix-cache-info";
    await attempt(host, url, {});
    await attempt(host + "-no-cors", url, {mode: "no-cors"});
    await attempt(host + "-put", url, {method: "PUT", body: "x"});
    await new Promise((done) => {
      const script = document.createElement("img");
      script.onload = () => { said.push(host + "-img=loaded"); done(); };
      script.onerror = () => { said.push(host + "-img=failed"); done(); };
      script.src = url;
      document.body.append(script);
    });
  }
  document.body.textContent = "done " + said.join(" | ");
})();
</script>"""


class Evil(BaseHTTPRequestHandler):
    """The attacker's page, at a name of its own."""

    gateway = 0

    def do_GET(self) -> None:
        page = PAGE.replace("GATEWAY", str(self.gateway)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def evil_page(gateway: int) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("", (Evil,), {"gateway": gateway}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def browse(url: str, profile: Path) -> str:
    """What the page holds when its scripts are done."""
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--no-proxy-server", f"--user-data-dir={profile}",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--host-resolver-rules=MAP * 127.0.0.1", "--virtual-time-budget=20000", "--dump-dom", url],
        env={**os.environ, "HOME": str(profile)}, capture_output=True, text=True, check=False,
        timeout=BROWSER_SECONDS_MAX,
    )  # fmt: skip
    assert "<body" in done.stdout, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here (and in CI none, on purpose:"
                    " 400 MB for one test; the matrix above runs everywhere)")  # fmt: skip
async def test_a_real_browsers_page_reads_nothing(tmp_path: Path) -> None:
    """Rebinding is what the resolver rule is: evil.example and rebound.example are 127.0.0.1."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    names = ("127.0.0.1", "localhost")
    hosts = frozenset({*names, *(f"{name}:{port}" for name in names)})
    stopping = trio.Event()
    reached: list[str] = []

    async def told(request: Request) -> Response:
        reached.append(request.target)
        return await answer(request)

    async def run() -> None:
        await serve(listeners, told, allowed_hosts=hosts, stopping=stopping)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with evil_page(port) as evil:
            page = await trio.to_thread.run_sync(
                browse, f"http://evil.example:{evil}/", tmp_path / "profile"
            )
            # The gateway's own port under the attacker's name: the page that rebinding makes.
            rebound = await trio.to_thread.run_sync(
                browse, f"http://rebound.example:{port}/nix-cache-info", tmp_path / "other"
            )
        typed = await trio.to_thread.run_sync(
            browse, f"http://127.0.0.1:{port}/nix-cache-info", tmp_path / "third"
        )
        stopping.set()
    said = re.findall(r"(\S+)=(\S+)", page.partition("<body>done ")[2])
    assert len(said) == 12, page
    assert SECRET.decode() not in page and not any("200" in result for _, result in said)
    assert SECRET.decode() not in rebound
    assert SECRET.decode() in typed, "the browser reached it at all"
    assert "/nix-cache-info" in reached
    assert reached.count("/nix-cache-info") == 1, "no page's request came to the handler"
