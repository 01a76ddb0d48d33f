"""Several members with gateways in front of them, and upstreams that stop where the test says."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import trio

from chunker.record import PathRecord
from gateway.delivery import Deliveries
from gateway.errors import UpstreamError
from gateway.narinfo import Narinfo
from gateway.upstream import FileCache
from peer.identity import PeerId
from tests.gateway.test_substituter import KEY, Border, write_cache
from tests.peer.office import Office, until

PIECE_BYTES = 262_144


class Tap(FileCache):
    """Gives `open_bytes` of each NAR, then waits for more to be let through. `begun`: how many
    NARs were asked for; `has`: whether it has any."""

    def __init__(self, directory: Path, record: PathRecord, nar: bytes) -> None:
        write_cache(directory, record, nar)
        super().__init__(f"file://{directory}", directory)
        self.begun = 0
        self.has = True
        self.fails = False
        self._open_bytes = 1 << 40
        self._change = trio.Event()

    def let(self, open_bytes: int) -> None:
        self._open_bytes = open_bytes
        self._changed()

    def break_off(self) -> None:
        self.fails = True
        self._changed()

    @asynccontextmanager
    async def nar(self, info: Narinfo) -> AsyncIterator[AsyncIterator[bytes]]:
        self.begun += 1
        if not self.has:
            raise UpstreamError(f"{self.url} does not have it")
        async with super().nar(info) as pieces, aclosing(self._slowly(pieces)) as slow:
            yield slow

    async def _slowly(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        passed = 0
        async for data in pieces:
            for at in range(0, len(data), PIECE_BYTES):
                while passed >= self._open_bytes and not self.fails:
                    await self._change.wait()
                if self.fails:
                    raise UpstreamError(f"{self.url} broke off")
                piece = data[at : at + PIECE_BYTES]
                passed += len(piece)
                yield piece

    def _changed(self) -> None:
        self._change.set()
        self._change = trio.Event()


class Floor:
    """Gateways that know each other, by name."""

    def __init__(self, place: Office) -> None:
        self.place = place
        self.gateways: dict[str, Border] = {}

    def __getitem__(self, name: str) -> Border:
        return self.gateways[name]

    def peer(self, name: str) -> PeerId:
        return self.place.peer(name)

    def deliveries(self, name: str) -> Deliveries:
        return self.gateways[name].substituter.deliveries

    def turns(self, record: PathRecord) -> list[str]:
        """The names in the order in which they should fetch it."""
        one = next(iter(self.gateways.values()))
        names = {self.place.peer(name): name for name in self.gateways}
        return [names[peer] for peer in one.node.swarm.office.rank(record)]


@asynccontextmanager
async def floor(place: Office, upstreams: dict[str, tuple[FileCache, ...]]) -> AsyncIterator[Floor]:
    """One gateway for each name in `upstreams`, with these. All rank alike."""
    found = Floor(place)
    async with trio.open_nursery() as nursery:
        for name, caches in upstreams.items():
            found.gateways[name] = Border(
                await place.start(name, "gateway", *found.gateways), caches
            )
            await nursery.start(found.gateways[name].substituter.run)
        sharing = sum(bool(caches) for caches in upstreams.values())
        record = write_nothing()
        nodes = [gateway.node for gateway in found.gateways.values()]
        await until(lambda: all(len(n.swarm.office.rank(record)) == sharing for n in nodes))
        yield found
        nursery.cancel_scope.cancel()


def write_nothing() -> PathRecord:
    from tests.gateway.test_substituter import signed_path

    return signed_path("nothing", KEY, 1)[0]
