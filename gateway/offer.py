"""Who may know of which path (design invariant 6). Pure.

A configured peer may have what my trusted or publish keys signed; a stranger only what a publish
key signed. Publish keys are never taken from the trusted ones. Nobody may have anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

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


def is_signed(record: PathRecord, keys: KeyRing) -> bool:
    try:
        admit(record, keys)
    except NotTrusted:
        return False
    return True
