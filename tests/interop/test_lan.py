"""mDNS between hosts: two network namespaces on a bridge of their own, and no addresses given."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.program import Program
from gateway.signing import generate
from tests.gateway.test_substituter import KEY, signed_path, write_cache

pytestmark = pytest.mark.netns
PREFIX = f"nsw{os.getpid() % 10000}"
SECONDS_MAX = 60


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=SECONDS_MAX)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two namespaces, 10.213.0.1 and .2, joined by a bridge in a third."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    names = [f"{PREFIX}-{n}" for n in (1, 2, 3)]
    try:
        for name in names:
            ip("netns", "add", name)
    except subprocess.CalledProcessError:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        pytest.skip("network namespaces cannot be made here")
    try:
        hub = names[2]
        ip("-n", hub, "link", "add", "br0", "type", "bridge")
        ip("-n", hub, "link", "set", "br0", "up")
        for number, name in enumerate(names[:2], 1):
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"v{number}",
               "netns", hub)  # fmt: skip
            ip("-n", hub, "link", "set", f"v{number}", "master", "br0", "up")
            ip("-n", name, "addr", "add", f"10.213.0.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "224.0.0.0/4", "dev", "eth0")
        yield names[:2]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_strangers_find_each_other_and_share_what_is_published(
    hosts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--lan open`: no address and no PeerId is configured on either side."""
    public, nar = signed_path("public")
    private, other = signed_path("private", generate("private-1"))
    write_cache(tmp_path / "cache", public, nar)
    write_cache(tmp_path / "cache", private, other)
    key = KEY.public.text
    root = Path(__file__).parents[2]
    python = sys.executable
    programs = []

    def start(host: int, *words: str) -> Program:
        monkeypatch.setattr(sys, "executable", str(wrapper(hosts[host])))
        program = Program.start(
            [*words, "--no-nix-conf", "--trusted-public-key", key, "--publish-key", key,
             "--lan", "open", "--listen", "0.0.0.0:4555"],
            tmp_path / f"host{host}", environment={"PYTHONPATH": str(root)},
        )  # fmt: skip
        programs.append(program)
        return program

    def wrapper(name: str) -> Path:
        file = tmp_path / f"python-{name}"
        file.write_text(f'#!/bin/sh\nexec ip netns exec {name} {python} "$@"\n')
        file.chmod(0o755)
        return file

    try:
        seed = start(0, "seed", f"file://{tmp_path / 'cache'}")
        # The narinfo comes from an upstream without NARs; the NAR can only come over the LAN.
        write_cache(tmp_path / "narinfos", public, b"")
        gateway = start(1, "gateway", "--upstream", f"file://{tmp_path / 'narinfos'}")
        gateway.await_peers(1)
        status = gateway.status()
        peers = status["peers"]
        assert isinstance(peers, list)
        assert peers[0]["peer_id"] == seed.status()["peer_id"]
        fetched = subprocess.run(
            ["ip", "netns", "exec", hosts[1], python, "-c", FETCH, gateway.url, public.store_hash],
            capture_output=True, check=True, timeout=SECONDS_MAX, env={"PYTHONPATH": str(root)},
        )  # fmt: skip
        assert fetched.stdout == nar
        assert gateway.status()["wire_bytes"] != 0
    finally:
        for program in programs:
            program.stop()


FETCH = """
import sys, urllib.request
url, store_hash = sys.argv[1:]
info = urllib.request.urlopen(f"{url}/{store_hash}.narinfo").read().decode()
target = next(line[5:] for line in info.splitlines() if line.startswith("URL: "))
sys.stdout.buffer.write(urllib.request.urlopen(f"{url}/{target}").read())
"""
