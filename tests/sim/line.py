"""The internet line of a simulated office: what each machine reads of it, and what of that it could
have had from another.

A download is *needless* when its first byte comes while another machine that this one has a
session with gets the same NAR, or has it. Who looks on knows that at once; machines have to find it
out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import trio

from chunker.record import PathRecord
from gateway.errors import UpstreamError
from peer.messages import Growth

if TYPE_CHECKING:
    from .shells import Machine

PIECE_BYTES = 64 * 1024
PIECE_SECONDS = 0.05


class Line:
    """`copies`: how often bytes of the NAR came through it; `needless`: who need not have."""

    def __init__(self, record: PathRecord) -> None:
        self.copies = 0
        self.needless: list[str] = []
        self.machines: list[Machine] = []
        self._record = record

    def began(self, name: str) -> None:
        self.copies += 1
        reader = next(machine for machine in self.machines if machine.name == name)
        met = reader.node.swarm.sessions()
        others = [
            machine.name
            for machine in self.machines
            if (machine is reader and self._is_whole(machine))
            or (
                machine.node.peer in met
                and not machine.lies
                and (self._is_whole(machine) or _gets_it(machine))
            )
        ]
        if others:
            self.needless.append(f"{trio.current_time():.2f} {name}, not from {', '.join(others)}")

    def _is_whole(self, machine: Machine) -> bool:
        store = machine.node.store
        held = store.record(self._record.store_hash)
        return held is not None and store.is_verified(held.manifest)


def _gets_it(machine: Machine) -> bool:
    growings = [filling.growing for filling in machine.deliveries.running()]
    return any(one.started and one.state is Growth.GROWING for one in growings)


class Upstream:
    """What Deliveries asks of an upstream, for one NAR and one machine; it may break off."""

    url = "sim://upstream"

    def __init__(self, name: str, record: PathRecord, nar: bytes, line: Line) -> None:
        self._info = SimpleNamespace(
            nar_hash=record.nar_hash, nar_size=record.nar_size, url="nar/of-it.nar"
        )
        self.nar_bytes = nar
        self.is_broken = False
        self._name = name
        self._line = line

    async def narinfo(self, store_hash: str) -> Any:
        await trio.sleep(PIECE_SECONDS)
        return self._info

    @asynccontextmanager
    async def nar(self, info: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        async def pieces() -> AsyncGenerator[bytes, None]:
            for at in range(0, len(self.nar_bytes), PIECE_BYTES):
                await trio.sleep(PIECE_SECONDS)
                if self.is_broken:
                    raise UpstreamError(f"{self.url} broke off")
                if at == 0:
                    self._line.began(self._name)
                yield self.nar_bytes[at : at + PIECE_BYTES]

        async with aclosing(pieces()) as source:
            yield source
