"""What a pool key signs: descriptions, memberships and revocations. Pure.

    blob = signature (64 bytes) | msgpack array, canonical: decoded and encoded again it is the same

A pool is named by its public key. The signature covers a text per kind before the array, so that
one kind cannot pass for another. Decoding proves shape and signature; `verify` alone makes a
`Member`, and only for the PeerId that the connection proved:

| refused as    | because                                                                  |
|---------------|--------------------------------------------------------------------------|
| malformed     | not one of ours: shape, limits, encoding or signature                    |
| foreign pool  | another pool than those we are in                                        |
| replayed      | it names another PeerId than the one that showed it                      |
| not yet valid | issued in the future, beyond what clocks may differ                      |
| expired       |                                                                          |
| revoked       | issued before the pool revoked that PeerId                               |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import InitVar, dataclass
from typing import Any, Literal, NewType

import msgpack

from .errors import IdentityError, RemoteError
from .identity import Identity, PeerId, is_signed_by, parse_peer_id, peer_id_of, public_of

PoolId = NewType("PoolId", bytes)
"""The 32 bytes of the pool's public key."""

BLOB_BYTES_MAX = 1024
"""Of a certificate and of a revocation."""
DESCRIPTION_BYTES_MAX = 8 * 1024
SIGNATURE_BYTES = 64
POOL_KEY_BYTES = 32
WORD_BYTES = 32
NIX_KEYS_MAX = 32
NIX_KEY_CHARS_MAX = 192
CLOCKS_DIFFER_SECONDS_MAX = 300
CERTIFICATE_SECONDS = 7 * 86400
CERTIFICATE_SECONDS_MAX = 31 * 86400
RENEWABLE_SECONDS = 30 * 86400
"""So long after its end a certificate still gets its owner a new one."""
REVOKED_SECONDS = CERTIFICATE_SECONDS_MAX + RENEWABLE_SECONDS
"""So long a revocation is kept: then nothing that it revokes is good for anything any more."""
ROLES = ("gateway", "peer", "seed")
SERIAL_BITS = 52
VERSION = 1

Fault = Literal[
    "malformed", "foreign pool", "replayed", "not yet valid", "expired", "revoked"
]  # fmt: skip
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_ONLY_HERE = object()


class CertificateRefused(RemoteError):
    """`fault` says why; see the table above."""

    def __init__(self, fault: Fault, said: str) -> None:
        super().__init__(f"{fault}: {said}")
        self.fault: Fault = fault


@dataclass(frozen=True, slots=True)
class Description:
    """What a pool is, for its members alone."""

    pool: PoolId
    name: str
    keys: tuple[str, ...]
    """Nix public keys, `name:base64`: members may have what one of them signed."""
    word: bytes
    """32 random bytes by which members know each other before they show anything."""
    holder: PeerId
    """Whose machine has the pool key."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """`issued` and `expiry` are seconds since 1970."""

    pool: PoolId
    peer: PeerId
    role: str
    issued: int
    expiry: int
    serial: int


@dataclass(frozen=True, slots=True)
class Revocation:
    """Certificates of `peer` that were issued up to `since` are worth nothing."""

    pool: PoolId
    peer: PeerId
    since: int


@dataclass(frozen=True)
class Member:
    """A certificate that was verified here, and its bytes. Made by `verify` alone."""

    certificate: Certificate
    blob: bytes
    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        assert made_by is _ONLY_HERE, "only certificates.verify makes a Member"


def is_pool_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def sign(key: Identity, thing: Description | Certificate | Revocation) -> bytes:
    """`key` is the pool's own."""
    assert thing.pool == key.public
    match thing:
        case Description(_, name, keys, word, holder):
            return _seal(key, b"description", [name, list(keys), word, holder])
        case Certificate(_, peer, role, issued, expiry, serial):
            return _seal(key, b"certificate", [peer, role, issued, expiry, serial])
        case Revocation(_, peer, since):
            return _seal(key, b"revocation", [peer, since])


def issue(
    key: Identity, peer: PeerId, role: str, now: float, serial: int, since: int | None
) -> bytes:
    """A new certificate by the pool's `key`. `since`: `peer` was revoked then and is back, perhaps
    within the same second; what counts is that the new one is the later."""
    issued = int(now) if since is None else max(int(now), since + 1)
    expiry = issued + CERTIFICATE_SECONDS
    return sign(key, Certificate(PoolId(key.public), peer, role, issued, expiry, serial))


def decode_description(blob: bytes) -> Description:
    """Raises CertificateRefused."""
    pool, fields = _open(b"description", blob, DESCRIPTION_BYTES_MAX, 4)
    name, keys, word, holder = fields
    if type(name) is not str or not is_pool_name(name):
        raise CertificateRefused("malformed", "a pool's name")
    if type(keys) is not list or not 0 < len(keys) <= NIX_KEYS_MAX:
        raise CertificateRefused("malformed", "a pool's keys")
    for key in keys:
        if type(key) is not str or not key.isprintable() or len(key) > NIX_KEY_CHARS_MAX:
            raise CertificateRefused("malformed", "one of a pool's keys")
    if type(word) is not bytes or len(word) != WORD_BYTES:
        raise CertificateRefused("malformed", "a pool's word")
    return Description(pool, name, tuple(keys), word, _peer(holder))


def decode_certificate(blob: bytes) -> Certificate:
    """Of any pool and peer, in force or not. Raises CertificateRefused."""
    pool, fields = _open(b"certificate", blob, BLOB_BYTES_MAX, 5)
    peer, role, issued, expiry, serial = fields
    if role not in ROLES:
        raise CertificateRefused("malformed", "a role")
    certificate = Certificate(
        pool, _peer(peer), role, _number(issued), _number(expiry), _number(serial)
    )
    if not 0 < certificate.expiry - certificate.issued <= CERTIFICATE_SECONDS_MAX:
        raise CertificateRefused("malformed", "a life longer than a certificate may have")
    return certificate


def decode_revocation(blob: bytes) -> Revocation:
    """Raises CertificateRefused."""
    pool, fields = _open(b"revocation", blob, BLOB_BYTES_MAX, 2)
    peer, since = fields
    return Revocation(pool, _peer(peer), _number(since))


def named_pool(blob: bytes) -> PoolId | None:
    """The pool that a blob claims to be of, before any signature is looked at."""
    return PoolId(blob[SIGNATURE_BYTES + _POOL_AT :][:POOL_KEY_BYTES]) if blob else None


def verify(
    blob: bytes,
    *,
    pools: Collection[PoolId],
    peer: PeerId,
    now: float,
    revoked_since: Callable[[PoolId, PeerId], int | None],
) -> Member:
    """`peer` is who the connection proved. Raises CertificateRefused."""
    if len(blob) <= BLOB_BYTES_MAX and named_pool(blob) not in pools:
        raise CertificateRefused("foreign pool", f"shown by {peer}")
    certificate = decode_certificate(blob)
    if certificate.pool not in pools:
        raise CertificateRefused("foreign pool", f"shown by {peer}")
    if certificate.peer != peer:
        raise CertificateRefused("replayed", f"{peer} shows the certificate of {certificate.peer}")
    if (fault := standing(certificate, now, revoked_since)) is not None:
        raise CertificateRefused(fault, f"the certificate of {peer}")
    return Member(certificate, blob, _ONLY_HERE)


def standing(
    certificate: Certificate, now: float, revoked_since: Callable[[PoolId, PeerId], int | None]
) -> Fault | None:
    """What is wrong with a genuine certificate now; it may have been right before."""
    since = revoked_since(certificate.pool, certificate.peer)
    if since is not None and certificate.issued <= since:
        return "revoked"
    if certificate.issued > now + CLOCKS_DIFFER_SECONDS_MAX:
        return "not yet valid"
    return "expired" if certificate.expiry <= now else None


def _text(kind: bytes, payload: bytes) -> bytes:
    return b"narswarm-pool-" + kind + b"-1\n" + payload


def _seal(key: Identity, kind: bytes, fields: list[Any]) -> bytes:
    payload: bytes = msgpack.packb([VERSION, key.public, *fields], use_bin_type=True)
    return key.sign(_text(kind, payload)) + payload


_POOL_AT = 4
"""Of the pool key in the array: behind its head, the version, and the head of 32 bytes."""


def _open(kind: bytes, blob: bytes, bytes_max: int, count: int) -> tuple[PoolId, list[Any]]:
    if not SIGNATURE_BYTES < len(blob) <= bytes_max:
        raise CertificateRefused("malformed", f"{len(blob)} bytes")
    signature, payload = blob[:SIGNATURE_BYTES], blob[SIGNATURE_BYTES:]
    try:
        fields = msgpack.unpackb(
            payload, raw=False, max_array_len=NIX_KEYS_MAX, max_map_len=0, max_ext_len=0
        )
        same = msgpack.packb(fields, use_bin_type=True) == payload
    except Exception as error:  # msgpack raises a dozen types; all mean the same here
        raise CertificateRefused("malformed", "not msgpack") from error
    if not same or type(fields) is not list or len(fields) != 2 + count:
        raise CertificateRefused("malformed", "not the one encoding")
    version, pool, *rest = fields
    if type(version) is not int or version != VERSION:
        raise CertificateRefused("malformed", "another version")
    if type(pool) is not bytes or len(pool) != POOL_KEY_BYTES:
        raise CertificateRefused("malformed", "not a pool key")
    if not is_signed_by(pool, _text(kind, payload), signature):
        raise CertificateRefused("malformed", "a signature that does not hold")
    return PoolId(pool), rest


def _peer(value: Any) -> PeerId:
    try:
        peer = parse_peer_id(value)
    except (IdentityError, AttributeError) as error:
        raise CertificateRefused("malformed", "not a PeerId") from error
    if peer_id_of(public_of(peer)) != peer:  # base58 forgives white space
        raise CertificateRefused("malformed", "not the one way to write a PeerId")
    return peer


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise CertificateRefused("malformed", "not a number within its limit")
    return value
