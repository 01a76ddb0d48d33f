"""One path, while its sources are asked. Pure.

    ask(source) --said(what it has)--> united with what others said of the same content --admits?-->
                --said(nothing)
                --failed

What counts as the same content is what a signature covers: store path, NarHash, NarSize,
references. Signatures from all sources for one content are united, and the first content that
`admits` takes is found; a fast answer that nobody trusted signed is one candidate more and no end,
and what nobody has is not found, whoever vouches for it (narswarm sign).

| settled because      | means                                                               |
|----------------------|---------------------------------------------------------------------|
| found                | served at once; what still comes adds signatures for the next time  |
| every source said no | absent, and may be remembered for a while                           |
| nobody is awaited    | not found now, nothing to remember: one failed or may still answer  |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from chunker.record import SIGNATURES_MAX, PathRecord

from .content_address import recomputes
from .errors import NotTrusted
from .narinfo import SIGNATURES_ONLY_URL, Narinfo
from .policy import Policy
from .trust import Admitted, admit

Admits = Callable[[PathRecord, frozenset[str]], Admitted | None]
"""Whether a record is trusted that these sources vouch for: one may have keys of its own."""
Holder = tuple[str, Narinfo]
"""A source that has a path, and how it described it."""


class _Content:
    """One signed content: who told of it, and what they signed it with."""

    __slots__ = ("addresses", "admitted", "holders", "is_had", "record", "signatures", "sources")

    def __init__(self, record: PathRecord) -> None:
        self.record = record
        self.sources: list[str] = []
        self.addresses: dict[str, None] = {}
        """CA fields are not signed: each that was said is tried."""
        self.signatures: dict[str, None] = {}
        self.holders: list[Holder] = []
        self.is_had = False
        """Somebody has the NAR as well, and not signatures alone."""
        self.admitted: Admitted | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """One signed content and all that was said of it. `record` has the signatures of all, as many
    as there were, and of the content addresses the first that recomputes."""

    record: PathRecord
    sources: frozenset[str]


def admitted_by(record: PathRecord, policies: Iterable[Policy]) -> Admitted | None:
    """By the first of `policies` that is content with it."""
    for policy in policies:
        try:
            return admit(record, policy)
        except NotTrusted:
            continue
    return None


class Search:
    def __init__(self, store_hash: str, admits: Admits, *, hears_all: bool = False) -> None:
        """`hears_all`: what was found does not settle it, for others may contradict."""
        self.store_hash = store_hash
        self._admits = admits
        self._hears_all = hears_all
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
        content = self._contents.get(key)
        if content is None:
            content = self._contents[key] = _Content(record)
        known = len(content.signatures), len(content.addresses)
        content.sources.append(source)
        content.signatures.update(dict.fromkeys(record.signatures))
        content.addresses[record.content_address] = None
        if info is not None and info.url == SIGNATURES_ONLY_URL:
            info = None
        else:
            content.is_had = True
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
        if failed:
            self._is_sure = False
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
        return (self._found is not None and not self._hears_all) or not self._awaited

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

    def heard(self) -> list[Heard]:
        """Every content that was said, admitted or not, in the order in which they came."""
        return [
            Heard(_united(content, _address(content)), frozenset(content.sources))
            for content in self._contents.values()
        ]

    def _admit(self, content: _Content) -> Admitted | None:
        if not content.is_had:
            return None
        sources = frozenset(content.sources)
        signatures = tuple(content.signatures)
        for address in content.addresses:
            united = _united(content, address)
            admitted = self._admits(united, sources)
            if admitted is not None and len(signatures) > SIGNATURES_MAX:
                # A record holds so many. None is cut off before the trusted ones were known: who
                # sends sixteen of nobody's would push them out.
                kept = tuple(dict.fromkeys(admitted.signatures + signatures))[:SIGNATURES_MAX]
                admitted = self._admits(replace(united, signatures=kept), sources)
            if admitted is not None:
                return admitted
        return None


def _united(content: _Content, address: str) -> PathRecord:
    record, signatures = content.record, tuple(content.signatures)
    if signatures == record.signatures and address == record.content_address:
        return record
    return replace(record, signatures=signatures, content_address=address)


def _address(content: _Content) -> str:
    for address in content.addresses:
        if recomputes(replace(content.record, content_address=address)):
            return address
    return content.record.content_address
