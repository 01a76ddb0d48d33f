"""Who else is on this network: mDNS and beacon, begun anew whenever the network is another one.

Sleep and a change of addresses are told to `woke`, so that those we know are dialled again at once;
then everything is announced again from the addresses of now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import trio

from .beacon import BeaconDiscovery
from .identity import Address, Identity
from .surroundings import Change, networks, watch


class Discovery:
    """`addresses` are asked for again after each change; with `announces` false nothing is said or
    heard on the network, and only changes are told."""

    def __init__(
        self,
        identity: Identity,
        addresses: Callable[[], Sequence[Address]],
        chance: Random,
        *,
        announces: bool,
    ) -> None:
        self._identity = identity
        self._addresses = addresses
        self._chance = chance
        self._announces = announces
        self._round = trio.CancelScope()

    async def run(self, found: Callable[[Address], None], woke: Callable[[Change], None]) -> None:
        """Until cancelled."""

        def changed(change: Change) -> None:
            woke(change)
            self._round.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, changed)
            while True:
                with trio.CancelScope() as self._round:
                    await self._speak_and_listen(found)

    async def _speak_and_listen(self, found: Callable[[Address], None]) -> None:
        if self._announces:
            from .lan import LanDiscovery  # zeroconf: a third of a second at start

            addresses = self._addresses()
            here = await trio.to_thread.run_sync(networks)
            beacon = BeaconDiscovery(self._identity.peer_id, addresses, here, self._chance)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(LanDiscovery(self._identity, addresses).run, found)
                nursery.start_soon(beacon.run, found)
        await trio.sleep_forever()
