"""Who a peer is: an Ed25519 key kept on disk, its PeerId, and addresses that name both.

PeerId: https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md (the protobuf of the public
key in an identity multihash, base58: 12D3KooW...). libp2p itself is not imported here.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NewType

import base58
import nacl.exceptions
import nacl.signing

from .errors import IdentityError

PeerId = NewType("PeerId", str)
"""The base58 text."""

SEED_BYTES = 32
_HEADER = b"narswarm-identity-1\n"
_MULTIHASH = bytes.fromhex("002408011220")


@dataclass(frozen=True, slots=True)
class Identity:
    seed: bytes = field(repr=False)

    @property
    def public(self) -> bytes:
        return bytes(nacl.signing.SigningKey(self.seed).verify_key)

    @property
    def peer_id(self) -> PeerId:
        return peer_id_of(self.public)

    def sign(self, text: bytes) -> bytes:
        """64 bytes."""
        return bytes(nacl.signing.SigningKey(self.seed).sign(text).signature)


def peer_id_of(public: bytes) -> PeerId:
    """`public`: 32 bytes of Ed25519."""
    return PeerId(base58.b58encode(_MULTIHASH + public).decode())


def public_of(peer: PeerId) -> bytes:
    return base58.b58decode(peer.encode())[len(_MULTIHASH) :]


def is_signed_by(public: bytes, text: bytes, signature: bytes) -> bool:
    """Whatever the three are; what is no key or no signature signed nothing."""
    try:
        nacl.signing.VerifyKey(public).verify(text, signature)
    except (ValueError, nacl.exceptions.CryptoError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Address:
    """A peer and, where known, where to dial it."""

    peer: PeerId
    host: str | None
    port: int | None

    @property
    def text(self) -> str:
        if self.host is None:
            return self.peer
        kind = "ip6" if ":" in self.host else "ip4" if self.host[-1:].isdigit() else "dns"
        return f"/{kind}/{self.host}/tcp/{self.port}/p2p/{self.peer}"


def parse_peer_id(text: str) -> PeerId:
    """Raises IdentityError for anything but an Ed25519 PeerId."""
    try:
        data = base58.b58decode(text.encode())
    except ValueError as error:
        raise IdentityError(f"{text!r} is not a PeerId (12D3KooW...)") from error
    if len(data) != len(_MULTIHASH) + 32 or not data.startswith(_MULTIHASH):
        raise IdentityError(f"{text!r} is not a PeerId of an Ed25519 key (12D3KooW...)")
    return PeerId(text)


def parse_address(text: str) -> Address:
    """/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT/p2p/PEERID or a bare PeerId. Raises IdentityError."""
    if not text.startswith("/"):
        return Address(parse_peer_id(text), None, None)
    words = text.split("/")[1:]
    if (
        len(words) != 6
        or words[0] not in ("ip4", "ip6", "dns", "dns4", "dns6")
        or words[2] != "tcp"
        or words[4] != "p2p"
        or not words[1]
        or not words[3].isdigit()
        or not 0 < int(words[3]) < 65536
    ):
        raise IdentityError(f"{text!r} is not /ip4/HOST/tcp/PORT/p2p/PEERID")
    return Address(parse_peer_id(words[5]), words[1], int(words[3]))


def load_or_create(path: Path) -> Identity:
    """Raises IdentityError for a file that others can read, or that is not a key."""
    if str(path.resolve()).startswith("/nix/store/"):
        raise IdentityError(f"{path}: everybody can read /nix/store; keep keys elsewhere")
    if not path.exists():
        _create(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise IdentityError(f"others can read {path} (mode {mode:04o}); run: chmod 600 {path}")
    data = path.read_bytes()
    if len(data) != len(_HEADER) + SEED_BYTES * 2 + 1 or not data.startswith(_HEADER):
        raise IdentityError(f"{path} is not an identity; move it away and a new one is made")
    try:
        return Identity(bytes.fromhex(data[len(_HEADER) :].decode().strip()))
    except ValueError as error:
        raise IdentityError(f"{path} is damaged; move it away and a new one is made") from error


def _create(path: Path) -> None:
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, _HEADER + os.urandom(SEED_BYTES).hex().encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)
    try:
        os.link(new, path)
    except FileExistsError:
        pass  # another process was first; its key counts
    finally:
        os.unlink(new)
