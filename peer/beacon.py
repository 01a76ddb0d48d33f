"""Peers on this network without mDNS: a datagram that says who listens where, now and then.

    b"NARSWRM1" | u8 kind | 32 bytes public key | u8 count | count times: 4 bytes IPv4, u16 port

Sent to the broadcast address of each network and to a multicast group that no router passes on, at
the start and then with growing pauses. Whoever hears an announcement answers its sender, so that a
newcomer need not wait for the others' turn; answers are not answered, are no longer than what they
answer to, and are few. Nothing but the PeerId and addresses is said. What is heard is a hint, and
only of addresses on our own networks, so that no datagram makes us dial somebody elsewhere; the
dial proves who answers. IPv4 only: a network with nothing else has mDNS.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import math
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import base58
import trio

from .errors import WireError
from .identity import Address, PeerId, parse_peer_id
from .surroundings import Network, is_near

log = logging.getLogger(__name__)

PORT = 4556
GROUP = "239.255.45.56"
ADDRESSES_MAX = 8
MAGIC = b"NARSWRM1"
ANNOUNCEMENT, ANSWER = 1, 2
_HEAD = struct.Struct(f">{len(MAGIC)}sB32sB")
_PLACE = struct.Struct(">4sH")
BEACON_BYTES_MAX = _HEAD.size + ADDRESSES_MAX * _PLACE.size
PAUSE_SECONDS_MIN = 1.0
PAUSE_SECONDS_MAX = 60.0
ANSWER_SECONDS_MIN = 5.0
"""Between two answers to the same process of a host."""
ANSWERS_PER_SECOND_MAX = 10
BEACONS_PER_HOST_MAX = 8
BEACONS_SECONDS = 10.0
"""In that time so many beacons of one host are heard; more are dropped unread."""
HOSTS_MAX = 1024
_ID_PREFIX = bytes.fromhex("002408011220")


@dataclass(frozen=True, slots=True)
class Beacon:
    kind: int
    peer: PeerId
    places: tuple[tuple[str, int], ...]
    """(IPv4 address, port)."""


def encode(beacon: Beacon) -> bytes:
    key = base58.b58decode(beacon.peer)[len(_ID_PREFIX) :]
    places = beacon.places[:ADDRESSES_MAX]
    head = _HEAD.pack(MAGIC, beacon.kind, key, len(places))
    return head + b"".join(_PLACE.pack(socket.inet_aton(host), port) for host, port in places)


def decode(data: bytes) -> Beacon:
    """Raises WireError for anything else."""
    if not _HEAD.size <= len(data) <= BEACON_BYTES_MAX:
        raise WireError(f"{len(data)} bytes are no beacon")
    magic, kind, key, count = _HEAD.unpack_from(data)
    if magic != MAGIC or kind not in (ANNOUNCEMENT, ANSWER):
        raise WireError("no beacon of this version")
    if len(data) != _HEAD.size + count * _PLACE.size:
        raise WireError("a beacon of another length than it says")
    places = tuple(
        (socket.inet_ntoa(host), port)
        for host, port in _PLACE.iter_unpack(data[_HEAD.size :])
        if port
    )
    return Beacon(kind, parse_peer_id(base58.b58encode(_ID_PREFIX + key).decode()), places)


def hints(beacon: Beacon, here: Sequence[Network]) -> Iterator[Address]:
    """The addresses in it that are on networks of ours, and are a host's."""
    for host, port in beacon.places:
        if _is_announced(host) and any(
            ipaddress.ip_address(host) in interface.network for interface in here
        ):
            yield Address(beacon.peer, host, port)


class Pacing:
    """When to announce, whom to hear and whom to answer. Pure."""

    def __init__(self, now: float) -> None:
        self.next_at = now
        self._pause_seconds = PAUSE_SECONDS_MIN
        self._answered: dict[str, float] = {}
        self._heard: dict[str, int] = {}
        self._heard_since = now
        self._second = -math.inf
        self._answers = 0

    def announced(self, now: float, chance: Random) -> None:
        self.next_at = now + self._pause_seconds * (0.75 + chance.random() / 2)
        self._pause_seconds = min(self._pause_seconds * 2, PAUSE_SECONDS_MAX)

    def hears(self, now: float, host: str) -> bool:
        """Whether a datagram of `host` is worth reading."""
        if now - self._heard_since >= BEACONS_SECONDS:
            self._heard.clear()
            self._heard_since = now
        if host not in self._heard and len(self._heard) >= HOSTS_MAX:
            return False
        self._heard[host] = self._heard.get(host, 0) + 1
        return self._heard[host] <= BEACONS_PER_HOST_MAX

    def answers(self, now: float, sender: str) -> bool:
        """Whether an announcement of `sender`, a host and port, is answered."""
        if now - self._second >= 1:
            self._second, self._answers = now, 0
        recent = now - self._answered.get(sender, -math.inf) < ANSWER_SECONDS_MIN
        if recent or self._answers >= ANSWERS_PER_SECOND_MAX:
            return False
        if len(self._answered) >= HOSTS_MAX:
            self._answered.clear()
        self._answered[sender] = now
        self._answers += 1
        return True


class BeaconDiscovery:
    """`run` until cancelled; `found` is called with each address heard. `here`: the addresses of
    this machine; when they change, make another one."""

    def __init__(
        self, peer: PeerId, addresses: Iterable[Address], here: Iterable[Network], chance: Random
    ) -> None:
        self._peer = peer
        self._here = tuple(one for one in here if isinstance(one, ipaddress.IPv4Interface))
        self._places = tuple(
            (address.host, address.port)
            for address in addresses
            if address.host and address.port and _is_announced(address.host)
        )[:ADDRESSES_MAX]
        self._chance = chance
        self._pacing = Pacing(trio.current_time())

    async def run(self, found: Callable[[Address], None]) -> None:
        """Without a network to speak on this logs why and returns: a LAN is never required."""
        if not self._places or not self._here:
            log.info("no beacon: no address that others on an IPv4 network could dial")
            return
        try:
            listener = _listener(self._here)
        except OSError as error:
            log.warning("no beacon: UDP port %d cannot be used: %s", PORT, error)
            return
        speakers = _speakers(self._here)
        try:
            async with trio.open_nursery() as nursery:
                for _, ear in [(None, listener), *speakers]:
                    nursery.start_soon(self._listen, ear, listener, found)
                nursery.start_soon(self._speak, speakers)
        finally:
            for _, ear in [(None, listener), *speakers]:
                ear.close()

    async def _speak(
        self, speakers: Sequence[tuple[ipaddress.IPv4Interface, trio.socket.SocketType]]
    ) -> None:
        said = encode(Beacon(ANNOUNCEMENT, self._peer, self._places))
        while True:
            await trio.sleep_until(self._pacing.next_at)
            self._pacing.announced(trio.current_time(), self._chance)
            for interface, speaker in speakers:
                for target in (str(interface.network.broadcast_address), GROUP):
                    await _send(speaker, said, target, PORT)

    async def _listen(
        self,
        ear: trio.socket.SocketType,
        mouth: trio.socket.SocketType,
        found: Callable[[Address], None],
    ) -> None:
        while True:
            try:
                data, (host, port) = await ear.recvfrom(BEACON_BYTES_MAX + 1)
            except OSError as error:  # an answer of ours that nobody took, told by ICMP
                log.debug("beacon: %s", error)
                continue
            now = trio.current_time()
            if not is_near(host, self._here) or not self._pacing.hears(now, host):
                continue
            try:
                beacon = decode(data)
            except WireError as error:
                log.debug("beacon of %s: %s", host, error)
                continue
            if beacon.peer == self._peer:
                continue
            for address in hints(beacon, self._here):
                found(address)
            if beacon.kind == ANNOUNCEMENT and self._pacing.answers(now, f"{host}:{port}"):
                places = self._places[: len(beacon.places)]
                await _send(mouth, encode(Beacon(ANSWER, self._peer, places)), host, port)


def _is_announced(host: str) -> bool:
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_multicast or address.is_unspecified)


async def _send(mouth: trio.socket.SocketType, data: bytes, host: str, port: int) -> None:
    try:
        await mouth.sendto(data, (host, port))
    except OSError as error:  # the network went away, or filters it
        level = logging.DEBUG if error.errno == errno.ENETUNREACH else logging.INFO
        log.log(level, "beacon to %s: %s", host, error)


def _listener(here: Sequence[ipaddress.IPv4Interface]) -> trio.socket.SocketType:
    """On the port that all of us on this machine share. Raises OSError."""
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ear.bind(("", PORT))
        for one in here:
            try:
                both = socket.inet_aton(GROUP) + one.ip.packed
                ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, both)
            except OSError as error:
                log.info("beacon: no multicast on %s: %s", one, error)
        return trio.socket.from_stdlib_socket(ear)
    except BaseException:
        ear.close()
        raise


def _speakers(
    here: Sequence[ipaddress.IPv4Interface],
) -> list[tuple[ipaddress.IPv4Interface, trio.socket.SocketType]]:
    """One for each address: it says where from, and answers come to it."""
    made = []
    for one in here:
        mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, one.ip.packed)
            mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            mouth.bind((str(one.ip), 0))
        except OSError as error:
            mouth.close()
            log.info("no beacon from %s: %s", one, error)
            continue
        made.append((one, trio.socket.from_stdlib_socket(mouth)))
    return made
