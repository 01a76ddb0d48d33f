"""Peers with fast or with stock sessions, for the tests that let one talk to another."""

from __future__ import annotations

from typing import Any

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID, Yamux

from peer import handshake
from peer.host import Libp2pTransport
from peer.identity import Identity
from peer.transport import Stream


def transport(kind: str, number: int) -> Libp2pTransport:
    """`kind`: "fast", what the product uses where AES is fast; "chacha", where it is not; "stock",
    what py-libp2p has itself."""
    identity = Identity(bytes([number]) * 32)
    made = Libp2pTransport(identity, [("127.0.0.1", 0)])
    upgrader: Any = made._host.get_network().upgrader
    keys, static = create_new_key_pair(identity.seed), create_noise_key_pair().private_key
    if kind == "stock":
        upgrader.muxer_multistream = MuxerMultistream({PROTOCOL_ID: Yamux})
        secure = NoiseTransport(keys, static)
    else:
        secure = handshake.Transport(keys, static, says_aes=kind == "fast")
    upgrader.security_multistream.transports[NOISE_ID] = secure
    return made


def muxer(transport: Libp2pTransport) -> str:
    """Which class carries this transport's one connection."""
    (connections,) = transport._host.get_network().connections.values()
    (connection,) = connections
    return type(connection.muxed_conn).__name__


def ciphers(transport: Libp2pTransport) -> set[str]:
    """Which ciphers seal and open on this transport's one connection."""
    (connections,) = transport._host.get_network().connections.values()
    protocol = connections[0].muxed_conn.secured_conn.conn.noise_state.noise_protocol
    states = protocol.cipher_state_encrypt, protocol.cipher_state_decrypt
    return {type(state.cipher.cipher).__name__ for state in states}


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(bytes(data))
