"""Peers with fast or with stock sessions, for the tests that let one talk to another."""

from __future__ import annotations

from typing import Any

from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID, Yamux

from peer.host import Libp2pTransport
from peer.identity import Identity
from peer.transport import Stream


def transport(kind: str, number: int) -> Libp2pTransport:
    """`kind`: "fast", what the product uses, or "stock", what py-libp2p has itself."""
    made = Libp2pTransport(Identity(bytes([number]) * 32), [("127.0.0.1", 0)])
    if kind == "stock":
        upgrader: Any = made._host.get_network().upgrader
        upgrader.muxer_multistream = MuxerMultistream({PROTOCOL_ID: Yamux})
    return made


def muxer(transport: Libp2pTransport) -> str:
    """Which class carries this transport's one connection."""
    (connections,) = transport._host.get_network().connections.values()
    (connection,) = connections
    return type(connection.muxed_conn).__name__


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some(65536):
        await stream.send_all(bytes(data))
