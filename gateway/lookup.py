"""One path, while its sources are asked. Pure.

    ask(source) --said(what it has)--> united with what others said of the same content --admits?-->
                --said(nothing)
                --failed

What counts as the same content is what a signature covers: store path, NarHash, NarSize,
references. Signatures from all sources for one content are united, and the first content that
`admits` takes is found; a fast answer that nobody trusted signed is one candidate more and no end.

| settled because      | means                                                               |
|----------------------|---------------------------------------------------------------------|
| found                | served at once; what still comes adds signatures for the next time  |
| every source said no | absent, and may be remembered for a while                           |
| nobody is awaited    | not found now, nothing to remember: one failed or may still answer  |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from chunker.record import SIGNATURES_MAX, PathRecord

from .errors import NotTrusted
from .narinfo import Narinfo
from .signing import KeyRing
from .trust import Admitted, admit

Admits = Callable[[PathRecord, frozenset[str]], Admitted | None]
"""Whether a record is trusted that these sources vouch for: one may have keys of its own."""
Holder = tuple[str, Narinfo]
"""A source that has a path, and how it described it."""


@dataclass
class _Content:
    """One signed content: who told of it, and what they signed it with."""

    record: PathRecord
    sources: list[str] = field(default_factory=list)
    addresses: dict[str, None] = field(default_factory=dict)
    """CA fields are not signed: each that was said is tried."""
    signatures: dict[str, None] = field(default_factory=dict)
    holders: list[Holder] = field(default_factory=list)
    admitted: Admitted | None = None


def admitted_by(record: PathRecord, rings: Iterable[KeyRing]) -> Admitted | None:
    """By the first of `rings` that signed it."""
    for keys in rings:
        try:
            return admit(record, keys)
        except NotTrusted:
            continue
    return None


class Search:
    def __init__(self, store_hash: str, admits: Admits) -> None:
        self.store_hash = store_hash
        self._admits = admits
        self._contents: dict[object, _Content] = {}
        self._found: _Content | None = None
        self._awaited: set[str] = set()
        self._others: set[str] = set()
        self._is_sure = True

    def ask(self, source: str, *, awaited: bool = True) -> None:
        """`source` will say something, or fail. One that is not `awaited` may come in time."""
        (self._awaited if awaited else self._others).add(source)

    def said(self, source: str, record: PathRecord | None, info: Narinfo | None = None) -> bool:
        """Whether this changed what was found. A source may say several things, before `done`."""
        if record is None:
            return False
        key = (record.store_path, record.nar_hash, record.nar_size, record.references)
        content = self._contents.setdefault(key, _Content(record))
        known = len(content.signatures), len(content.addresses)
        content.sources.append(source)
        content.signatures.update(dict.fromkeys(record.signatures))
        content.addresses[record.content_address] = None
        if info is not None:
            content.holders.append((source, info))
        if content.admitted is not None and known == (
            len(content.signatures), len(content.addresses)
        ):  # fmt: skip
            return content is self._found and info is not None
        admitted = self._admit(content)
        if admitted is None:
            return False
        content.admitted = admitted
        self._found = self._found or content
        return content is self._found

    def done(self, source: str, *, failed: bool = False) -> None:
        self._is_sure = self._is_sure and not failed
        self._awaited.discard(source)
        self._others.discard(source)

    @property
    def found(self) -> Admitted | None:
        return None if self._found is None else self._found.admitted

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Who has what was found, the first to say so first."""
        return () if self._found is None else tuple(self._found.holders)

    @property
    def is_settled(self) -> bool:
        return self._found is not None or not self._awaited

    @property
    def is_over(self) -> bool:
        """Nobody is left to say anything."""
        return not self._awaited and not self._others

    @property
    def is_absent(self) -> bool:
        """Every source that there is said so, or said what nobody trusted signed."""
        return self.is_over and self._found is None and self._is_sure

    def refused(self) -> list[PathRecord]:
        """Once it is over: what was said and could not be served."""
        contents = self._contents.values()
        return [content.record for content in contents if content.admitted is None]

    def rivals(self) -> list[Admitted]:
        """Other contents for the same path that were trusted as well: somebody's build differs."""
        others = (content for content in self._contents.values() if content is not self._found)
        return [content.admitted for content in others if content.admitted is not None]

    def _admit(self, content: _Content) -> Admitted | None:
        sources = frozenset(content.sources)
        signatures = tuple(content.signatures)
        for address in content.addresses:
            united = replace(content.record, content_address=address, signatures=signatures)
            admitted = self._admits(united, sources)
            if admitted is not None and len(signatures) > SIGNATURES_MAX:
                # A record holds so many. None is cut off before the trusted ones were known: who
                # sends sixteen of nobody's would push them out.
                kept = tuple(dict.fromkeys(admitted.signatures + signatures))[:SIGNATURES_MAX]
                admitted = self._admits(replace(united, signatures=kept), sources)
            if admitted is not None:
                return admitted
        return None
