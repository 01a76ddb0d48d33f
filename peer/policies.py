"""What the swarm is told by the layer above, and what it counts for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from chunker.record import PathRecord

from .identity import PeerId


@dataclass(slots=True)
class Tally:
    """What one peer gave us since the start."""

    role: str = ""
    pool: str = ""
    blocks: int = 0
    wire_bytes: int = 0
    connected: bool = False


@dataclass(frozen=True)
class Policies:
    """The decisions that belong to the layer above. `serves`: may this peer have a session whoever
    it turns out to be; `asks`: do we want one to it; `knows`: is it configured here, or a member of
    a pool of ours at this moment, so that it may have a session and say Please, and may be asked
    about private paths."""

    serves: Callable[[PeerId], bool]
    asks: Callable[[PeerId], bool]
    knows: Callable[[PeerId], bool]
    trusted_manifest: Callable[[PathRecord], bool]
    admits: Callable[[PathRecord], bool]
    pulls_through: bool = False


@dataclass
class Counters:
    bans: int = 0
    wire_bytes: int = 0
    peers: dict[PeerId, Tally] = field(default_factory=dict)
