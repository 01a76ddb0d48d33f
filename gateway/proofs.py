"""Content-addressed NARs that nobody vouches for: seen to be what their address says, or not.

Such a record's NarHash and NarSize are anybody's word (gateway.content_address), so a NAR that
matches them proves nothing yet: the content must be hashed as its address says, before the last
block leaves and before the path counts as held. A record that was disproved is not believed for a
while, for another source may have the true one; so is one whose NAR nobody had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chunker.digest import Bytes
from chunker.errors import NarMismatch
from chunker.record import PathRecord

from .content_address import ContentCheck, binds_nar_hash, recomputes
from .errors import Unproven

KEPT_MAX = 10_000
DISPROVED_SECONDS = 600.0
UNHEARD_OF_SECONDS = 30.0

_Key = tuple[str, bytes, int, str]


class Proofs:
    """`vouches`: whether signatures say that a record's NarHash is right. May be asked in
    threads."""

    def __init__(self, vouches: Callable[[PathRecord], bool]) -> None:
        self._vouches = vouches
        self._proven: set[_Key] = set()
        self._disproved: dict[_Key, float] = {}

    def check(self, record: PathRecord) -> ContentCheck | None:
        """To be fed the whole NAR; None where NarHash says it all, or it was proven before."""
        if not recomputes(record) or binds_nar_hash(record) or _key(record) in self._proven:
            return None
        return None if self._vouches(record) else ContentCheck(record)

    def prove(self, record: PathRecord, pieces: Iterable[Bytes]) -> None:
        """Raises NarMismatch; Unproven for what may be right; and what `pieces` raises."""
        check = self.check(record)
        if check is None:
            return
        for data in pieces:
            check.feed(data)
        if not check.holds():
            if check.is_undecided:
                raise Unproven("its address does not say which kind of file it is: only a "
                               "signature would")  # fmt: skip
            raise NarMismatch(f"the content is not that of the address {record.content_address}")
        self.proven(record)

    def proven(self, record: PathRecord) -> None:
        if len(self._proven) >= KEPT_MAX:
            self._proven.clear()
        self._proven.add(_key(record))

    def disproved(self, now: float, record: PathRecord, seconds: float = DISPROVED_SECONDS) -> None:
        """Of no consequence for what is vouched for: that is as it was signed."""
        if not record.content_address or self._vouches(record):
            return
        if len(self._disproved) >= KEPT_MAX:
            self._disproved.clear()
        self._disproved[_key(record)] = now + seconds

    def is_disproved(self, now: float, record: PathRecord) -> bool:
        return self._disproved.get(_key(record), float("-inf")) > now


def _key(record: PathRecord) -> _Key:
    return record.store_path, record.nar_hash, record.nar_size, record.content_address
