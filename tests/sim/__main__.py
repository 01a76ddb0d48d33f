"""Run the simulated swarm: python -m tests.sim SEED, or --seeds N --peers M --json."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time

from tests.sim.world import FAULTS, Violation, World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="one seed, its outcome in full")
    parser.add_argument("--seeds", type=int, default=100, help="seeds 0 to N-1 (100)")
    parser.add_argument("--peers", type=int, default=24, help="how many peers (24)")
    parser.add_argument("--faults", default="all", help=f"all, none, or of {','.join(FAULTS)}")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    named = {"all": FAULTS, "none": ()}
    faults = named.get(options.faults, tuple(options.faults.split(",")))
    seeds = [options.seed] if options.seed is not None else range(options.seeds)
    began, outcomes = time.perf_counter(), []
    for seed in seeds:
        try:
            outcomes.append(World(seed, options.peers, faults).run())
        except Violation as violation:
            print(violation, file=sys.stderr)
            print(f"again: python -m tests.sim {seed} --peers {options.peers}", file=sys.stderr)
            return 1
    summary = {
        "seeds": len(outcomes),
        "peers": options.peers,
        "events": sum(outcome.events for outcome in outcomes),
        "virtual_seconds_max": round(max(outcome.seconds for outcome in outcomes), 1),
        "useful_share_min": round(min(o.useful_bytes / o.honest_bytes for o in outcomes), 3),
        "bans": sum(outcome.bans for outcome in outcomes),
        "seconds": round(time.perf_counter() - began, 1),
    }
    if options.seed is not None:
        summary |= dataclasses.asdict(outcomes[0])
    if options.json:
        print(json.dumps(summary))
    else:
        print("\n".join(f"{name:22}{value}" for name, value in summary.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
