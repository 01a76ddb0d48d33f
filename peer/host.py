"""The real transport: py-libp2p over TCP, with our fast sessions. The only maker of a host.

What py-libp2p 0.8.1 needs (measured, see docs/decisions): one connection per peer, else each dial
waits 250 ms for a second address; its errors are many and are mapped once, here.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import ifaddr
import multiaddr
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.network.config import ConnectionConfig
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux as StockYamux

from chunker.digest import Bytes

from . import handshake
from .acquaintances import CONNECTIONS_MAX
from .errors import CannotListen, SessionClosed, Unreachable
from .identity import Address, Identity, PeerId
from .muxers import FastMuxers
from .sessions import FastStream
from .surroundings import is_near_end
from .transport import DIAL_SECONDS_MAX, PROTOCOL, Handler, Stream

log = logging.getLogger(__name__)

WRITE_BYTES = 256 * 1024
CLOSE_SECONDS_MAX = 1.0
CONNECTIONS_SPARE = 16
"""For those that have to prove who they are before it is decided whether they may stay."""
WILDCARDS = ("0.0.0.0", "::")


class Libp2pTransport:
    """`listen`: (host, port) pairs; port 0 takes any free one."""

    def __init__(self, identity: Identity, listen: Sequence[tuple[str, int]]) -> None:
        logging.getLogger("libp2p").setLevel(logging.CRITICAL)
        logging.getLogger("async_service").setLevel(logging.CRITICAL)
        self.peer = identity.peer_id
        self._wanted = listen
        self._listen = [_multiaddr(host, port) for host, port in listen]
        keys = create_new_key_pair(identity.seed)
        noise = handshake.Transport(keys, noise_privkey=create_noise_key_pair().private_key)
        self._host = new_host(
            key_pair=keys,
            sec_opt={NOISE_ID: noise},
            muxer_preference="YAMUX",
            connection_config=ConnectionConfig(
                max_connections_per_peer=1,
                max_connections=CONNECTIONS_MAX + CONNECTIONS_SPARE,
                min_connections=0,
                low_watermark=1,
                high_watermark=CONNECTIONS_MAX + CONNECTIONS_SPARE,
                dial_timeout=DIAL_SECONDS_MAX,
            ),
        )
        upgrader: Any = self._host.get_network().upgrader
        upgrader.muxer_multistream = FastMuxers({YAMUX_ID: StockYamux})
        assert str(self._host.get_id()) == self.peer

    def addresses(self) -> tuple[Address, ...]:
        found = []
        for address in self._host.get_transport_addrs():
            words = str(address).split("/")[1:]
            if len(words) >= 4 and words[0] in ("ip4", "ip6") and words[2] == "tcp":
                hosts = _interfaces(words[1]) if words[1] in WILDCARDS else [words[1]]
                found += [Address(self.peer, host, int(words[3])) for host in hosts]
        return tuple(found)

    async def run(
        self,
        handlers: Mapping[str, Handler],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self._check_listeners()
        for protocol, handler in handlers.items():
            self._host.set_stream_handler(protocol, self._guarded(handler))
        async with self._host.run(listen_addrs=self._listen):
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                await self._hang_up()

    def _guarded(self, handler: Handler) -> Callable[[Any], Awaitable[None]]:
        async def handle(stream: Any) -> None:
            wrapped = _Stream(stream)
            try:
                await self._leave_elsewhere(wrapped)
                await handler(wrapped)
            except Exception:
                log.exception("a session of %s failed", wrapped.peer)
            finally:
                await wrapped.aclose()

        return handle

    def _check_listeners(self) -> None:
        """libp2p passes over an address that it cannot have, and shares a port (SO_REUSEPORT) that
        another of its like listens on; a peer that nobody reaches helps nobody."""
        for host, port in self._wanted:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            try:
                socket.create_server((host, port), family=family).close()
            except OSError as error:
                raise CannotListen(
                    f"cannot listen on {host}:{port} for peers ({error.strerror}); stop what uses "
                    "it, or choose another address with --listen"
                ) from error

    async def _hang_up(self) -> None:
        """Close every connection: libp2p, when cancelled, leaves them for others to wait on."""
        network = self._host.get_network()
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS_MAX, shield=True):
            for peer in list(network.connections):
                await self.hang_up(PeerId(str(peer)))

    async def _leave_elsewhere(self, stream: _Stream) -> None:
        """A peer that comes from another address than before has moved: what leads to where it was
        is dead, and would be found so only after half a minute of silence."""
        connections = self._host.get_network().connections.get(ID.from_base58(stream.peer), [])
        for connection in list(connections):
            remote = connection.muxed_conn.get_remote_address()
            if remote and stream.remote_host and remote[0] != stream.remote_host:
                await self._close(connection)

    async def _close(self, connection: Any) -> None:
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS_MAX, shield=True):
            try:
                await connection.close()
            except Exception as error:
                log.debug("closing a connection: %s", error)

    async def hang_up(self, peer: PeerId) -> None:
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS_MAX, shield=True):
            try:
                await self._host.get_network().close_peer(ID.from_base58(peer))
            except Exception as error:
                log.debug("hanging up on %s: %s", peer, error)

    async def open(self, address: Address, protocol: str = PROTOCOL) -> Stream:
        peer = ID.from_base58(address.peer)
        try:
            with trio.fail_after(DIAL_SECONDS_MAX):
                if address.host is not None and address.port is not None:
                    where = _multiaddr(address.host, address.port)
                    # Whom to dial where, and when again, is decided above: libp2p would try what
                    # it heard before as well, and for a while nothing where that failed.
                    self._host.get_peerstore().clear_addrs(peer)
                    network: Any = self._host.get_network()
                    network.unblock_peer(peer)
                    await self._host.connect(PeerInfo(peer, [where]))
                stream = await self._host.new_stream(peer, [protocol])
        except trio.TooSlowError as error:
            raise Unreachable(f"{address.text} did not answer") from error
        except Exception as error:  # libp2p has no common base; whatever it is, we have no stream
            raise Unreachable(f"{address.text}: {error or type(error).__name__}") from error
        wrapped = _Stream(stream)
        if wrapped.peer != address.peer:
            await wrapped.aclose()
            raise Unreachable(f"{wrapped.peer} answers at the address of {address.peer}")
        return wrapped


class _Stream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # Past libp2p's own wrapper, which takes a lock for each read and write.
        muxed = stream.muxed_stream
        self._fast: FastStream | None = muxed if type(muxed) is FastStream else None
        self.peer = PeerId(str(stream.muxed_conn.peer_id))
        remote = stream.muxed_conn.get_remote_address()
        self.remote_host: str | None = remote[0] if remote else None

    def is_near(self) -> bool:
        """What is no plain TCP connection comes through somebody else."""
        return self._fast is not None and bool(is_near_end(self._fast.muxed_conn.tcp.socket))

    async def receive_some(self, bytes_max: int) -> Bytes:
        try:
            if self._fast is not None:
                return await self._fast.receive(bytes_max)
            data: bytes = await self._stream.read(bytes_max)
            return data
        except (StreamEOF, MuxedStreamEOF):
            return b""
        except Exception as error:
            raise SessionClosed(f"the stream of {self.peer} broke: {error}") from error

    async def send_all(self, *parts: Bytes) -> None:
        try:
            if self._fast is not None:
                await self._fast.write(*parts)
                return
            data = b"".join(parts)
            for at in range(0, len(data), WRITE_BYTES):
                await self._stream.write(bytes(data[at : at + WRITE_BYTES]))
        except Exception as error:
            raise SessionClosed(f"the stream of {self.peer} broke: {error}") from error

    async def flush(self) -> None:
        if self._fast is not None:
            await self._fast.flush()

    async def aclose(self) -> None:
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS_MAX, shield=True):
            try:
                await self._stream.close()
            except Exception as error:
                log.debug("closing a stream of %s: %s", self.peer, error)


def _interfaces(wildcard: str) -> list[str]:
    """What 0.0.0.0 or :: stands for on this machine; loopback only where there is nothing else."""
    found = [
        ip.ip if isinstance(ip.ip, str) else ip.ip[0]
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if ip.is_IPv6 == (wildcard == "::")
    ]
    parsed = [ipaddress.ip_address(text) for text in found]
    far = [str(ip) for ip in parsed if not ip.is_loopback and not ip.is_link_local]
    return far or ["::1" if wildcard == "::" else "127.0.0.1"]


def _multiaddr(host: str, port: int) -> multiaddr.Multiaddr:
    kind = "ip6" if ":" in host else "ip4" if host.replace(".", "").isdigit() else "dns"
    return multiaddr.Multiaddr(f"/{kind}/{host}/tcp/{port}")
