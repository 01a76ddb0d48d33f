"""docs/performance.md and docs/swarm.svg, made from what was measured and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import plot as _plot

GROWTH = "swarm-growth"
PLOT_NAME = "swarm.svg"
_FILE = re.compile(r"(\d{4}-\d\d-\d\d)-(.+)\.json")

Result = dict[str, Any]


def newest(directory: Path) -> dict[str, Result]:
    """The result of the latest date for each name, names in order."""
    found = {
        match[2]: path
        for path in sorted(directory.glob("*.json"))
        if (match := _FILE.fullmatch(path.name))
    }
    return {name: json.loads(found[name].read_text()) for name in sorted(found)}


def text(results: Mapping[str, Result], meaning: Mapping[str, str]) -> str:
    lines = [
        "# Performance",
        "",
        "Made by `python -m benchmarks table` from `benchmarks/results/`; ratios matter more than "
        "figures.",
    ]
    for name, result in results.items():
        lines += [
            "",
            f"## `{result.get('command', f'python -m benchmarks {name}')}`",
            "",
            f"{result['date']}, commit {result['commit']}, {result['cores']} cores, Python "
            f"{result['python']}{_niceness(result)}.",
            "",
        ]
        figures = dict(result["figures"])
        rows = figures.pop("rows", [])
        if figures:
            lines += ["| figure | measured | what it is |", "|---|---|---|"]
            lines += [f"| {figure} | {value} | {meaning[figure]} |"
                      for figure, value in figures.items()]  # fmt: skip
        if rows:
            lines += [*([""] if figures else []), *_series(rows)]
        if name == GROWTH:
            lines += ["", f"![Time and egress against the number of members]({PLOT_NAME})"]
    return "\n".join(lines) + "\n"


def _niceness(result: Result) -> str:
    """Below 0 the machine did other work as well, which had to stand back."""
    return f", nice {result['nice']}" if result.get("nice") else ""


def _series(rows: list[dict[str, object]]) -> list[str]:
    """One line for each figure, one column for each run."""
    (key, *figures) = rows[0]
    lines = [f"| {key} | " + " | ".join(str(row[key]) for row in rows) + " |"]
    lines.append("|---" * (len(rows) + 1) + "|")
    for figure in figures:
        lines.append(f"| {figure} | " + " | ".join(str(row[figure]) for row in rows) + " |")
    return lines


def plot(result: Result) -> str:
    return _plot.svg(result["figures"]["rows"])
