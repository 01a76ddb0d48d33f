"""The only maker of `Admitted`, and `Admitted` is the only thing that can be served.

A path is admitted when a trusted key's signature holds over the fingerprint recomputed here from
the record's own fields. Content-addressed paths without a signature are not admitted yet.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass

from chunker.manifest import signature_text
from chunker.record import PathRecord

from .errors import NotTrusted
from .narinfo import fingerprint
from .signing import KeyRing

_ONLY_HERE = object()


@dataclass(frozen=True)
class Admitted:
    """A record and those of its signatures that were verified here. Made by `admit` alone."""

    record: PathRecord
    signatures: tuple[str, ...]
    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        assert made_by is _ONLY_HERE, "only trust.admit makes Admitted"


def admit(record: PathRecord, keys: KeyRing) -> Admitted:
    """Raises NotTrusted if no key of the ring signed exactly these fields."""
    text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    verified = keys.verified(text, record.signatures)
    if not verified:
        names = ", ".join(sorted({s.partition(":")[0] for s in record.signatures})) or "nobody"
        raise NotTrusted(f"no trusted key signed {record.store_path} (signed by: {names})")
    return Admitted(record, verified, _ONLY_HERE)


def trusted_manifest(record: PathRecord, keys: KeyRing) -> bool:
    """A trusted key vouched for this manifest: it settles which of several is right."""
    text = signature_text(record.store_path, record.nar_hash, record.manifest)
    return bool(keys.verified(text, record.manifest_signatures))
