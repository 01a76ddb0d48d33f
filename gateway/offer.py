"""Who may know of which path (design invariant 6). Pure.

A configured peer may have what my trusted or publish keys signed; a member of a pool of ours what
one of that pool's own keys signed; a stranger only what a publish key signed. Publish keys are
never taken from the trusted ones. Nobody may have anything else, nor what is denied here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable

from chunker.record import PathRecord
from peer.identity import PeerId

from .narinfo import fingerprint
from .signing import KeyRing


def policy(
    configured: Collection[PeerId],
    trusted: KeyRing,
    publish: KeyRing,
    pool_keys: Callable[[PeerId], Iterable[KeyRing]] = lambda peer: (),
    denies: Callable[[str], object] = lambda store_path: None,
) -> Callable[[PeerId, PathRecord], bool]:
    """`pool_keys`: of the pools in which a peer is at this moment; `denies`: whether nobody may
    have a store path (gateway.policy)."""

    def may_have(asker: PeerId, record: PathRecord) -> bool:
        if denies(record.store_path):
            return False
        if is_signed(record, publish):
            return True
        if asker in configured and is_signed(record, trusted):
            return True
        return any(is_signed(record, keys) for keys in pool_keys(asker))

    return may_have


def audience(
    rings: Callable[[], Iterable[KeyRing]],
    denies: Callable[[str], object] = lambda store_path: None,
) -> Callable[[PathRecord], Hashable]:
    """Which of `rings` signed a record, and whether it is denied. They must be all that the policy
    looks at: then records with the same audience are for the same askers (peer.catalogue)."""
    return lambda record: (
        bool(denies(record.store_path)),
        *(is_signed(record, ring) for ring in rings()),
    )


def is_signed(record: PathRecord, keys: KeyRing) -> bool:
    text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    return bool(keys.verified(text, record.signatures))
