"""python -m benchmarks NAME [--json]: measure, write benchmarks/results/DATE-NAME.json.

python -m benchmarks table: write docs/performance.md and docs/swarm.svg from the newest result of
each name.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks import closure, core, growth, lookup, nine, page, session, swarm
from benchmarks.debian import NoClosure
from benchmarks.hosts import NoHosts

RESULTS = Path(__file__).parent / "results"
DOCUMENTS = Path(__file__).parents[1] / "docs"
BENCHMARKS = {"core": core, "lookup": lookup, "session": session, "simulation": growth}
WITH_OPTIONS = {"swarm": swarm, "closure": closure, "nine": nine}
MEANING = {
    name: meaning
    for module in (*BENCHMARKS.values(), *WITH_OPTIONS.values())
    for name, meaning in module.MEANING.items()
}
STOPPED_EXIT = 128 + signal.SIGTERM


def main() -> int:
    options = _parser().parse_args()
    if options.name == "table":
        results = page.newest(RESULTS)
        (DOCUMENTS / "performance.md").write_text(page.text(results, MEANING))
        if page.GROWTH in results:
            (DOCUMENTS / page.PLOT_NAME).write_text(page.plot(results[page.GROWTH]))
        return 0
    # What is made outside this process goes away with it, also when it is told to stop.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(STOPPED_EXIT))
    try:
        name, figures = _measure(options)
    except (NoHosts, NoClosure) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    _write(name, figures)
    if options.json:
        print(json.dumps(figures))
    else:
        for figure, value in figures.items():
            print(f"{figure:22}{value}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, module in (*BENCHMARKS.items(), *WITH_OPTIONS.items()):
        one = names.add_parser(name, description=module.__doc__,
                               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        one.add_argument("--json", action="store_true", help="one object on stdout")
        if name in WITH_OPTIONS:
            WITH_OPTIONS[name].add_options(one)
    names.add_parser("table", help="write the page and the plot")
    return parser


def _measure(options: argparse.Namespace) -> tuple[str, dict[str, object]]:
    if options.name == "swarm":
        return swarm.run(options)
    if options.name == "closure":
        return closure.run(options)
    if options.name == "nine":
        return nine.run(options)
    return options.name, dict(BENCHMARKS[options.name].run())


def _write(name: str, figures: dict[str, object]) -> None:
    RESULTS.mkdir(exist_ok=True)
    today = datetime.date.today().isoformat()
    words = [word for word in sys.argv[1:] if word != "--json"]
    command = " ".join(("python -m benchmarks", *words))
    result = {"name": name, "command": command, "date": today, **machine(), "figures": figures}
    (RESULTS / f"{today}-{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def machine() -> dict[str, object]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "commit": commit,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "nice": os.nice(0),
    }


if __name__ == "__main__":
    sys.exit(main())
