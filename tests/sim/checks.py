"""What must hold, looked at from outside of the code under test.

no store holds bytes that do not match their id; nothing is kept that nobody wanted
the honest are never banned; who lies to somebody is banned by it, at once
at most two flights a block, at most so many a peer, queues within their limit
a lie about a NAR costs each member that NAR once
the upstream is asked once, and once more for every change of owner
of the bytes that honest members sent, most were of use
all that ends leaves empty books behind
what rots at rest is sent to nobody
who cannot store asks for nothing more, and nobody tells of what it lacks
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chunker.block import Encoded
from chunker.digest import BlockId, ManifestId
from peer.effects import Ban, Effect, Keep, SendCancel, SendWant
from peer.identity import PeerId
from peer.messages import Refuse
from peer.serving import QUEUED_WANTS_MAX
from peer.standing import DEPTH_BLOCKS_MAX
from tests.sim.content import Content

if TYPE_CHECKING:
    from tests.sim.member import Member

COPIES_MAX = 2
FLIGHTS_PER_PEER_MAX = 2 * DEPTH_BLOCKS_MAX
"""As many as it owes, and as many spare ones."""
USEFUL_SHARE_MIN = 0.6

Flights = dict[tuple[int, int], BlockId]


class Violation(AssertionError):
    """A checker saw something that must never be."""


class Checks:
    def __init__(self, seed: int, content: Content) -> None:
        self.useful_bytes = self.honest_bytes = self.bans = self.lies_told = 0
        self.sent_bytes: Counter[PeerId] = Counter()
        self.queue_most = self.flights_most = self.rotten_found = self.unstored = 0
        self._rotten: set[tuple[PeerId, BlockId]] = set()
        self._seed = seed
        self._true, self._lies = content.data, content.lies
        self._flights: dict[PeerId, dict[PeerId, Flights]] = defaultdict(dict)
        self._copies: dict[PeerId, Counter[BlockId]] = defaultdict(Counter)
        self._wasted: dict[PeerId, Counter[ManifestId]] = defaultdict(Counter)
        self._banned: dict[PeerId, set[PeerId]] = defaultdict(set)

    def violated(self, what: str) -> None:
        raise Violation(f"seed {self._seed}: {what}")

    def forget(self, member: Member) -> None:
        """It begins anew, and knows nothing of before."""
        self._flights.pop(member.name, None)
        self._copies.pop(member.name, None)
        self._banned.pop(member.name, None)
        self._wasted.pop(member.name, None)

    # -- asking ----------------------------------------------------------------------------------

    def wanted(self, member: Member, want: SendWant) -> None:
        if want.peer in self._banned[member.name]:
            self.violated(f"{member.name} asks {want.peer}, which it banned")
        flights = self._flights[member.name].setdefault(want.peer, {})
        copies = self._copies[member.name]
        blocks = member.layouts[want.manifest].blocks
        for index in want.indexes:
            wanted = blocks[index]
            flights[want.request, index] = wanted
            copies[wanted] += 1
            if copies[wanted] > COPIES_MAX:
                self.violated(f"{member.name} asks for a block three times at once")
            if wanted in member.store and wanted not in member.filled:
                self.violated(f"{member.name} asks for a block that it holds")
        self.flights_most = max(self.flights_most, len(flights))
        if len(flights) > FLIGHTS_PER_PEER_MAX:
            self.violated(f"{member.name} asks {want.peer} for {len(flights)} blocks at once")

    def cancelled(self, member: Member, cancel: SendCancel) -> None:
        self._landed(member, cancel.peer, cancel.request, cancel.indexes)

    def refused(self, member: Member, peer: PeerId, refusal: Refuse) -> None:
        self._landed(member, peer, refusal.request, refusal.indexes)

    def gone(self, member: Member, peer: PeerId) -> None:
        for wanted in self._flights[member.name].pop(peer, {}).values():
            self._copies[member.name][wanted] -= 1

    def _landed(
        self, member: Member, peer: PeerId, request: int, indexes: Sequence[int]
    ) -> BlockId | None:
        flights, wanted = self._flights[member.name].get(peer, {}), None
        places = [(request, index) for index in indexes]
        for place in places or [place for place in flights if place[0] == request]:
            wanted = flights.pop(place, None)
            if wanted is not None:
                self._copies[member.name][wanted] -= 1
        return wanted

    def books_agree(self, member: Member) -> None:
        """What the exchange waits for is what was asked, and not cancelled, refused or sent."""
        flights = self._flights[member.name]
        for peer, state in member.exchange._peers.items():
            asked = flights.get(peer, {})
            if not (asked or state.owed or state.spare):
                continue
            waits = state.owed.keys() | state.spare.keys()
            if waits != asked.keys():
                self.violated(f"{member.name} and {peer} differ on {sorted(waits ^ asked.keys())}")

    # -- having ----------------------------------------------------------------------------------

    def arrived(
        self, member: Member, peer: PeerId, request: int, index: int, encoded: Encoded,
        effects: Sequence[Effect],
    ) -> None:  # fmt: skip
        """`effects` are what the exchange said to it, and not yet carried out."""
        wanted = self._landed(member, peer, request, (index,))
        lied = wanted is not None and self._true[wanted] != encoded.payload
        bans = [effect.peer for effect in effects if isinstance(effect, Ban)]
        if lied and bans != [peer]:
            self.violated(f"{member.name} was lied to by {peer} and does not ban it")
        if bans and not lied:
            self.violated(f"{member.name} banned the honest {bans[0]}")
        if wanted is None and any(isinstance(effect, Keep) for effect in effects):
            self.violated(f"{member.name} keeps a block that it did not ask for")
        self.lies_told += lied

    def kept(self, member: Member, keep: Keep) -> None:
        block = keep.block
        for manifest, index in keep.places:
            wanted = member.layouts[manifest].blocks[index]
            if block.id != wanted or self._true[wanted] != block.data:
                self.violated(f"{member.name} keeps a block that is not {index}")
        if block.id in member.store and block.id not in member.filled:
            self.violated(f"{member.name} keeps a block twice")
        lie = self._lies.get(block.id)
        if lie is None:
            self.useful_bytes += len(block.data)
            return
        self._wasted[member.name][lie.id] += len(block.data)
        if self._wasted[member.name][lie.id] > lie.record.nar_size:
            self.violated(f"a lie about {lie.path} cost {member.name} more than the NAR")

    def banned(self, member: Member, peer: PeerId, reason: str) -> None:
        self.bans += 1
        self._banned[member.name].add(peer)
        if not member.world.members[peer].lies:
            self.violated(f"{member.name} banned the honest {peer}: {reason}")

    # -- serving ---------------------------------------------------------------------------------

    def queue(self, member: Member, length: int) -> None:
        self.queue_most = max(self.queue_most, length)
        if length > QUEUED_WANTS_MAX:
            self.violated(f"{member.name} lets {length} wants of one peer wait")

    def sent(self, member: Member, peer: PeerId, block: BlockId, data: bytes) -> None:
        if data != self._true[block]:
            self.violated(f"{member.name} sends {peer} a block that rots")
        world = member.world
        if block in self._lies or world.is_flooder(peer) or world.members[peer].is_full:
            return
        self.honest_bytes += len(data)
        self.sent_bytes[member.name] += len(data)

    # -- the disk --------------------------------------------------------------------------------

    def rots(self, member: Member, block: BlockId) -> None:
        self._rotten.add((member.name, block))

    def not_stored(self, member: Member, keep: Keep) -> None:
        self.unstored += 1
        exchange = member.exchange
        if exchange._flights or exchange._downloads:
            self.violated(f"{member.name} cannot store, and asks for more")

    def told(self, member: Member, manifest: ManifestId, index: int) -> None:
        if member.layouts[manifest].blocks[index] not in member.store:
            self.violated(f"{member.name} tells of block {index}, which it does not hold")

    # -- in the end ------------------------------------------------------------------------------

    def ended(self, members: Sequence[Member], *, copies: int, owner_changes: int) -> None:
        if copies > 1 + owner_changes:
            self.violated(f"{copies} asked the upstream, and {owner_changes} owners were lost")
        share = self.useful_bytes / max(self.honest_bytes, 1)
        if share < USEFUL_SHARE_MIN:
            self.violated(f"only {share:.2f} of the bytes were of use")
        for member in members:
            for wanted, data in member.store.items():
                if self._true[wanted] != data and (member.name, wanted) not in self._rotten:
                    self.violated(f"the store of {member.name} holds what it should not")
            if member.is_up and not member.by_manifest:
                self._books(member)

    def _books(self, member: Member) -> None:
        exchange = member.exchange
        owed = [s for s in exchange._peers.values() if s.owed or s.spare or s.owed_bytes]
        if exchange._flights or exchange._wanted or exchange._downloads or owed:
            self.violated(f"{member.name} has books that are not empty")
        if any(self._flights[member.name].values()):
            self.violated(f"{member.name} ends and waits for blocks that it did not cancel")
