"""mDNS between hosts: two network namespaces on a bridge of their own, and no addresses given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hosts import Host, Link
from gateway.program import Program
from gateway.signing import generate
from tests.gateway.test_substituter import KEY, signed_path, write_cache
from tests.hosts import hosts_or_skip

pytestmark = pytest.mark.netns
SECONDS_MAX = 60


@pytest.fixture
def two_hosts() -> Iterator[tuple[Host, ...]]:
    with hosts_or_skip([Link(), Link()]) as made:
        yield made


def test_strangers_find_each_other_and_share_what_is_published(
    two_hosts: tuple[Host, ...], tmp_path: Path
) -> None:
    """`--lan open`: no address and no PeerId is configured on either side."""
    public, nar = signed_path("public")
    private, other = signed_path("private", generate("private-1"))
    write_cache(tmp_path / "cache", public, nar)
    write_cache(tmp_path / "cache", private, other)
    key = KEY.public.text
    root = Path(__file__).parents[2]
    programs = []

    def start(host: int, *words: str) -> Program:
        program = Program.start(
            [*words, "--no-nix-conf", "--trusted-public-key", key, "--publish-key", key,
             "--lan", "open", "--listen", "0.0.0.0:4555"],
            tmp_path / f"host{host}", within=two_hosts[host].within,
            environment={"PYTHONPATH": str(root)},
        )  # fmt: skip
        programs.append(program)
        return program

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
            [*two_hosts[1].within, sys.executable, "-c", FETCH, gateway.url, public.store_hash],
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
