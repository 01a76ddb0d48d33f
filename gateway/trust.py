"""The only maker of `Admitted`, and `Admitted` is the only thing that can be served.

A path is admitted when the policy is content with the signatures that hold over the fingerprint
recomputed here from the record's own fields, or when its content address recomputes to its store
path. The second proves less: NarHash and NarSize are then anybody's word, and the NAR must be seen
to have that content before it counts (`Admitted.vouched`, gateway.content_address).
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, replace

from chunker.manifest import signature_text
from chunker.record import PathRecord

from .content_address import recomputes
from .errors import NotTrusted
from .policy import Judgement, Policy
from .signing import KeyRing

_ONLY_HERE = object()


@dataclass(frozen=True)
class Admitted:
    """A record and those of its signatures that count. Made by `admit` alone. The record has a
    content address only if that recomputes to its store path."""

    record: PathRecord
    signatures: tuple[str, ...]
    vouched: bool
    """Signatures say that this is the NAR; otherwise its content must."""
    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        assert made_by is _ONLY_HERE, "only trust.admit makes Admitted"


def admit(record: PathRecord, policy: Policy) -> Admitted:
    """Raises NotTrusted, which says which rule was not met, who signed, and what is missing."""
    judgement = policy.judge(record)
    if judgement.forbidden:
        raise NotTrusted(why_not(record, judgement))
    addressed = recomputes(record)
    if not judgement.admitted_by and not addressed:
        raise NotTrusted(why_not(record, judgement))
    if record.content_address and not addressed:
        record = replace(record, content_address="")
    return Admitted(record, judgement.counting, bool(judgement.admitted_by), _ONLY_HERE)


def why_not(record: PathRecord, judgement: Judgement) -> str:
    by = [f"{name} ({_MARKS[worth]})" if worth in _MARKS else name
          for name, worth in judgement.signers]  # fmt: skip
    reasons = "; ".join(judgement.reasons)
    return f"{record.store_path}: {reasons} (signed by: {', '.join(by) or 'nobody'})"


_MARKS = {
    "names": "may not vouch for this name",
    "denied": "denied",
    "wrong": "the signature does not hold",
    "unknown": "not trusted here",
}


def trusted_manifest(record: PathRecord, keys: KeyRing) -> bool:
    """A trusted key vouched for this manifest: it settles which of several is right."""
    text = signature_text(record.store_path, record.nar_hash, record.manifest)
    return bool(keys.verified(text, record.manifest_signatures))
