"""Run the simulated swarm: python -m tests.sim SEED, or --seeds N --peers M --faults all --json.

--growth: bytes and messages for each peer in a swarm of 10, 100, 1,000 and 10,000.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Iterable

from tests.sim.faults import FAULTS
from tests.sim.growth import PEERS, grow
from tests.sim.shells import LINE_FAULTS, SHELL_FAULTS, Scenario
from tests.sim.world import Outcome, Violation, World


def main() -> int:
    options = _options()
    logging.disable(logging.CRITICAL)
    if options.growth:
        rows = [grow(peers) for peers in PEERS]
        print(json.dumps(rows) if options.json else "\n".join(map(str, rows)))
        return 0
    every = SHELL_FAULTS if options.shells else FAULTS
    faults = {"all": every, "none": ()}.get(options.faults, tuple(options.faults.split(",")))
    seeds = [options.seed] if options.seed is not None else range(options.seeds)
    if options.shells:
        return _shells(seeds, faults, options.json)
    began, outcomes = time.perf_counter(), []
    for seed in seeds:
        try:
            outcomes.append(World(seed, options.peers, faults).run())
        except Violation as violation:
            print(violation, file=sys.stderr)
            again = f"again: python -m tests.sim {seed} --peers {options.peers}"
            print(f"{again} --faults {options.faults}", file=sys.stderr)
            return 1
    summary = _summary(outcomes, time.perf_counter() - began)
    if options.seed is not None:
        summary |= dataclasses.asdict(outcomes[0])
    if options.json:
        print(json.dumps(summary))
    else:
        print("\n".join(f"{name:22}{value}" for name, value in summary.items()))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("seed", type=int, nargs="?", help="one seed, its outcome in full")
    parser.add_argument("--seeds", type=int, default=100, help="seeds 0 to N-1 (100)")
    parser.add_argument("--peers", type=int, default=64, help="how many peers (64)")
    parser.add_argument("--faults", default="all", help=f"all, none, or of {','.join(FAULTS)}")
    shell_faults = (*SHELL_FAULTS, *LINE_FAULTS)
    parser.add_argument("--shells", action="store_true",
                        help=f"tier B; faults are {','.join(shell_faults)}")  # fmt: skip
    parser.add_argument("--growth", action="store_true", help="without faults, in growing swarms")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    known = shell_faults if options.shells else FAULTS
    unknown = set(options.faults.split(",")) - {"all", "none", *known}
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    return options


def _shells(seeds: Iterable[int], faults: tuple[str, ...], as_json: bool) -> int:
    """Tier B, one line a seed."""
    for seed in seeds:
        try:
            outcome = dataclasses.asdict(Scenario(seed, faults).run())
        except BaseException:
            again = f"again: python -m tests.sim {seed} --shells"
            print(f"{again} --faults {','.join(faults) or 'none'}", file=sys.stderr)
            raise
        shown = {name: sorted(v) if isinstance(v, set) else v for name, v in outcome.items()}
        print(json.dumps(shown) if as_json else shown, flush=True)
    return 0


def _summary(outcomes: list[Outcome], seconds: float) -> dict[str, object]:
    faults = {fault for outcome in outcomes for fault in outcome.faults}
    return {
        "seeds": len(outcomes),
        "peers": outcomes[0].peers,
        "events": sum(outcome.events for outcome in outcomes),
        "messages": sum(outcome.messages for outcome in outcomes),
        "virtual_seconds_max": round(max(outcome.seconds for outcome in outcomes), 1),
        "useful_share_min": round(min(o.useful_bytes / o.honest_bytes for o in outcomes), 3),
        "bans": sum(outcome.bans for outcome in outcomes),
        "origin_copies_max": max(outcome.origin_copies for outcome in outcomes),
        "queue_most": max(outcome.queue_most for outcome in outcomes),
        "flights_most": max(outcome.flights_most for outcome in outcomes),
        "faults": {
            fault: sum(o.faults.get(fault, 0) for o in outcomes) for fault in sorted(faults)
        },
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
