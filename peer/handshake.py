"""libp2p's Noise handshake, after which two that both are fast at AES go on with it.

https://github.com/libp2p/specs/blob/master/noise/README.md knows one cipher, ChaCha20-Poly1305, and
that is what seals the handshake. In its payload, which is encrypted and authenticated, each side
may say in an extension that others pass over:

    NoiseExtensions { repeated string transport_ciphers = 1040; }   here: "AESGCM" or nothing

Where both said AESGCM, the keys of the handshake are used with Noise's AESGCM from the first
transport message on: a third of the time for the same bytes on a processor with AES instructions.
Stock peers say nothing and get ChaCha20-Poly1305. Decision 9 has the reasons and figures.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from google.protobuf.unknown_fields import UnknownFieldSet
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.peer.id import ID
from libp2p.security.noise.messages import NoiseExtensions, NoiseHandshakePayload
from libp2p.security.noise.patterns import PatternXX
from libp2p.security.noise.pb.noise_pb2 import NoiseHandshakePayload as Encoded
from libp2p.security.noise.transport import Transport as NoiseTransport
from noise.backends.default.ciphers import AESGCMCipher

CIPHERS_FIELD = 1040
AESGCM_NAME = b"AESGCM"
SAYS_AESGCM = b"\x22\x09\x82\x41\x06" + AESGCM_NAME
"""Field 4 of a payload, its extensions, in nine bytes: field 1040, six bytes. Protobuf merges it
with an `extensions` that stands before it."""
SAMPLE_BYTES = 63 * 1024
SAMPLES = 5


@functools.cache
def is_fast_at_aes() -> bool:
    """Whether AES-GCM is the faster cipher on this machine; takes some 0.2 ms, once."""
    return _seconds(AESGCM(bytes(32))) < _seconds(ChaCha20Poly1305(bytes(32)))


def _seconds(cipher: AESGCM | ChaCha20Poly1305) -> float:
    sample, nonce, took = bytes(SAMPLE_BYTES), bytes(12), []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        cipher.encrypt(nonce, sample, None)
        took.append(time.perf_counter() - began)
    return min(took)


class Transport(NoiseTransport):
    """`says_aes`: whether this side offers AES-GCM; by default where it is fast."""

    def __init__(self, *args: Any, says_aes: bool | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._says_aes = is_fast_at_aes() if says_aes is None else says_aes

    def get_pattern(self) -> PatternXX:
        if not self._says_aes:
            return PatternXX(self.local_peer, self.libp2p_privkey, self.noise_privkey)
        return _SaysAes(self.local_peer, self.libp2p_privkey, self.noise_privkey)


class _SaysAes(PatternXX):
    """One handshake."""

    _heard = b""

    def create_noise_state(self, prologue: bytes | None = None) -> Any:
        state = super().create_noise_state(prologue)
        read = state.read_message

        def read_and_keep(message: bytes) -> bytearray:
            payload: bytearray = read(message)
            self._heard = bytes(payload)
            return payload

        state.read_message = read_and_keep
        return state

    def make_handshake_payload(
        self, extensions: NoiseExtensions | None = None
    ) -> NoiseHandshakePayload:
        payload = super().make_handshake_payload(extensions)
        return _Payload(payload.id_pubkey, payload.id_sig, payload.extensions)

    async def handshake_inbound(self, conn: IRawConnection) -> ISecureConn:
        return self._ciphered(await super().handshake_inbound(conn))

    async def handshake_outbound(self, conn: IRawConnection, remote_peer: ID | None) -> ISecureConn:
        return self._ciphered(await super().handshake_outbound(conn, remote_peer))

    def _ciphered(self, session: Any) -> ISecureConn:
        """Before anything but the handshake was sealed: no key is ever used with two ciphers."""
        if says_aes(self._heard):
            protocol = session.conn.noise_state.noise_protocol
            for state in (protocol.cipher_state_encrypt, protocol.cipher_state_decrypt):
                assert state.n == 0
                state.cipher = AESGCMCipher()
                state.cipher.initialize(state.k)
        return session


class _Payload(NoiseHandshakePayload):
    def serialize(self) -> bytes:
        return bytes(super().serialize() + SAYS_AESGCM)


def says_aes(payload: bytes) -> bool:
    """Of a handshake payload that libp2p took."""
    fields: Any = UnknownFieldSet(Encoded.FromString(payload).extensions)
    return any(
        field.field_number == CIPHERS_FIELD and field.data == AESGCM_NAME for field in fields
    )
