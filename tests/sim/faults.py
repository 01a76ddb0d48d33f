"""What goes wrong, as values drawn from the seed.

| fault      | what happens to the member (until the world heals, where it can)                   |
|------------|------------------------------------------------------------------------------------|
| liar       | flips a bit in every block it sends                                                |
| silent     | takes wants and questions and sends nothing                                        |
| drip       | sends 8 KiB a second                                                               |
| refuses    | announces everything and refuses every want, as busy or as not here                |
| poison     | its manifest of a NAR is a lie: one that it holds, or one that grows behind it     |
| flood      | wants everything of everybody, again and again                                     |
| loss       | one of its connections breaks, and is made anew                                    |
| delay      | all it says and hears takes up to half a second longer                             |
| clog       | nothing it says arrives for some seconds, then all of it                           |
| partition  | nothing that it says to half of the others arrives, until those connections break  |
| crash      | down for some seconds; its store is kept, lost, or torn at the end                 |
| leaves     | goes away, and comes back with its store when the world is healed                  |
| owner      | who gets the NAR for all crashes in the middle, or its upstream fails or stalls    |
| rots       | a bit flips in some of the blocks that it holds                                    |
| full       | its disk takes nothing for some seconds                                            |
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

BEHAVIOURS = ("liar", "silent", "drip", "refuses", "poison", "flood")
EVENTS = ("loss", "delay", "clog", "partition", "crash", "leaves", "owner")
DISK = ("rots", "full")
WITHOUT_DISK = BEHAVIOURS + EVENTS
FAULTS = WITHOUT_DISK + DISK
VARIANTS = {
    "refuses": ("busy", "not-here"),
    "crash": ("kept", "lost", "torn"),
    "owner": ("crash", "fails", "stalls"),
}
SEED_HAS_FAULT = 0.6
BEHAVES_SHARE = 0.25
EVENTS_SHARE = 0.5
DISK_SHARE = 0.3
BEGIN_SECONDS_MAX = 6.0
LAST_SECONDS_MAX = 8.0
FLOODS_MAX = 2


@dataclass(frozen=True, slots=True)
class Fault:
    kind: str
    member: str
    when: float = 0.0
    seconds: float = 0.0
    variant: str = ""


def draw(
    chance: random.Random, names: Sequence[str], owner: str, kinds: Sequence[str]
) -> list[Fault]:
    """`owner` is whose turn it will be to ask the upstream. Each seed leaves some kinds out, so
    that rare mixtures are seen as well. Disks come last: seeds with a story were found without."""
    disk = [kind for kind in kinds if kind in DISK]
    kinds = [kind for kind in kinds if kind not in DISK]
    kinds = [kind for kind in kinds if len(kinds) == 1 or chance.random() < SEED_HAS_FAULT]
    faults = []
    behaviours = [kind for kind in kinds if kind in BEHAVIOURS]
    if behaviours:
        ill = chance.sample(names, max(1, int(len(names) * BEHAVES_SHARE * chance.random())))
        if "poison" in behaviours and chance.random() < 0.5:
            ill = [name for name in ill if name != owner]
            faults.append(_fault(chance, "poison", owner))
        faults += [_fault(chance, chance.choice(behaviours), name) for name in ill]
        floods = [fault for fault in faults if fault.kind == "flood"]
        faults = [fault for fault in faults if fault not in floods[FLOODS_MAX:]]
    events = [kind for kind in kinds if kind in EVENTS and kind != "owner"]
    if events:
        for _ in range(max(1, int(len(names) * EVENTS_SHARE * chance.random()))):
            faults.append(_fault(chance, chance.choice(events), chance.choice(names)))
    if "owner" in kinds:
        faults.append(_fault(chance, "owner", owner))
    for kind in disk:
        if len(disk) == 1 or chance.random() < SEED_HAS_FAULT:
            count = max(1, int(len(names) * DISK_SHARE * chance.random()))
            faults += [_fault(chance, kind, name) for name in chance.sample(names, count)]
    return faults


def _fault(chance: random.Random, kind: str, member: str) -> Fault:
    variant = chance.choice(VARIANTS.get(kind, ("",)))
    return Fault(
        kind, member, chance.random() * BEGIN_SECONDS_MAX,
        0.5 + chance.random() * LAST_SECONDS_MAX, variant,
    )  # fmt: skip
