"""python -m benchmarks NAME [--json]: measure, write benchmarks/results/DATE-NAME.json.

python -m benchmarks table: write docs/performance.md from the newest result of each name.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from benchmarks import core, session

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BENCHMARKS = {"core": core, "session": session}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*BENCHMARKS, "table"])
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    options = parser.parse_args()
    if options.name == "table":
        PAGE.write_text(page())
        return 0
    benchmark = BENCHMARKS[options.name]
    figures = benchmark.run()
    RESULTS.mkdir(exist_ok=True)
    today = datetime.date.today().isoformat()
    result = {"name": options.name, "date": today, **machine(), "figures": figures}
    (RESULTS / f"{today}-{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:22}{value}")
    return 0


def machine() -> dict[str, object]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {"commit": commit, "cores": os.cpu_count(), "python": platform.python_version()}


def page() -> str:
    """The table, made from what was measured; nothing in it is written by hand."""
    lines = [
        "# Performance",
        "",
        "Made by `python -m benchmarks table` from `benchmarks/results/`; ratios matter more than "
        "figures.",
    ]
    for name, benchmark in BENCHMARKS.items():
        files = sorted(RESULTS.glob(f"*-{name}.json"))
        if not files:
            continue
        result = json.loads(files[-1].read_text())
        lines += [
            "",
            f"## `python -m benchmarks {name}`",
            "",
            f"{result['date']}, commit {result['commit']}, {result['cores']} cores, Python "
            f"{result['python']}.",
            "",
            "| figure | measured | what it is |",
            "|---|---|---|",
        ]
        for figure, value in result["figures"].items():
            lines.append(f"| {figure} | {value} | {benchmark.MEANING[figure]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
