"""`narswarm demo`: the whole job on one machine, with the shipped program as separate processes.

    seed (CI box) ---blocks---> LAN peer ---blocks---> gateway ---HTTP---> Nix, or a checking client

A colleague's gateway asks the LAN peer for half of a synthetic closure, which warms it. Then this
machine's gateway gets everything from both; the LAN peer is killed in the middle of the largest
path; and paths that nobody or only a stranger signed are shown to be refused.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from chunker.digest import nix32_encode
from peer.identity import load_or_create

from .demo_closure import CachedPath, make_closure, write_cache
from .errors import GatewayError, NarinfoError
from .narinfo import Narinfo, fingerprint, parse
from .program import Program
from .signing import KeyRing, generate
from .terminal import megabytes, show_table

HTTP_SECONDS_MAX = 60.0
NIX_SECONDS_MAX = 300.0
READ_BYTES = 64 * 1024
SEED = 20


class DemoFailed(GatewayError):
    """Something did not go as shown; the message says what."""


def demo(*, as_json: bool, use_nix: bool) -> int:
    """Run it; print a table or one JSON object. Exit code 0 only if all went as it should."""
    began = time.monotonic()
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="narswarm-demo-")))
        result = _Demo(top, stack, quiet=as_json).run(shutil.which("nix") if use_nix else None)
    result["seconds"] = round(time.monotonic() - began, 1)
    if as_json:
        print(json.dumps(result))
    else:
        show_table("narswarm demo", [(name, _shown(name, value)) for name, value in result.items()])
    return 0 if result["ok"] else 1


def _shown(name: str, value: object) -> str:
    if name.endswith("_bytes"):
        return megabytes(value)
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return "not on this machine" if value is None else str(value)


class _Demo:
    def __init__(self, top: Path, stack: ExitStack, *, quiet: bool) -> None:
        self._top = top
        self._stack = stack
        self._quiet = quiet
        self._key = generate("demo-1")

    def run(self, nix: str | None) -> dict[str, object]:
        closure = self._make_caches()
        ids = {name: self._identity(name) for name in ("seed", "lan", "colleague", "me")}
        trust = ["--no-nix-conf", "--trusted-public-key", self._key.public.text]
        allow = [word for name in ("lan", "me") for word in ("--peer", ids[name])]
        self._say("a CI box seeds the closure")
        seed = self._start("seed", ["seed", (self._top / "cache").as_uri(), *allow, *trust])
        allow = [word for name in ("colleague", "me") for word in ("--peer", ids[name])]
        lan = self._start("lan", ["peer", "--seed", seed.address, *allow, *trust])

        self._say("a colleague's machine fetches half of it through the LAN peer")
        colleague = self._start("colleague", ["gateway", "--peer", lan.address, *trust])
        largest = max(closure, key=lambda path: path.nar_size)
        half = [largest, *[path for path in closure if path is not largest][::2]]
        for path in half:
            self._fetch(colleague.url, path)
        colleague.stop()

        strange = (self._top / "strange").as_uri()
        peers = ["--peer", lan.address, "--peer", seed.address, "--upstream", strange]
        me = self._start("me", ["gateway", *peers, *trust])
        me.await_peers(2)
        version = self._fetch_others(me, closure, largest, nix)
        self._say("the LAN peer is killed in the middle of the largest path")
        survived = self._survive(me, lan, largest)
        if nix is not None:
            self._nix_copy(nix, me.url, [largest])
        return self._result(me, closure, version, survived)

    def _result(
        self, me: Program, closure: Sequence[CachedPath], version: str | None, survived: bool
    ) -> dict[str, object]:
        status = me.status()
        blocks = {"peer": 0, "seed": 0}
        peers = status["peers"]
        assert isinstance(peers, list)
        for peer in peers:
            blocks[peer["role"]] += peer["blocks_received"]
        result: dict[str, object] = {
            "ok": False,
            "nix_version": version,
            "paths": len(closure),
            "nar_bytes": sum(path.nar_size for path in closure),
            "wire_bytes": status["wire_bytes"],
            "blocks_from_lan": blocks["peer"],
            "blocks_from_seed": blocks["seed"],
            "survived_peer_loss": survived,
            "refused_unsigned": self._refuses(me.url, "unsigned"),
            "refused_untrusted": self._refuses(me.url, "untrusted"),
        }
        result["ok"] = all(
            (survived, result["refused_unsigned"], result["refused_untrusted"], *blocks.values())
        )
        return result

    # -- steps -------------------------------------------------------------------------------

    def _make_caches(self) -> list[CachedPath]:
        self._say("making a closure and keys")
        closure = write_cache(make_closure(SEED), self._top / "cache", self._key)
        self._strange: dict[str, str] = {}
        stranger = generate("stranger-1")
        cache = self._top / "strange"
        strange = write_cache(make_closure(SEED + 1, 2, 200_000), cache, stranger)
        for name, path in zip(("unsigned", "untrusted"), strange, strict=True):
            self._strange[name] = path.store_hash
        file = cache / f"{strange[0].store_hash}.narinfo"
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if not line.startswith("Sig:")))
        return closure

    def _identity(self, name: str) -> str:
        (self._top / name).mkdir(mode=0o700)
        return load_or_create(self._top / name / "identity").peer_id

    def _start(self, name: str, words: Sequence[str]) -> Program:
        program = Program.start(words, self._top / name)
        self._stack.callback(program.stop)
        return program

    def _fetch_others(
        self, me: Program, closure: Sequence[CachedPath], largest: CachedPath, nix: str | None
    ) -> str | None:
        users = {largest.store_path}
        for path in closure:  # references come first
            if users.intersection(path.references):
                users.add(path.store_path)
        version = None
        if nix is not None:
            version = subprocess.check_output([nix, "--version"], text=True).split()[-1]
            self._say(f"Nix {version} copies the closure from the gateway")
            self._nix_copy(nix, me.url, [p for p in closure if p.store_path not in users])
        else:
            self._say("a client that checks what Nix would check fetches the closure")
        for path in closure:
            if path is not largest:
                self._fetch(me.url, path)
        return version

    def _survive(self, me: Program, lan: Program, path: CachedPath) -> bool:
        info = self._narinfo(me.url, path.store_hash)
        digest = hashlib.sha256()
        with _open(f"{me.url}/{info.url}") as answer:
            digest.update(answer.read(READ_BYTES))
            lan.kill()
            under_way = path.store_path in _strings(me.status()["fetching"])
            while data := answer.read(READ_BYTES):
                digest.update(data)
        return under_way and digest.digest() == path.nar_hash

    def _refuses(self, url: str, kind: str) -> bool:
        try:
            _open(f"{url}/{self._strange[kind]}.narinfo").close()
        except urllib.error.HTTPError as error:
            return error.code == 404
        return False

    # -- a client that checks what Nix would check ---------------------------------------------

    def _narinfo(self, url: str, store_hash: str) -> Narinfo:
        try:
            with _open(f"{url}/{store_hash}.narinfo") as answer:
                info = parse(answer.read())
        except (urllib.error.HTTPError, NarinfoError) as error:
            raise DemoFailed(f"no narinfo for {store_hash}: {error}") from error
        text = fingerprint(info.store_path, info.nar_hash, info.nar_size, info.references)
        if not KeyRing((self._key.public,)).verified(text, info.signatures):
            raise DemoFailed(f"{info.store_path} has no signature by {self._key.public.name}")
        return info

    def _fetch(self, url: str, path: CachedPath) -> None:
        info = self._narinfo(url, path.store_hash)
        digest, size = hashlib.sha256(), 0
        try:
            with _open(f"{url}/{info.url}") as answer:
                while data := answer.read(READ_BYTES):
                    digest.update(data)
                    size += len(data)
        except urllib.error.HTTPError as error:
            raise DemoFailed(f"{info.store_path}: {error}") from error
        if digest.digest() != path.nar_hash or size != path.nar_size:
            raise DemoFailed(
                f"{info.store_path}: got {size} bytes with hash {nix32_encode(digest.digest())}"
            )

    def _nix_copy(self, nix: str, url: str, paths: Sequence[CachedPath]) -> None:
        home = self._top / "nix-home"
        home.mkdir(exist_ok=True)
        settings = (
            "experimental-features = nix-command flakes\nsandbox = false\nbuild-users-group =\n"
            f"substituters =\ntrusted-public-keys = {self._key.public.text}\n"
        )
        environment = {**os.environ, "HOME": str(home), "NIX_CONFIG": settings}
        root = str(self._top / "nix-root")
        names = [path.store_path for path in paths]
        for words in (
            ["copy", "--from", url, "--to", root, *names],
            ["store", "verify", "--store", root, "--recursive", *names],
        ):
            done = subprocess.run(
                [nix, *words], env=environment, capture_output=True, text=True,
                timeout=NIX_SECONDS_MAX, check=False,
            )  # fmt: skip
            if done.returncode:
                raise DemoFailed(f"nix {words[0]} failed: {done.stderr[-2000:]}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(f"* {text}", flush=True)


def _open(url: str) -> http.client.HTTPResponse:
    assert url.startswith("http://127.0.0.1:")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answer: http.client.HTTPResponse = direct.open(url, timeout=HTTP_SECONDS_MAX)
    return answer


def _strings(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
