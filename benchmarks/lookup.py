"""How long it takes to know where paths are: the gateway beside curl and nginx in the same run.

missing   curl asks two caches for every path; then the same curl asks a gateway, which must ask
          both of them; on loopback, and with 20 ms of round trip to the caches
held      what the gateway has learnt is asked for again, with as many connections as Nix has
nobody    one question after the other in an office of nine, for what no member has
requests  answers a second for narinfos that are known, beside nginx with the same files (`wrk`)
"""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.narinfos import Caches, curl_seconds, write
from gateway.program import Program
from gateway.signing import PublicKey, generate
from peer.identity import load_or_create

PATHS = PATHS_NAMED = 10_000
"""Looked up, and what the figures name: a test looks up fewer."""
ROUNDS = 5
CURL_PARALLEL = 256
NIX_CONNECTIONS = 25
HALF_ROUND_TRIP_SECONDS = 0.010
MEMBERS = 8
QUESTIONS = 400
WRK_SECONDS = 3
CONNECTIONS = (1, 32)

MEANING = {
    "missing_10k_seconds": "10,000 paths looked up at two caches over HTTP/2, each awaited, parsed "
    "and verified; half are nowhere",
    "curl_10k_seconds": "curl asks both caches for the same paths and throws the answers away",
    "missing_ratio": "ours over curl; the floor is 1.0",
    "missing_http_10k_seconds": "curl asks a gateway for them, which must ask both caches",
    "missing_ratio_20ms": "the same with 20 ms of round trip to the caches; the floor is 1.2",
    "held_10k_seconds": "10,000 narinfos that the gateway knows, 25 connections; the floor is 1.0",
    "nobody_extra_p50_ms": "a path that none of 8 members has: beyond the cache's own answer, "
    "median; the floor is 2.0",
    "requests_per_second_1": "known narinfos a second over 1 connection",
    "requests_per_second_32": "known narinfos a second over 32 connections",
    "nginx_requests_per_second_1": "nginx with the same narinfos, 1 connection",
    "nginx_requests_per_second_32": "nginx with the same narinfos, 32 connections",
    "requests_ratio_1": "gateway over nginx, 1 connection; the floor is 0.6",
    "requests_ratio_32": "gateway over nginx, 32 connections; the floor is 0.6",
}


def run() -> dict[str, float | None]:
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="narswarm-bench-")))
        key = generate("bench-1")
        caches = write(top / "caches", key, PATHS, stack)
        words = ["--no-nix-conf", "--trusted-public-key", key.public.text]
        figures = missing(caches, top, key.public, words, delayed=False)
        figures |= missing(caches, top, key.public, words, delayed=True)
        figures |= known(caches, top, words)
        figures["nobody_extra_p50_ms"] = nobody_extra(caches, top, words)
    return {name: figures.get(name) for name in MEANING}


def missing(
    caches: Caches, top: Path, key: PublicKey, words: Sequence[str], *, delayed: bool
) -> dict[str, float | None]:
    """Both in turn, a new process each time; medians."""
    with ExitStack() as stack:
        ports: Sequence[int] = caches.ports[:2]
        if delayed:
            ports = _delay(ports, stack)
        urls = [f"https://127.0.0.1:{port}" for port in ports]
        ours, theirs, asked = [], [], []
        for number in range(ROUNDS):
            theirs.append(curl_seconds(caches, urls, caches.names, parallel=CURL_PARALLEL))
            ours.append(_awaited(caches, top, key, urls))
            if not delayed:
                program = _gateway(caches, top / f"missing-{number}", urls, words)
                try:
                    asked.append(_ask(caches, program, caches.names, CURL_PARALLEL))
                finally:
                    program.stop()
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    if delayed:
        return {"missing_ratio_20ms": round(ratio, 2)}
    scale = PATHS_NAMED / len(caches.names)
    return {
        "missing_10k_seconds": round(statistics.median(ours) * scale, 3),
        "curl_10k_seconds": round(statistics.median(theirs) * scale, 3),
        "missing_ratio": round(ratio, 2),
        "missing_http_10k_seconds": round(statistics.median(asked) * scale, 3),
    }


def _awaited(caches: Caches, top: Path, key: PublicKey, urls: Sequence[str]) -> float:
    names = top / "names"
    names.write_text("\n".join(caches.names))
    command = [sys.executable, "-m", "benchmarks.awaited", *urls, str(caches.certificate), key.text,
               str(names), str(CURL_PARALLEL)]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(said[1]) == len(caches.there)
    return float(said[0])


def known(caches: Caches, top: Path, words: Sequence[str]) -> dict[str, float | None]:
    """A gateway that learnt all paths that are there, asked again."""
    urls = [f"http://127.0.0.1:{caches.ports[2]}"]
    program = _gateway(caches, top / "known", urls, words)
    figures: dict[str, float | None] = {}
    try:
        names = caches.there
        _ask(caches, program, names, NIX_CONNECTIONS)
        took = [_ask(caches, program, [*names, *names], NIX_CONNECTIONS) for _ in range(ROUNDS)]
        figures["held_10k_seconds"] = round(
            statistics.median(took) * PATHS_NAMED / (2 * len(names)), 3
        )
        if shutil.which("wrk"):
            for connections in CONNECTIONS:
                ours = _requests_per_second(top, program.url, names, connections)
                theirs = _requests_per_second(top, urls[0], names, connections)
                figures[f"requests_per_second_{connections}"] = round(ours)
                figures[f"nginx_requests_per_second_{connections}"] = round(theirs)
                figures[f"requests_ratio_{connections}"] = round(ours / theirs, 2)
    finally:
        program.stop()
    return figures


def nobody_extra(caches: Caches, top: Path, words: Sequence[str]) -> float:
    """Milliseconds, median, each path asked for once of the cache and once through the gateway."""
    url = f"https://127.0.0.1:{caches.ports[0]}"
    store = top / "asker"
    store.mkdir(mode=0o700)
    me = load_or_create(store / "identity").peer_id
    with ExitStack() as stack:
        members = []
        for number in range(MEMBERS):
            member = Program.start(["gateway", *words, "--peer", me], top / f"member-{number}")
            stack.callback(member.stop)
            members.append(member)
        named = [word for member in members for word in ("--peer", member.address)]
        asker = _gateway(caches, store, [url], [*words, *named])
        stack.callback(asker.stop)
        asker.await_peers(MEMBERS)
        context = ssl.create_default_context(cafile=str(caches.certificate))
        port = caches.ports[0]
        direct = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
        through = http.client.HTTPConnection(urlsplit(asker.url).netloc, timeout=60)
        extra = [_one(through, name) - _one(direct, name) for name in caches.names[:QUESTIONS]]
        direct.close()
        through.close()
    return round(statistics.median(extra) * 1000, 2)


def _one(connection: http.client.HTTPConnection, name: str) -> float:
    began = time.perf_counter()
    connection.request("GET", f"/{name}.narinfo")
    connection.getresponse().read()
    return time.perf_counter() - began


def _gateway(caches: Caches, store: Path, urls: Sequence[str], words: Sequence[str]) -> Program:
    settings = store.with_suffix(".toml")
    settings.write_text(f'upstreams = {json.dumps(urls)}\ntls_roots = "{caches.certificate}"\n')
    return Program.start(["gateway", "--config", str(settings), *words], store)


def _ask(caches: Caches, program: Program, names: Sequence[str], parallel: int) -> float:
    return curl_seconds(caches, [program.url], names, parallel=parallel)


def _requests_per_second(top: Path, url: str, names: Sequence[str], connections: int) -> float:
    script = top / "names.lua"
    listed = ", ".join(f'"/{name}.narinfo"' for name in names)
    script.write_text(
        f"local names = {{ {listed} }}\nlocal next = 0\nrequest = function()\n"
        "  next = next % #names + 1\n  return wrk.format('GET', names[next])\nend\n"
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{WRK_SECONDS}s", "-s", str(script), url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in said and "Socket errors" not in said, said
    return next(float(line.split()[1]) for line in said.splitlines() if "Requests/sec" in line)


def _delay(ports: Sequence[int], stack: ExitStack) -> list[int]:
    """The ports of relays to `ports`, until `stack` ends."""
    command = [sys.executable, "-m", "benchmarks.delay", str(HALF_ROUND_TRIP_SECONDS)]
    relays = stack.enter_context(
        subprocess.Popen([*command, *map(str, ports)], stdout=subprocess.PIPE, text=True)
    )
    stack.callback(relays.terminate)
    assert relays.stdout is not None
    return [int(word) for word in relays.stdout.readline().split()]
