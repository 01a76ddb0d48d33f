"""Hosts that are not there: network namespaces on one bridge, each behind a link with a rate.

    host 1 eth0 ==veth== v1 \\
    host 2 eth0 ==veth== v2  bridge br0, in a namespace of its own
    host 3 eth0 ==veth== v3 /

A link's rate holds in both directions: a token bucket (tbf) on eth0 limits what a host sends, one
on the bridge's end what it receives.

A veth passes segments of 64 KiB on in one piece, and a full queue would drop them so. On a link
that many connections share this starves some of them for minutes, so a shared one takes no larger
pieces than it carries in a millisecond, as TCP itself aims at (tcp_tso_autosize). The others take
what they carry in 2.5, because each piece costs the processors that are measured.

Nothing of this is visible in the machine's own namespace, and names begin with the process id, so
that several runs do not meet. When `hosts` ends, whatever still runs in the namespaces is killed by
its process id, and the namespaces are deleted.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

NETWORK = "10.213.0"
HOSTS_MAX = 250
CONGESTION_CONTROL = "cubic"
"""What Linux has unless somebody chose another; the kernel of this machine may."""
COMMAND_SECONDS_MAX = 30.0
BURST_BYTES = 128 * 1024
QUEUE_MILLISECONDS = 50
"""A packet that would wait longer in a full link is dropped, which is what slows TCP down."""
FRAME_BYTES, PIECE_BYTES_MAX = 1514, 65536
PIECES_PER_SECOND, SHARED_PIECES_PER_SECOND = 400, 1000

_runs = count()


class NoHosts(Exception):
    """Namespaces cannot be made here; says why."""


@dataclass(frozen=True, slots=True)
class Link:
    """None is as fast as the machine; `shared` is for one that many hosts reach the same host
    over."""

    rate_bits: int | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """`namespace` is its name for `ip netns`."""

    namespace: str
    address: str

    @property
    def within(self) -> tuple[str, ...]:
        """What goes before a command that is to run on this host."""
        return ("ip", "netns", "exec", self.namespace)


@contextmanager
def hosts(links: Sequence[Link]) -> Iterator[tuple[Host, ...]]:
    """One host for each link. Raises NoHosts."""
    assert 0 < len(links) <= HOSTS_MAX
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        raise NoHosts("network namespaces need root and iproute2")
    prefix = f"nsw{os.getpid()}-{next(_runs)}"
    hub = f"{prefix}-hub"
    made = [
        Host(f"{prefix}-{number}", f"{NETWORK}.{number}") for number in range(1, len(links) + 1)
    ]
    names = [hub, *(host.namespace for host in made)]
    try:
        try:
            for name in names:
                _run("ip", "netns", "add", name)
            _run("ip", "-n", hub, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
            _run("ip", "-n", hub, "link", "set", "br0", "up")
            for number, (host, link) in enumerate(zip(made, links, strict=True), 1):
                _connect(host, hub, f"v{number}", link)
        except subprocess.CalledProcessError as error:
            raise NoHosts(f"{' '.join(error.cmd)}: {error.stderr.decode().strip()}") from error
        yield tuple(made)
    finally:
        for name in names:
            _delete(name)


def _connect(host: Host, hub: str, port: str, link: Link) -> None:
    name = host.namespace
    ip = ("ip", "-n", name)
    _run(*ip, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", hub)
    _run("ip", "-n", hub, "link", "set", port, "master", "br0", "up")
    _run(*ip, "addr", "add", f"{host.address}/24", "brd", "+", "dev", "eth0")
    for device in ("eth0", "lo"):
        _run(*ip, "link", "set", device, "up")
    _run(*ip, "route", "replace", f"{NETWORK}.0/24", "dev", "eth0", "src", host.address,
         "congctl", CONGESTION_CONTROL)  # fmt: skip
    _run(*ip, "route", "add", "224.0.0.0/4", "dev", "eth0")
    if link.rate_bits is not None:
        pieces = SHARED_PIECES_PER_SECOND if link.shared else PIECES_PER_SECOND
        piece = min(max(link.rate_bits // 8 // pieces, FRAME_BYTES), PIECE_BYTES_MAX)
        for namespace, device in ((name, "eth0"), (hub, port)):
            _run("ip", "-n", namespace, "link", "set", device, "gso_max_size", str(piece))
            _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf",
                 "rate", f"{link.rate_bits}bit", "burst", f"{BURST_BYTES}b",
                 "latency", f"{QUEUE_MILLISECONDS}ms")  # fmt: skip


def sent_bytes(host: Host) -> int:
    """What left the host since it was made, frames with their headers."""
    shown = _run(*host.within, "cat", "/sys/class/net/eth0/statistics/tx_bytes")
    return int(shown)


def _delete(name: str) -> None:
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=False)
    for word in found.stdout.split():
        try:
            os.kill(int(word), signal.SIGKILL)
        except ProcessLookupError:
            pass
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _run(*words: str) -> str:
    done = subprocess.run(words, check=True, capture_output=True, timeout=COMMAND_SECONDS_MAX)
    return done.stdout.decode()
