"""What one look-up heard: a record for each signed content, with the signatures of all answers.

With k of n one cache has the signature of one builder, another that of the other; only together
they admit. A record carries few signatures, so those that count come first, and a liar's junk is
what does not fit. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from chunker.digest import NarHash
from chunker.record import SIGNATURES_MAX, PathRecord

from .content_address import recomputes
from .policy import Policy
from .seeding import NO_MANIFEST
from .trust import Admitted

Content = tuple[str, NarHash, int, tuple[str, ...]]


@dataclass
class Candidates:
    policy: Policy
    admitted: list[Admitted] = field(default_factory=list)
    """In the order in which they were."""
    records: dict[Content, PathRecord] = field(default_factory=dict)
    _had: set[Content] = field(default_factory=set)

    def add(self, record: PathRecord, *, has_nar: bool = True) -> PathRecord | None:
        """The record with what was heard before of the same content; None until a source that has
        the NAR as well (`has_nar`) was heard: what nobody has is not promised to Nix."""
        content = (record.store_path, record.nar_hash, record.nar_size, record.references)
        known = self.records.get(content)
        if known is not None:
            record = self._united(known, record)
        self.records[content] = record
        if has_nar:
            self._had.add(content)
        return record if content in self._had else None

    def _united(self, known: PathRecord, other: PathRecord) -> PathRecord:
        signatures = dict.fromkeys((*known.signatures, *other.signatures))
        counting = self.policy.judge(replace(known, signatures=tuple(signatures))).counting
        best = tuple(dict.fromkeys((*counting, *signatures)))[:SIGNATURES_MAX]
        has_manifest = known.manifest != NO_MANIFEST or other.manifest == NO_MANIFEST
        return replace(
            known if has_manifest else other,
            signatures=best,
            content_address=(known if recomputes(known) else other).content_address,
        )
