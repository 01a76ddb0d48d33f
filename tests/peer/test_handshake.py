"""What a handshake's payload says of ciphers, and what becomes of it."""

from __future__ import annotations

import pytest
from libp2p.security.noise.pb.noise_pb2 import NoiseExtensions, NoiseHandshakePayload

from peer.handshake import SAYS_AESGCM, is_fast_at_aes, says_aes

STOCK = NoiseHandshakePayload(identity_key=b"key", identity_sig=b"signature")


def test_a_payload_says_it_only_with_our_extension() -> None:
    assert not says_aes(STOCK.SerializeToString())
    assert says_aes(STOCK.SerializeToString() + SAYS_AESGCM)


def test_other_extensions_stay_and_count_for_nothing() -> None:
    muxers = NoiseExtensions(stream_muxers=["AESGCM", "/yamux/1.0.0"])
    payload = NoiseHandshakePayload(
        identity_key=b"key", identity_sig=b"signature", extensions=muxers
    ).SerializeToString()
    assert not says_aes(payload)
    assert says_aes(payload + SAYS_AESGCM)
    merged = NoiseHandshakePayload.FromString(payload + SAYS_AESGCM)
    assert merged.extensions.stream_muxers == ["AESGCM", "/yamux/1.0.0"]
    assert (merged.identity_key, merged.identity_sig) == (b"key", b"signature")


@pytest.mark.parametrize(
    "extension",
    [
        SAYS_AESGCM.replace(b"AESGCM", b"AESCBC"),
        b"\x22\x09\x8a\x41\x06AESGCM",  # field 1041
        b"\x22\x04\x80\x41\x86\x01",  # field 1040, a number
        b"\x22\x03\x82\x41\x00",  # empty
    ],
)
def test_what_is_like_it_says_nothing(extension: bytes) -> None:
    assert not says_aes(STOCK.SerializeToString() + extension)


def test_whether_aes_is_fast_is_measured_once() -> None:
    assert is_fast_at_aes() is is_fast_at_aes()
