"""The shell of `acquaintances`: dials whom it says, hangs up on whom it says, sleeps between.

Called from tasks of one trio loop. `session` runs one asking session from the dial to its end and
raises nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import trio

from .acquaintances import Acquaintances
from .identity import Address, PeerId
from .surroundings import Change

log = logging.getLogger(__name__)

Session = Callable[[Address], Awaitable[None]]
HangUp = Callable[[PeerId], Awaitable[None]]


class Dialling:
    def __init__(
        self,
        me: PeerId,
        configured: Sequence[Address],
        chance: Random,
        session: Session,
        hang_up: HangUp,
    ) -> None:
        self.acquaintances = Acquaintances(me, configured)
        self.undecided = {address.peer for address in configured if address.host is not None}
        """Configured peers that were neither reached yet nor failed to be."""
        self._chance = chance
        self._session = session
        self._hang_up = hang_up
        self._joined: dict[object, tuple[PeerId, str | None]] = {}
        self._nursery: trio.Nursery | None = None
        self._changed = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                for address in self.acquaintances.due(trio.current_time()):
                    nursery.start_soon(self._dial, address)
                with trio.move_on_at(self.acquaintances.next_at()):
                    await self._changed.wait()

    def heard(self, address: Address) -> None:
        self.acquaintances.heard(trio.current_time(), address, self._chance.random())
        self._change()

    def joined(self, peer: PeerId, host: str | None, session: object) -> bool:
        """A session with `peer` at `host` begins; False: there is no room, and it is hung up on.
        `left` when it is over."""
        self._joined[session] = (peer, host)
        last = self.acquaintances.joined(trio.current_time(), peer)
        if last is not None and self._nursery is not None:
            log.info("no room for more peers: %s goes", last)
            self._nursery.start_soon(self._hang_up, last)
        self._change()
        return last != peer

    def left(self, session: object) -> None:
        """Nothing, if it never joined."""
        if (joined := self._joined.pop(session, None)) is not None:
            self.acquaintances.left(joined[0])
            self._change()

    def hosts(self) -> dict[PeerId, str | None]:
        """Who is connected, by whichever side, and where from."""
        return dict(self._joined.values())

    def used(self, peer: PeerId) -> None:
        self.acquaintances.used(trio.current_time(), peer)

    def reached(self, peer: PeerId) -> None:
        """It can be asked, or will not be for now."""
        self.undecided.discard(peer)
        self._change()

    def woke(self, change: Change) -> None:
        """After sleep, or with other addresses: what is dead is told so, and all are dialled."""
        if self._nursery is not None:
            for peer, host in self.hosts().items():
                if change.severs(host):
                    self._nursery.start_soon(self._hang_up, peer)
        self.acquaintances.woke(trio.current_time())
        self._change()

    async def settled(self) -> None:
        """Return when each configured peer was reached, or failed to be, once."""
        while self.undecided:
            await self._changed.wait()

    async def _dial(self, address: Address) -> None:
        try:
            await self._session(address)
        finally:
            self.acquaintances.dialled(trio.current_time(), address.peer, self._chance.random())
            self.reached(address.peer)

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
