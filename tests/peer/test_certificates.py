"""What a pool key signs: each wrong certificate is refused, and for its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.certificates import (
    CERTIFICATE_SECONDS,
    CERTIFICATE_SECONDS_MAX,
    CLOCKS_DIFFER_SECONDS_MAX,
    Certificate,
    CertificateRefused,
    Description,
    Member,
    PoolId,
    Revocation,
    decode_certificate,
    decode_description,
    decode_revocation,
    sign,
    verify,
)
from peer.identity import Identity, PeerId

KEY = Identity(b"k" * 32)
OTHER_KEY = Identity(b"o" * 32)
POOL = PoolId(KEY.public)
ALICE, BOB = Identity(b"a" * 32).peer_id, Identity(b"b" * 32).peer_id
NOW = 1_800_000_000
GOOD = Certificate(POOL, ALICE, "gateway", NOW - 10, NOW - 10 + CERTIFICATE_SECONDS, 7)
DESCRIPTION = Description(POOL, "office", ("cache-1:AAAA", "office-1:BBBB"), b"w" * 32, ALICE)
NOBODY: Callable[[PoolId, PeerId], int | None] = lambda pool, peer: None  # noqa: E731


def check(
    blob: bytes,
    peer: PeerId = ALICE,
    now: float = NOW,
    revoked: Callable[[PoolId, PeerId], int | None] = NOBODY,
) -> Member:
    return verify(blob, pools={POOL}, peer=peer, now=now, revoked_since=revoked)


def fault(blob: bytes, **more: object) -> str:
    with pytest.raises(CertificateRefused) as caught:
        check(blob, **more)  # type: ignore[arg-type]
    return caught.value.fault


def test_a_good_one_makes_a_member() -> None:
    blob = sign(KEY, GOOD)
    assert len(blob) < 300
    assert check(blob).certificate == GOOD == decode_certificate(blob)


def test_descriptions_and_revocations_come_back() -> None:
    assert decode_description(sign(KEY, DESCRIPTION)) == DESCRIPTION
    revocation = Revocation(POOL, BOB, NOW)
    assert decode_revocation(sign(KEY, revocation)) == revocation


def test_expired() -> None:
    assert check(sign(KEY, GOOD), now=GOOD.expiry - 1)
    assert fault(sign(KEY, GOOD), now=GOOD.expiry) == "expired"


def test_not_yet_valid() -> None:
    assert check(sign(KEY, GOOD), now=GOOD.issued - CLOCKS_DIFFER_SECONDS_MAX)
    assert fault(sign(KEY, GOOD), now=GOOD.issued - CLOCKS_DIFFER_SECONDS_MAX - 1) == (
        "not yet valid"
    )


def test_foreign() -> None:
    foreign = replace(GOOD, pool=PoolId(OTHER_KEY.public))
    assert fault(sign(OTHER_KEY, foreign)) == "foreign pool"


def test_replayed_by_another_peer() -> None:
    assert fault(sign(KEY, GOOD), peer=BOB) == "replayed"


def test_revoked_and_issued_anew() -> None:
    blob = sign(KEY, GOOD)
    assert fault(blob, revoked=lambda pool, peer: GOOD.issued) == "revoked"
    assert check(blob, revoked=lambda pool, peer: GOOD.issued - 1)


def test_our_pools_name_under_another_signature() -> None:
    """Whoever knows the pool's key can name it, and cannot sign for it."""
    genuine, forged = sign(KEY, GOOD), sign(OTHER_KEY, replace(GOOD, pool=PoolId(OTHER_KEY.public)))
    payload = forged[64:].replace(OTHER_KEY.public, POOL)
    assert fault(forged[:64] + payload) == "malformed"
    text = b"narswarm-pool-certificate-1\n"
    assert fault(OTHER_KEY.sign(text + genuine[64:]) + genuine[64:]) == "malformed"


def test_one_kind_does_not_pass_for_another() -> None:
    """Signed fields that fit both kinds: the text before them tells them apart."""
    payload = sign(KEY, GOOD)[64:]
    other = KEY.sign(b"narswarm-pool-revocation-1\n" + payload) + payload
    assert fault(other) == "malformed"


def packed(*fields: object) -> bytes:
    """A certificate signed by the right key, whatever its fields."""
    payload: bytes = msgpack.packb([1, POOL, *fields], use_bin_type=True)
    return KEY.sign(b"narswarm-pool-certificate-1\n" + payload) + payload


SIGNED_NONSENSE = {
    "too few fields": packed(ALICE, "gateway", 1, 2),
    "too many fields": packed(ALICE, "gateway", 1, 2, 3, 4),
    "no PeerId": packed("alice", "gateway", NOW, NOW + 5, 1),
    "a PeerId of bytes": packed(ALICE.encode(), "gateway", NOW, NOW + 5, 1),
    "a PeerId with a space behind": packed(ALICE + " ", "gateway", NOW, NOW + 5, 1),
    "another role": packed(ALICE, "king", NOW, NOW + 5, 1),
    "a list for a role": packed(ALICE, ["gateway"], NOW, NOW + 5, 1),
    "ends before it begins": packed(ALICE, "gateway", NOW, NOW, 1),
    "lives too long": packed(ALICE, "gateway", NOW, NOW + CERTIFICATE_SECONDS_MAX + 1, 1),
    "a time that is true": packed(ALICE, "gateway", True, NOW, 1),
    "a time before all": packed(ALICE, "gateway", -1, 5, 1),
    "a time that is no whole number": packed(ALICE, "gateway", 1.0, 5, 1),
}


@pytest.mark.parametrize("name", sorted(SIGNED_NONSENSE))
def test_even_the_pool_key_signs_no_nonsense(name: str) -> None:
    assert fault(SIGNED_NONSENSE[name]) == "malformed"


def test_there_is_one_encoding() -> None:
    """The same fields with a longer head for a number, and signed as such."""
    fields = sign(KEY, GOOD)[64:]
    assert fields[-1:] == b"\x07"
    longer = fields[:-1] + b"\xcc\x07"
    text = b"narswarm-pool-certificate-1\n"
    assert fault(KEY.sign(text + longer) + longer) == "malformed"


@given(st.binary(max_size=1100))
@settings(max_examples=300)
def test_any_bytes_are_refused(blob: bytes) -> None:
    for decode in (decode_certificate, decode_description, decode_revocation, check):
        with pytest.raises(CertificateRefused):
            decode(blob)


@given(st.integers(0, len(sign(KEY, GOOD)) - 1), st.integers(1, 255))
@settings(max_examples=300)
def test_any_changed_byte_is_refused(at: int, change: int) -> None:
    blob = bytearray(sign(KEY, GOOD))
    blob[at] ^= change
    with pytest.raises(CertificateRefused):
        check(bytes(blob))


BAD_DESCRIPTIONS = {
    "a name that leaves its directory": replace(DESCRIPTION, name="../x"),
    "no name": replace(DESCRIPTION, name=""),
    "no keys": replace(DESCRIPTION, keys=()),
    "33 keys": replace(DESCRIPTION, keys=("k-1:A",) * 33),
    "a key with a line break": replace(DESCRIPTION, keys=("k-1:A\n",)),
    "a short word": replace(DESCRIPTION, word=b"w"),
}


@pytest.mark.parametrize("name", sorted(BAD_DESCRIPTIONS))
def test_bad_descriptions(name: str) -> None:
    with pytest.raises(CertificateRefused):
        decode_description(sign(KEY, BAD_DESCRIPTIONS[name]))
