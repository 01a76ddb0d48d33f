"""A member that wants everything of everybody, and does not care what it gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peer.messages import WANT_INDEXES_MAX, Want

if TYPE_CHECKING:
    from tests.sim.member import Member
    from tests.sim.world import World

WANTS = 17
"""At once, to each: more blocks than may wait."""
AGAIN_SECONDS = 2.0
TIMES = 3


def flood(world: World, member: Member, life: int, times: int = TIMES) -> None:
    if not times or member.life != life or not member.floods:
        return
    for peer in list(member.links):
        other = world.members[peer]
        for manifest, layout in list(other.layouts.items())[:2]:
            indexes = tuple(range(len(layout.blocks))) * WANT_INDEXES_MAX
            for request in range(WANTS):
                want = Want(1_000_000 + request, manifest, indexes[:WANT_INDEXES_MAX])
                member.say(peer, "heard_want", want, size=110)
    world.clock.later(AGAIN_SECONDS, flood, world, member, life, times - 1)
