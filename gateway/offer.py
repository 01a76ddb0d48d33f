"""Who may know of which path (design invariant 6). Pure.

A configured peer may have what my trusted or publish keys signed; a stranger only what a publish
key signed. Publish keys are never taken from the trusted ones. Nobody may have anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable

from chunker.record import PathRecord
from peer.identity import PeerId

from .errors import NotTrusted
from .signing import KeyRing
from .trust import admit


def policy(
    configured: Collection[PeerId], trusted: KeyRing, publish: KeyRing
) -> Callable[[PeerId, PathRecord], bool]:
    def may_have(asker: PeerId, record: PathRecord) -> bool:
        if is_signed(record, publish):
            return True
        return asker in configured and is_signed(record, trusted)

    return may_have


def audience(*rings: KeyRing) -> Callable[[PathRecord], Hashable]:
    """Which of `rings` signed a record. Give it every ring that the policy looks at: then records
    with the same audience are for the same askers (peer.catalogue)."""
    return lambda record: tuple(is_signed(record, ring) for ring in rings)


def is_signed(record: PathRecord, keys: KeyRing) -> bool:
    try:
        admit(record, keys)
    except NotTrusted:
        return False
    return True
