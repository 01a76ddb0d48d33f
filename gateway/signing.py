"""Keys in Nix's own format `name:base64` and ed25519 signatures with them.

A secret is 64 bytes (seed, public key), a public key 32, a signature 64. Secrets are kept 0600,
never under /nix/store, and never printed.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import nacl.exceptions
import nacl.signing

from .errors import BadKey
from .seals import Seals

NAME_CHARS_MAX = 128
JUDGED_MAX = 1024
"""Signatures of which a ring remembers whether they hold."""
KEY_FILE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class PublicKey:
    name: str
    key: bytes

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Raises BadKey."""
        name, data = _split(text)
        if len(data) != 32:
            raise BadKey(f"the public key {name!r} has {len(data)} bytes, not 32")
        return cls(name, data)

    @property
    def text(self) -> str:
        return f"{self.name}:{base64.b64encode(self.key).decode()}"


@dataclass(frozen=True, slots=True)
class SecretKey:
    name: str
    seed: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> SecretKey:
        """Raises BadKey; the message never holds the key."""
        name, data = _split(text)
        if len(data) != 64 or bytes(nacl.signing.SigningKey(data[:32]).verify_key) != data[32:]:
            raise BadKey(f"the secret key {name!r} is not one (is it the public half?)")
        return cls(name, data[:32])

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.name, bytes(nacl.signing.SigningKey(self.seed).verify_key))

    def sign(self, text: bytes) -> str:
        """`name:base64`, as in a narinfo's Sig line."""
        signature = nacl.signing.SigningKey(self.seed).sign(text).signature
        return f"{self.name}:{base64.b64encode(signature).decode()}"


class KeyRing:
    """Public keys by name. Raises BadKey for two different keys of one name."""

    def __init__(self, keys: Iterable[PublicKey], seals: Seals | None = None) -> None:
        """`seals`: of what was verified with these keys elsewhere."""
        self.seals = Seals() if seals is None else seals
        self.keys: dict[str, PublicKey] = {}
        self._judged: dict[tuple[bytes, str], bool] = {}
        for key in keys:
            if self.keys.setdefault(key.name, key) != key:
                raise BadKey(f"two different keys are named {key.name!r}; remove one")
        self._verifiers = {name: nacl.signing.VerifyKey(key.key) for name, key in self.keys.items()}

    def verified(self, text: bytes, signatures: Iterable[str]) -> tuple[str, ...]:
        """Those of `signatures` that a key of this ring made over `text`."""
        return tuple([signature for signature in signatures if self._judge(text, signature)])

    def _judge(self, text: bytes, signature: str) -> bool:
        """Every Want of every peer asks for the same few: what was computed once stays true."""
        judged = self._judged.get((text, signature))
        if judged is None:
            if len(self._judged) >= JUDGED_MAX:
                self._judged.clear()
            judged = self._judged[text, signature] = self.holds(text, signature)
        return judged

    def holds(self, text: bytes, signature: str) -> bool:
        """Computed anew, unless it is sealed."""
        name, _, encoded = signature.partition(":")
        verifier = self._verifiers.get(name)
        if verifier is None:
            return False
        if self.seals.proves(self.keys[name].key, signature, text):
            return True
        try:
            verifier.verify(text, base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError, nacl.exceptions.CryptoError):
            return False
        return True


def generate(name: str) -> SecretKey:
    """Raises BadKey for a name that a narinfo could not carry."""
    if not name or ":" in name or not name.isprintable() or " " in name:
        raise BadKey(f"{name!r} cannot name a key: no colon, space or control character")
    return SecretKey(name, os.urandom(32))


def read_secret_key(path: Path) -> SecretKey:
    """Raises BadKey."""
    try:
        text = path.read_bytes()[:KEY_FILE_BYTES_MAX].decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise BadKey(f"cannot read the key {path}: {error}") from error
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise BadKey(f"others can read the key {path}; run: chmod 600 {path}")
    return SecretKey.parse(text.strip())


def write_secret_key(path: Path, key: SecretKey) -> None:
    """A new file, 0600. Raises BadKey where one exists or where everybody could read it."""
    if str(path.resolve()).startswith("/nix/store/"):
        raise BadKey(f"{path}: everybody can read /nix/store; keep keys elsewhere")
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise BadKey(f"cannot make the key file {path}: {error.strerror}") from error
    with os.fdopen(file, "wb") as out:
        secret = base64.b64encode(key.seed + key.public.key)
        out.write(f"{key.name}:".encode() + secret)


def _split(text: str) -> tuple[str, bytes]:
    name, colon, encoded = text.partition(":")
    if not colon or not name or len(name) > NAME_CHARS_MAX:
        raise BadKey("a key must read NAME:BASE64, for example cache.nixos.org-1:6NCHdD59X431...")
    try:
        return name, base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadKey(f"the key {name!r} is not base64 after its colon") from error
