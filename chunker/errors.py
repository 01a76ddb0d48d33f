"""Everything that can go wrong with bytes, said with who did wrong and the thing itself.

A parser of this package that faces foreign bytes raises only its own error, whatever the input.
"""

from __future__ import annotations

from pathlib import Path


class ChunkerError(Exception):
    """Base of every error of this package."""


class NarError(ChunkerError):
    """The bytes are not a NAR that Nix would accept. The message says what, and at which byte."""


class ManifestError(ChunkerError):
    """The bytes are not the canonical encoding of a valid manifest."""


class RecordError(ChunkerError):
    """The bytes are not the canonical encoding of a valid path record."""


class BlockCorrupt(ChunkerError):
    """Bytes that claimed to be block `wanted` are not. `wanted`: 32-byte BlockId."""

    def __init__(self, wanted: bytes, reason: str) -> None:
        super().__init__(f"block {wanted.hex()[:16]} is corrupt: {reason}")
        self.wanted = wanted
        self.reason = reason


class BlockMissing(ChunkerError):
    """The store does not hold block `wanted` (32-byte BlockId)."""

    def __init__(self, wanted: bytes) -> None:
        super().__init__(f"block {wanted.hex()[:16]} is not here")
        self.wanted = wanted


class NarMismatch(ChunkerError):
    """A whole NAR does not have the hash or size that was signed for it."""


class StoreError(ChunkerError):
    """The store on disk cannot be used; the message says what to do."""


class StoreBusy(StoreError):
    """Another process holds the store."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            f"the store {path} is in use by process {holder}; stop that process, "
            "or give this one a directory of its own with --store"
        )


class StoreFull(StoreError):
    """The disk is full; nothing acknowledged was lost."""
