"""What the exchange wants done: frozen values, carried out by the swarm in order."""

from __future__ import annotations

from dataclasses import dataclass

from chunker.block import Block
from chunker.digest import ManifestId

from .identity import PeerId
from .messages import Urgency


@dataclass(frozen=True, slots=True)
class SendWant:
    peer: PeerId
    request: int
    manifest: ManifestId
    indexes: tuple[int, ...]
    urgency: Urgency = Urgency.FIRM


@dataclass(frozen=True, slots=True)
class SendCancel:
    """`indexes` of a Want, or empty for all of it."""

    peer: PeerId
    request: int
    indexes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Keep:
    """A verified block that some download wanted; `places` are (manifest, index)."""

    block: Block
    peer: PeerId
    places: tuple[tuple[ManifestId, int], ...]


@dataclass(frozen=True, slots=True)
class Ban:
    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Stuck:
    manifest: ManifestId


Effect = SendWant | SendCancel | Keep | Ban | Stuck
