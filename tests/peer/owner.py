"""A member whose upstream brings a NAR block by block, as the test says."""

from __future__ import annotations

from collections.abc import Sequence

from chunker.ingest import Ingest
from chunker.record import PathRecord
from chunker.store import MemoryStore
from peer.fetch import Fetch
from peer.following import Following
from peer.growing import Growing
from peer.messages import Growth
from tests.peer.office import Node, Office, make_path, until

BIG = 12_000_000


class Owner:
    def __init__(self, node: Node, record: PathRecord, nar: bytes) -> None:
        """Others may ask it from now on; `asked` counts how often they do."""
        self.node, self.peer = node, node.peer
        self.record, self.nar = record, nar
        self.asked = 0
        self.growing = Growing(record, node.peer)
        self._cut = MemoryStore()
        ingest = Ingest(self._cut, record.needles)
        ingest.feed(nar)
        self.final, self.manifest = ingest.finish_unchecked()
        node.swarm.office.fetch_for = self.fetch_for
        node.swarm.office.offers_to_fetch(1024)

    async def fetch_for(self, record: PathRecord) -> PathRecord | None:
        self.asked += 1
        self.begin()
        return self.growing.record

    def begin(self) -> None:
        if not self.growing.started:
            self.growing.started = True
            self.node.swarm.office.publish(self.growing)

    def grow(self, blocks: int) -> None:
        """The upstream has brought so many."""
        known = len(self.growing.blocks)
        new = list(self.manifest.blocks[known:blocks])
        self.node.store.put([self._cut.get(wanted) for wanted in new])
        self.growing.rewrites = self.manifest.rewrites
        self.growing.extend(new, self.manifest.lengths[known:blocks])
        self.tell()

    def finish(self) -> None:
        """The NAR is whole, and was what was signed."""
        encoded, record = self._cut.manifest(self.final), self.growing.record
        assert encoded is not None
        self.node.store.put_manifest(self.final, encoded, verified=True)
        self.growing.state, self.growing.final = Growth.WHOLE, self.final
        self.grow(len(self.manifest.blocks))
        whole = PathRecord(
            record.store_path, record.nar_hash, record.nar_size, record.references,
            record.signatures, record.content_address, self.final,
        )  # fmt: skip
        self.node.store.put_record(whole)
        self.node.catalogue.add(whole)

    def fail(self) -> None:
        self.growing.state = Growth.FAILED
        self.tell()

    def tell(self) -> None:
        self.node.swarm.office.grew(self.growing)


async def members(place: Office, *names: str) -> list[Node]:
    """All know each other."""
    found = [await place.start(name, "gateway", *names[:at]) for at, name in enumerate(names)]
    for node in found:
        await until(lambda node=node: len(node.swarm.sessions()) == len(names) - 1)  # type: ignore
    return found


async def pair(place: Office) -> tuple[Owner, Node]:
    """One that fetches for all, and another."""
    one, two = await members(place, "one", "two")
    return Owner(one, *make_path("path", BIG)), two


async def follow(node: Node, owner: Owner, public: bool = False) -> Following:
    fetch = await node.swarm.office.ask(owner.peer, owner.growing.record, public)
    assert isinstance(fetch, Following)
    fetch.readers += 1
    return fetch


async def leave(fetch: Fetch) -> None:
    fetch.readers -= 1
    await fetch.close()


async def read(fetch: Fetch, blocks: Sequence[int]) -> bytes:
    return b"".join([bytes(fetch.plain(n, await fetch.block(n))) for n in blocks])


async def read_all(fetch: Following, nar_size: int) -> bytes:
    data, index = b"", 0
    while len(data) < nar_size:
        data += await read(fetch, [index])
        index += 1
    return data
