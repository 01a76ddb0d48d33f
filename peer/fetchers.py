"""Which member of an office asks the upstream for a NAR. Pure.

Weighted rendezvous hashing (Thaler and Ravishankar, "A name-based mapping scheme for rendezvous",
1996; weights as -share / ln(hash)): all members with the same view rank alike without a word said,
one that comes or goes moves only its own share, and twice the share means twice the NARs.

    fetches --said no, silent, or went away in the middle--> passed over for PASSED_OVER_SECONDS
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import blake3

from chunker.digest import NarHash

from .identity import PeerId

PASSED_OVER_SECONDS = 30.0
FAILURES_KEPT_MAX = 1024


class Fetchers:
    def __init__(self) -> None:
        self._failed: dict[PeerId, float] = {}

    def rank(self, now: float, nar_hash: NarHash, shares: Mapping[PeerId, int]) -> list[PeerId]:
        """Whose turn it is, best first. `shares` in any one unit; who has 0 never fetches. Those
        that failed lately come last: better than nobody."""
        scores = {peer: _score(nar_hash, peer, share) for peer, share in shares.items() if share}
        return sorted(
            scores, key=lambda peer: (self._is_passed_over(now, peer), -scores[peer], peer)
        )

    def failed(self, now: float, peer: PeerId) -> None:
        if len(self._failed) >= FAILURES_KEPT_MAX:
            self._failed.clear()
        self._failed[peer] = now

    def _is_passed_over(self, now: float, peer: PeerId) -> bool:
        return now < self._failed.get(peer, float("-inf")) + PASSED_OVER_SECONDS


def _score(nar_hash: NarHash, peer: PeerId, share: int) -> float:
    digest = blake3.blake3(nar_hash + peer.encode()).digest()
    chance = ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / 2**52  # never 0, never 1
    return -share / math.log(chance)
