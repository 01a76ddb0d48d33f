"""Peers on this network by mDNS: `_p2p._udp.local.`, announced and watched through zeroconf.

Service and instance as libp2p's mDNS names them; the address is in the TXT attribute `dnsaddr`
(https://github.com/libp2p/specs/blob/master/discovery/mdns.md), so that other libp2p hosts are at
worst dialled in vain. Everything heard is a hint: the dial proves who answers. zeroconf runs
threads of its own; what they hear is handed to trio, and at most LOOKUPS_WAITING_MAX of it waits.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable, Iterable

import trio
from zeroconf import Error as ZeroconfError
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from .errors import IdentityError
from .identity import Address, Identity, parse_address

log = logging.getLogger(__name__)

SERVICE = "_p2p._udp.local."
PROBE_SERVICE = "_narswarm-probe._udp.local."
HEAR_SECONDS_MAX = 5.0
ATTRIBUTE = "dnsaddr"
LOOKUP_MILLISECONDS_MAX = 3000
LOOKUPS_WAITING_MAX = 256
ADDRESSES_PER_SERVICE_MAX = 8
INSTANCE_BYTES = 16


class LanDiscovery:
    """`run` until cancelled; `found` is called in the trio loop with each address heard."""

    def __init__(self, identity: Identity, addresses: Iterable[Address]) -> None:
        # A network that goes away while it speaks is no news of it; `surroundings` tells us.
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
        self._identity = identity
        self._addresses = [
            address for address in addresses if address.port and not _is_loopback(address.host)
        ]

    async def run(self, found: Callable[[Address], None]) -> None:
        """Without a network to speak on this logs why and returns: a LAN is never required."""
        if not self._addresses:
            log.warning("not announced on the LAN: this process listens on loopback only")
            return
        try:
            zeroconf = await trio.to_thread.run_sync(Zeroconf)
        except OSError as error:
            log.warning("mDNS cannot be used here: %s", error)
            return
        heard, names = trio.open_memory_channel[str](LOOKUPS_WAITING_MAX)
        token = trio.lowlevel.current_trio_token()

        def on_change(
            zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
        ) -> None:
            if state_change is not ServiceStateChange.Removed:
                token.run_sync_soon(_offer, heard, name)

        try:
            await trio.to_thread.run_sync(zeroconf.register_service, self._service())
            browser = ServiceBrowser(zeroconf, SERVICE, handlers=[on_change])
            try:
                async for name in names:
                    for address in await trio.to_thread.run_sync(_look_up, zeroconf, name):
                        if address.peer != self._identity.peer_id:
                            found(address)
            finally:
                browser.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(zeroconf.close)

    def _service(self) -> ServiceInfo:
        instance = secrets.token_hex(INSTANCE_BYTES)
        hosts = [address.host for address in self._addresses if address.host]
        return ServiceInfo(
            SERVICE,
            f"{instance}.{SERVICE}",
            addresses=[_packed(host) for host in hosts],
            port=self._addresses[0].port or 0,
            properties={ATTRIBUTE: self._addresses[0].text},
            server=f"{instance}.local.",
        )


async def hears_itself(seconds_max: float = HEAR_SECONDS_MAX) -> bool:
    """Whether an announcement made here is heard here: multicast works, and port 5353 is open."""
    kind, name = PROBE_SERVICE, f"{secrets.token_hex(INSTANCE_BYTES)}.{PROBE_SERVICE}"
    heard = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def on_change(
        zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        token.run_sync_soon(heard.set)

    speaker = listener = None
    try:
        listener = await trio.to_thread.run_sync(Zeroconf)
        speaker = await trio.to_thread.run_sync(Zeroconf)
        browser = ServiceBrowser(listener, kind, handlers=[on_change])
        await trio.to_thread.run_sync(
            speaker.register_service, ServiceInfo(kind, name, port=1, server=name)
        )
        with trio.move_on_after(seconds_max):
            await heard.wait()
        browser.cancel()
    except (OSError, ZeroconfError) as error:
        log.info("mDNS: %s", error)
    finally:
        with trio.CancelScope(shield=True):
            for end in (speaker, listener):
                if end is not None:
                    await trio.to_thread.run_sync(end.close)
    return heard.is_set()


def _offer(heard: trio.MemorySendChannel[str], name: str) -> None:
    try:
        heard.send_nowait(name)
    except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


def _look_up(zeroconf: Zeroconf, name: str) -> list[Address]:
    """In a worker thread. What a service says of itself, as far as it makes sense."""
    info = zeroconf.get_service_info(SERVICE, name, timeout=LOOKUP_MILLISECONDS_MAX)
    if info is None:
        return []
    found = []
    for key, value in list(info.properties.items())[:ADDRESSES_PER_SERVICE_MAX]:
        if key == ATTRIBUTE.encode() and value is not None:
            try:
                found.append(parse_address(value.decode()))
            except (IdentityError, UnicodeDecodeError) as error:
                log.info("mDNS: %s says nonsense: %s", name, error)
    # A machine has several addresses; its TXT record names the first, which may be a bridge of its
    # own containers. The others stand in its A and AAAA records.
    for text in info.parsed_addresses()[:ADDRESSES_PER_SERVICE_MAX]:
        for one in found[:1]:
            if text != one.host and not ipaddress.ip_address(text).is_link_local:
                found.append(Address(one.peer, text, one.port))
    return found


def _packed(host: str) -> bytes:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.inet_pton(family, host)


def _is_loopback(host: str | None) -> bool:
    try:
        return host is None or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
