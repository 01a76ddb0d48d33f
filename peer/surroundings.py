"""What changes around this process: the machine slept, or has other addresses.

`Watcher` decides from what it is shown, the shell shows it two clocks and the interfaces every
POLL_SECONDS. CLOCK_BOOTTIME runs on in sleep and CLOCK_MONOTONIC does not; in a virtual machine
that was frozen both may stand still for it and jump afterwards, which shows as a long gap between
two looks.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import ifaddr
import trio

POLL_SECONDS = 3.0
SLEEP_SECONDS_MIN = 5.0
"""Shorter than that no connection minds."""
GAP_SECONDS_MAX = 60.0

_ALWAYS_NEAR = tuple(
    ipaddress.ip_interface(text) for text in ("127.0.0.0/8", "169.254.0.0/16", "::1", "fe80::/10")
)

NEAR_SECONDS_MAX = 0.005
NEAR_PREFIX_BITS = {4: 24, 6: 64}
MIN_RTT_AT = 148
"""Where the least round trip, in microseconds, stands in Linux's `struct tcp_info`."""

Network = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class Change:
    """It slept, or addresses came or went; those that went are `lost`."""

    slept: bool
    lost: frozenset[Network]

    def severs(self, host: str | None) -> bool:
        """Whether a connection with `host` is dead now, even if it does not know it yet. What goes
        by way of a router is left to find out by itself."""
        return self.slept or _is_in(host, self.lost)


class Watcher:
    def __init__(self, boot: float, monotonic: float, networks: frozenset[Network]) -> None:
        self._boot = boot
        self._monotonic = monotonic
        self._networks = networks

    def look(self, boot: float, monotonic: float, networks: frozenset[Network]) -> Change | None:
        """Clocks in seconds, and the addresses of this machine with their networks."""
        ran = monotonic - self._monotonic
        slept = boot - self._boot - ran > SLEEP_SECONDS_MIN or ran > GAP_SECONDS_MAX
        lost, changed = self._networks - networks, self._networks != networks
        self._boot, self._monotonic, self._networks = boot, monotonic, networks
        return Change(slept, lost) if slept or changed else None


async def watch(changed: Callable[[Change], None]) -> None:
    """Until cancelled."""
    watcher = Watcher(*_clocks(), await trio.to_thread.run_sync(networks))
    while True:
        await trio.sleep(POLL_SECONDS)
        here = await trio.to_thread.run_sync(networks)
        if (change := watcher.look(*_clocks(), here)) is not None:
            changed(change)


def networks() -> frozenset[Network]:
    """The addresses of this machine that others on a link may reach, with their networks. Reads
    the interfaces, which takes a moment."""
    found: set[Network] = set()
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            interface = ipaddress.ip_interface(f"{host}/{ip.network_prefix}")
            # Link-local addresses come and go with every container, and nobody is dialled there.
            if not interface.ip.is_loopback and not interface.ip.is_link_local:
                found.add(interface)
    return frozenset(found)


def is_near(host: str | None, here: Iterable[Network]) -> bool:
    """Whether `host` is on a link of this machine, as far as addresses tell."""
    return _is_in(host, (*here, *_ALWAYS_NEAR))


def is_one_lan(ours: str, theirs: str, round_trip_seconds: float | None) -> bool:
    """Whether the two ends of a connection share a LAN, as far as can be told: their addresses have
    one /24 (IPv6: /64), or its least round trip is shorter than any way through the internet."""
    if round_trip_seconds is not None and round_trip_seconds < NEAR_SECONDS_MAX:
        return True
    bits = NEAR_PREFIX_BITS[ipaddress.ip_address(ours).version]
    return _is_in(theirs, [ipaddress.ip_interface(f"{ours}/{bits}")])


def is_near_end(connected: socket.socket | trio.socket.SocketType) -> bool | None:
    """`is_one_lan` of a TCP connection; None where it is over."""
    try:
        ours, theirs = connected.getsockname()[0], connected.getpeername()[0]
        return is_one_lan(_plain(ours), theirs, _least_round_trip_seconds(connected))
    except OSError:
        return None


def _least_round_trip_seconds(
    connected: socket.socket | trio.socket.SocketType,
) -> float | None:
    if not sys.platform.startswith("linux"):
        return None
    told = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, MIN_RTT_AT + 4)
    if len(told) < MIN_RTT_AT + 4:
        return None
    (microseconds,) = struct.unpack_from("=I", told, MIN_RTT_AT)
    return microseconds / 1e6 if microseconds < 2**32 - 1 else None


def _plain(host: str) -> str:
    """Without the name of an interface, and IPv4 as such."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _is_in(host: str | None, networks: Iterable[Network]) -> bool:
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in one.network for one in networks)


def _clocks() -> tuple[float, float]:
    return time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_MONOTONIC)
