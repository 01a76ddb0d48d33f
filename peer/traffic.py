"""The books of a swarm: which bytes came from whom and went to whom, how fast, and for what. Pure.

`swarm_bytes` are payloads of blocks as they came, `duplicate_bytes` those among them that were of
no use: nobody asked for them any more, or they were here already. Transfers under way know what is
done of their NarSize, at which rate, and who gave how much of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chunker.digest import ManifestId
from chunker.record import PathRecord

from .effects import Keep
from .identity import PeerId
from .rates import Rate

ACCOUNTS_MAX = 4096


@dataclass(slots=True)
class Account:
    """One peer, in bytes of block payloads."""

    received: Rate = field(default_factory=Rate)
    sent: Rate = field(default_factory=Rate)


@dataclass(slots=True)
class Transfer:
    """One NAR on its way from peers, in plain bytes."""

    store_path: str
    size: int
    done: int
    rate: Rate = field(default_factory=Rate)
    sources: dict[PeerId, int] = field(default_factory=dict)


class Traffic:
    def __init__(self) -> None:
        self.swarm_bytes = 0
        self.duplicate_bytes = 0
        self.kept_bytes = 0
        """Plain, of the blocks that were of use."""
        self.accounts: dict[PeerId, Account] = {}
        self.transfers: dict[ManifestId, Transfer] = {}
        self._sent: dict[object, int] = {}

    def account(self, peer: PeerId) -> Account:
        if (account := self.accounts.get(peer)) is not None:
            return account
        if len(self.accounts) >= ACCOUNTS_MAX:
            del self.accounts[next(iter(self.accounts))]
        account = self.accounts[peer] = Account()
        return account

    def received(self, now: float, peer: PeerId, payload_bytes: int, *, useful: bool) -> None:
        """A block came from `peer`."""
        self.swarm_bytes += payload_bytes
        if not useful:
            self.duplicate_bytes += payload_bytes
        self.account(peer).received.add(now, payload_bytes)

    def sent(self, now: float, peer: PeerId, session: object, so_far: int) -> bool:
        """`session` has sent `so_far` bytes to `peer`; whether that is more than before."""
        more = so_far - self._sent.get(session, 0)
        if more > 0:
            self._sent[session] = so_far
            self.account(peer).sent.add(now, more)
        return more > 0

    def over(self, session: object) -> None:
        self._sent.pop(session, None)

    def begin(self, now: float, wanted: ManifestId, record: PathRecord, missing_bytes: int) -> None:
        size = record.nar_size
        transfer = self.transfers[wanted] = Transfer(record.store_path, size, size - missing_bytes)
        transfer.rate.add(now, 0)

    def kept(self, now: float, keep: Keep) -> None:
        length = len(keep.block.data)
        self.kept_bytes += length
        for wanted, _ in keep.places:
            if (transfer := self.transfers.get(wanted)) is not None:
                transfer.done += length
                transfer.rate.add(now, length)
                transfer.sources[keep.peer] = transfer.sources.get(keep.peer, 0) + length

    def to_come(self) -> int:
        """Of all transfers under way."""
        return sum(one.size - one.done for one in self.transfers.values())

    def end(self, wanted: ManifestId) -> None:
        self.transfers.pop(wanted, None)
