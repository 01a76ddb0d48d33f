"""Which muxer a new libp2p connection gets: ours on plain TCP, else the stock one.

    libp2p: TCP --multistream, Noise handshake, multistream--> SecureSession
    here:   its socket, keys and counters --> sessions.FastConnection

The wire is the same, so peers with stock layers do not notice (tests/contract/test_sessions.py and
test_js.py). Stock py-libp2p carries 112 MB/s on a core, ours several times as much; decision 5 has
the figures. What is not a TCP connection secured by Noise (a relay, a private network, a release of
libp2p with another inside) gets the stock Yamux.
"""

from __future__ import annotations

import logging
from typing import Any

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.io import NoiseTransportReadWriter
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux as StockYamux

from . import noise
from .sessions import FastConnection

log = logging.getLogger(__name__)


class FastMuxers(MuxerMultistream):
    """Chooses the muxer as libp2p does, and makes it a fast one where it can."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._buffers = noise.Buffers()

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        protocol, muxer = await self._selector.select(
            conn, conn.is_initiator, self.negotiate_timeout
        )
        muxed: Any
        if protocol != YAMUX_ID:
            muxed = muxer(conn, peer_id)
        elif (inside := _tcp_and_ciphers(conn, self._buffers)) is not None:
            muxed = FastConnection(conn, peer_id, *inside)
        else:
            muxed = StockYamux(conn, peer_id, is_initiator=conn.is_initiator)
        return self._annotate_connection(muxed, conn, protocol)


def _tcp_and_ciphers(
    conn: Any, buffers: noise.Buffers
) -> tuple[trio.SocketStream, noise.Sealer, noise.Opener, noise.Buffers, bytes] | None:
    """The inside of a session that is Noise over TCP, with what it had read ahead; else None."""
    if type(conn) is not SecureSession or type(conn.conn) is not NoiseTransportReadWriter:
        return None
    raw = conn.conn.read_writer.read_write_closer
    if type(raw) is not RawConnection or type(raw.stream) is not TrioTCPStream:
        return None
    try:
        protocol: Any = conn.conn.noise_state.noise_protocol
        ours, theirs = protocol.cipher_state_encrypt, protocol.cipher_state_decrypt
        sealer = noise.Sealer(ours.cipher.cipher, ours.cipher.format_nonce, ours.n, buffers)
        opener = noise.Opener(theirs.cipher.cipher, theirs.cipher.format_nonce, theirs.n, buffers)
        ahead = conn._drain(None)
    except AttributeError as error:
        log.warning("this release of libp2p has no place for fast sessions: %s", error)
        return None
    return raw.stream.stream, sealer, opener, buffers, ahead
