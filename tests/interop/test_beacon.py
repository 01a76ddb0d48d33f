"""The beacon between hosts: namespaces on a bridge that passes broadcasts and no multicast."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.program import Program
from gateway.signing import generate

pytestmark = pytest.mark.netns
PREFIX = f"nsb{os.getpid() % 10000}"
SECONDS_MAX = 60
MEET_SECONDS_MAX = 20


def run(*words: str) -> str:
    done = subprocess.run(words, check=True, capture_output=True, timeout=SECONDS_MAX, text=True)
    return done.stdout


class Link:
    """`hosts` are namespaces; `hub` holds the bridge between them."""

    def __init__(self, count: int) -> None:
        self.hub = f"{PREFIX}-hub"
        self.hosts = [f"{PREFIX}-{number}" for number in range(1, count + 1)]

    def make(self) -> None:
        for name in (self.hub, *self.hosts):
            run("ip", "netns", "add", name)
        run("ip", "-n", self.hub, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.hub, "link", "set", "br0", "up")
        for number, name in enumerate(self.hosts, 1):
            run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name",
                f"v{number}", "netns", self.hub)  # fmt: skip
            run("ip", "-n", self.hub, "link", "set", f"v{number}", "master", "br0", "up")
            # As many access points do: mDNS does not get through, broadcasts do.
            run("ip", "netns", "exec", self.hub, "bridge", "link", "set", "dev", f"v{number}",
                "mcast_flood", "off")  # fmt: skip
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            self.move(number, f"10.214.0.{number}")

    def move(self, number: int, address: str) -> None:
        """Give a host another address instead of those it has."""
        name = self.hosts[number - 1]
        run("ip", "-n", name, "addr", "flush", "dev", "eth0", "scope", "global")
        run("ip", "-n", name, "addr", "add", f"{address}/24", "broadcast", "+", "dev", "eth0")
        run("ip", "-n", name, "route", "replace", "224.0.0.0/4", "dev", "eth0")

    def remove(self) -> None:
        for name in (self.hub, *self.hosts):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.fixture
def link() -> Iterator[Link]:
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("bridge") is None:
        pytest.skip("needs root and iproute2")
    link = Link(3)
    try:
        try:
            link.make()
        except subprocess.CalledProcessError:
            pytest.skip("network namespaces cannot be made here")
        yield link
    finally:
        link.remove()


Start = Callable[..., Program]


@pytest.fixture
def start(link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    programs: list[Program] = []
    python, key = sys.executable, generate("test-1").public.text

    def start_on(number: int, *words: str) -> Program:
        """`narswarm gateway` on that host; the same store whenever it is started there again."""
        file = tmp_path / f"python-{number}"
        file.write_text(f'#!/bin/sh\nexec ip netns exec {link.hosts[number - 1]} {python} "$@"\n')
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))
        program = Program.start(
            ["gateway", "--no-nix-conf", "--trusted-public-key", key, "--listen", "0.0.0.0:4555",
             *words],
            tmp_path / f"host{number}",
            environment={"PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        programs.append(program)
        return program

    try:
        yield start_on
    finally:
        for program in programs:
            program.stop()


def links(program: Program) -> list[str]:
    """The addresses of those it is connected with."""
    peers = program.status()["peers"]
    assert isinstance(peers, list)
    return [peer["host"] for peer in peers if peer["connected"]]


def await_links(program: Program, wanted: list[str]) -> None:
    deadline = time.monotonic() + MEET_SECONDS_MAX
    while links(program) != wanted:
        assert time.monotonic() < deadline, (links(program), program.log.read_text()[-2000:])
        time.sleep(0.1)


def test_strangers_find_each_other_where_mdns_is_filtered(start: Start) -> None:
    one, two = start(1, "--lan", "open"), start(2, "--lan", "open")
    await_links(one, ["10.214.0.2"])
    await_links(two, ["10.214.0.1"])


def test_a_peer_that_vanished_and_comes_back_elsewhere_is_found_again(
    link: Link, start: Start
) -> None:
    """Nothing said goodbye: the power went, and the next address came from the router."""
    one, two = start(1, "--lan", "open"), start(2, "--lan", "open")
    await_links(one, ["10.214.0.2"])
    two.kill()
    link.move(2, "10.214.0.77")
    two = start(2, "--lan", "open")
    await_links(one, ["10.214.0.77"])
    await_links(two, ["10.214.0.1"])


def test_a_running_peer_that_gets_another_address_is_found_again(link: Link, start: Start) -> None:
    one, two = start(1, "--lan", "open"), start(2, "--lan", "open")
    await_links(one, ["10.214.0.2"])
    link.move(2, "10.214.0.78")
    await_links(one, ["10.214.0.78"])
    await_links(two, ["10.214.0.1"])


def test_with_the_lan_off_nothing_is_said(start: Start) -> None:
    one, two, three = start(1), start(2, "--lan", "open"), start(3, "--lan", "open")
    await_links(two, ["10.214.0.3"])
    await_links(three, ["10.214.0.2"])
    assert links(one) == []
