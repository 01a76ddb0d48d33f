"""A gateway that is killed at work, or whose disk is full, loses nothing and lies to nobody."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import resource
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from chunker.digest import NarHash
from chunker.manifest import decode_manifest
from chunker.packs import PackStore
from chunker.rebuild import check_nar
from gateway.delivery import FULL_SECONDS
from gateway.demo_closure import CachedPath, make_closure, write_cache
from gateway.narinfo import parse
from gateway.program import Program
from gateway.signing import generate
from tests.interop.conftest import Office

ROUNDS = 50
ROUNDS_PER_STORE = 10
CLIENTS = 4
PATHS = 80
CLOSURE_BYTES = 250_000_000
KILL_SECONDS_MAX = 0.6
TOO_LARGE = 3
"""Paths of the closure that 2 MB have no room for; Nix may ask for all of them at once."""
DISK_BYTES = 20_000_000
"""A small part of what the closure needs."""
KEY = generate("crash-1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[CachedPath]]]:
    top = tmp_path_factory.mktemp("cache")
    yield top, write_cache(make_closure(7, PATHS, CLOSURE_BYTES), top, KEY)
    shutil.rmtree(top)


class Client(threading.Thread):
    """Downloads paths until the gateway is gone. `whole`: what came in whole; `wrong`: what came
    in whole and is not what was signed."""

    def __init__(self, url: str, paths: list[CachedPath]) -> None:
        super().__init__(daemon=True)
        self.whole: list[CachedPath] = []
        self.wrong: list[CachedPath] = []
        self._netloc = urlsplit(url).netloc
        self._paths = paths

    def run(self) -> None:
        for path in self._paths:
            if not self.ask(path):
                return

    def ask(self, path: CachedPath) -> bool:
        """Whether it came in whole."""
        try:
            found = download(self._netloc, path)
        except (OSError, http.client.HTTPException):
            return False
        (self.whole if found == path.nar_hash else self.wrong).append(path)
        return True


def download(netloc: str, path: CachedPath) -> NarHash:
    """SHA-256 of what the gateway serves. Raises OSError or HTTPException where it does not."""
    connection = http.client.HTTPConnection(netloc, timeout=60)
    try:
        connection.request("GET", f"/{path.store_hash}.narinfo")
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise http.client.HTTPException(f"narinfo {answer.status}")
        connection.request("GET", f"/{parse(text).url}")
        answer = connection.getresponse()
        if answer.status != 200:
            raise http.client.HTTPException(f"NAR {answer.status}")
        digest = hashlib.sha256()
        while data := answer.read(1 << 20):
            digest.update(data)
        if answer.length:
            raise http.client.IncompleteRead(b"")
        return NarHash(digest.digest())
    finally:
        connection.close()


def held(directory: Path) -> set[str]:
    """The hashes of all paths that a store holds in whole, each rebuilt and checked."""
    store = PackStore.open(directory)
    found = set()
    for record in store.records():
        encoded = store.manifest(record.manifest)
        assert encoded is not None and store.is_verified(record.manifest)
        check_nar(decode_manifest(encoded), record.needles, store)
        found.add(record.store_hash)
    assert list(store.verify()) == []
    store.close()
    return found


def test_a_busy_gateway_killed_fifty_times(
    tmp_path: Path, cache: tuple[Path, list[CachedPath]]
) -> None:
    """What was durable stays, what is there is right, and nobody was ever given a wrong NAR."""
    directory, closure = cache
    words = ["gateway", "--no-nix-conf", "--trusted-public-key", KEY.public.text,
             "--upstream", directory.as_uri()]  # fmt: skip
    before: set[str] = set()
    downloads = interrupted = 0
    for number in range(ROUNDS):
        chance = random.Random(number)
        store = tmp_path / f"store-{number // ROUNDS_PER_STORE}"
        if number % ROUNDS_PER_STORE == 0:
            before = set()
        gateway = Program.start(words, store, environment={"HOME": str(tmp_path)})
        clients = [
            Client(gateway.url, chance.sample(closure, len(closure))) for _ in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        threading.Event().wait(chance.uniform(0, KILL_SECONDS_MAX))
        interrupted += sum(client.is_alive() for client in clients)
        gateway.kill()
        for client in clients:
            client.join()
            assert client.wrong == []
            downloads += len(client.whole)
        assert gateway.process.stdout is not None
        gateway.process.stdout.close()
        now = held(store)
        assert before <= now
        before = now
    assert interrupted > ROUNDS and downloads > ROUNDS
    gateway = Program.start(words[:-2], store, environment={"HOME": str(tmp_path)})
    served = [path for path in closure if path.store_hash in before]
    netloc = urlsplit(gateway.url).netloc
    assert served and all(download(netloc, path) == path.nar_hash for path in served)
    assert gateway.stop() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with little room."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    options = f"size={DISK_BYTES},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "narswarm-disk", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_file_system_is_survived(
    tmp_path: Path, small_disk: Path, cache: tuple[Path, list[CachedPath]]
) -> None:
    """What does not fit is cut or not there, and never wrong; with room all of it comes, and what
    the store says it holds it holds."""
    directory, closure = cache
    words = ["gateway", "--no-nix-conf", "--trusted-public-key", KEY.public.text,
             "--upstream", directory.as_uri()]  # fmt: skip
    gateway = Program.start(words, small_disk, environment={"HOME": str(tmp_path)})
    client = Client(gateway.url, [])

    def ask_for_all() -> int:
        client.whole.clear()
        for path in closure:
            client.ask(path)
        assert client.wrong == []
        return len(client.whole)

    assert 0 < ask_for_all() < len(closure)
    log = gateway.log.read_text()
    assert "no room left for the store" in log and "Traceback" not in log, log
    options = f"remount,size={2 * CLOSURE_BYTES}"
    subprocess.run(["mount", "-o", options, small_disk], check=True)
    threading.Event().wait(FULL_SECONDS)
    assert ask_for_all() == len(closure)
    assert gateway.stop() == 0
    assert held(small_disk) == {path.store_hash for path in closure}


@pytest.mark.parametrize("source", ["upstream", "peer"])
def test_a_full_disk_costs_a_source_and_no_path(office: Office, source: str) -> None:
    """The gateway says so; Nix gets everything from the next cache; with room it goes on."""
    honest = f"file://{office.closure.cache}"
    if source == "peer":
        gateway = office.gateway(office.seed("seed", "gateway"))
    else:
        gateway = office.gateway(more=("--upstream", honest))
    pid = gateway.process.pid
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
    office.substitute("client", gateway.url, f"{honest}?priority=90")
    office.verify("client")
    log = gateway.log.read_text()
    assert "no room left for the store" in log and "Traceback" not in log, log
    if source == "upstream":
        assert log.count("is not stored") <= TOO_LARGE, log
    assert gateway.process.poll() is None
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    threading.Event().wait(FULL_SECONDS if source == "upstream" else 0)
    office.substitute("later", gateway.url)
    office.verify("later")
    assert gateway.status()["paths"] == len(office.closure.infos)
    assert gateway.stop() == 0
    assert len(held(gateway.store)) == len(office.closure.infos)
