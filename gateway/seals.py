"""Signatures that our own scout verified, so that this process need not. Pure.

    scout: a key made this signature over this text -> seal -> here: the same seal? then it holds

A seal is a keyed hash over key, signature and text, with a secret that only this process and the
scout it started know. Whoever judges computes it anew, over the key it trusts and the text it
recomputed: a seal of anything else, or bytes that come from nowhere, prove nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SECRET_BYTES = 32
SEAL_BYTES = 32
SEALS_MAX = 4096
"""Not yet asked about; the oldest go first."""


def seal(secret: bytes, key: bytes, signature: str, text: bytes) -> bytes:
    """Of what was verified: `key` has 32 bytes, a signature no zero byte, so that this names one
    thing."""
    sealed = b"%b%b\0%b" % (key, signature.encode(), text)
    return hashlib.blake2b(sealed, key=secret, digest_size=SEAL_BYTES).digest()


class Seals:
    """Of one scout at a time."""

    def __init__(self) -> None:
        self._secret = b""
        self._unused: dict[bytes, None] = {}

    def begin(self, secret: bytes) -> None:
        """Those of an earlier scout prove nothing more."""
        assert len(secret) == SECRET_BYTES
        self._secret = secret
        self._unused.clear()

    def add(self, seals: Iterable[bytes]) -> None:
        for one in seals:
            self._unused[one] = None
        while len(self._unused) > SEALS_MAX:
            del self._unused[next(iter(self._unused))]

    def proves(self, key: bytes, signature: str, text: bytes) -> bool:
        """Whether it is sealed that `key` made `signature` over `text`; asked once."""
        if not self._unused:
            return False
        one = seal(self._secret, key, signature, text)
        if one not in self._unused:
            return False
        del self._unused[one]
        return True
