"""Swarms of one process: real machines and shells, streams and stores in memory."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from chunker.digest import ManifestId, NarHash, nix32_encode
from chunker.ingest import Ingest
from chunker.record import PathRecord, needles_of
from chunker.store import BlockStore, MemoryStore
from peer.catalogue import Catalogue
from peer.identity import Address, Identity, PeerId
from peer.swarm import Policies, Swarm
from peer.transport import MemoryNetwork, MemoryTransport
from tests.golden.samples import file_nar, sample_bytes

SECONDS_MAX = 30.0


def make_path(name: str, size: int) -> tuple[PathRecord, bytes]:
    """A store path that nobody signed, and its NAR of about `size` bytes."""
    store_hash = nix32_encode(hashlib.sha256(name.encode()).digest()[:20])
    nar = file_nar(sample_bytes(size, name))
    record = PathRecord(
        f"/nix/store/{store_hash}-{name}", NarHash(hashlib.sha256(nar).digest()), len(nar),
        (), ("test-1:AAAA",), "", ManifestId(bytes(32)),
    )  # fmt: skip
    return record, nar


def hold(store: BlockStore, record: PathRecord, nar: bytes) -> PathRecord:
    ingest = Ingest(store, needles_of(record.store_path, record.references))
    ingest.feed(nar)
    manifest, _ = ingest.finish(record.nar_hash, record.nar_size)
    record = replace(record, manifest=manifest)
    store.put_record(record)
    return record


class Node:
    def __init__(self, office: Office, name: str, role: str, peers: tuple[str, ...]) -> None:
        self.peer = office.peer(name)
        self.store = office.stores.setdefault(name, MemoryStore())
        self.catalogue = Catalogue(self.store, name.encode().ljust(32), office.may_have)
        configured = [Address(office.peer(other), "127.0.0.1", 1) for other in peers]
        self.swarm = Swarm(
            MemoryTransport(office.network, self.peer),
            self.store,
            self.catalogue,
            role,
            Policies(
                serves=lambda _: True,
                asks=lambda _: role != "seed",
                knows=office.knows,
                trusted_manifest=lambda _: False,
                admits=lambda _: True,
                pulls_through=role == "peer",
            ),
            configured,
            random.Random(name),
        )


class Office:
    """`may_have(asker, record)` is every node's policy; everybody may have everything at first."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = MemoryNetwork()
        self.stores: dict[str, MemoryStore] = {}
        self.nodes: dict[str, Node] = {}
        self.allowed: Callable[[PeerId, PathRecord], bool] = lambda asker, record: True
        self.known: Callable[[PeerId], bool] = lambda peer: True
        self._nursery = nursery

    def knows(self, peer: PeerId) -> bool:
        return self.known(peer)

    def may_have(self, asker: PeerId, record: PathRecord) -> bool:
        return self.allowed(asker, record)

    @staticmethod
    def peer(name: str) -> PeerId:
        return Identity(hashlib.sha256(name.encode()).digest()).peer_id

    async def start(self, name: str, role: str, *peers: str) -> Node:
        """Returns once it has reached `peers`."""
        node = self.nodes[name] = Node(self, name, role, peers)
        await self._nursery.start(node.swarm.run)
        await node.swarm.dialling.settled()
        assert len(node.swarm.sessions()) >= len(peers)
        return node


async def until(condition: Callable[[], bool]) -> None:
    """Poll; the office's deadline bounds it."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.01)


@asynccontextmanager
async def office() -> AsyncIterator[Office]:
    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            yield Office(nursery)
            nursery.cancel_scope.cancel()
