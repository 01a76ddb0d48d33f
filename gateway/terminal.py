"""What a person sees: tables and sizes on a terminal. Only here is rich imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from .doctor import Finding

_MARKS = {"good": ("ok", "green"), "doubtful": ("hm", "yellow"), "bad": ("BAD", "bold red")}


def megabytes(count: object) -> str:
    """Bytes as MB (1e6) with one decimal."""
    assert isinstance(count, int)
    return f"{count / 1e6:.1f} MB"


def show_table(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


def show_finding(finding: Finding) -> None:
    """At once, for the next check may take a while."""
    console = Console()
    mark, colour = _MARKS[finding.state]
    head = Text.assemble((f"{mark:5}", colour), f"{finding.what:9}", finding.said)
    console.print(head, soft_wrap=True)
    if finding.advice:
        console.print(Text(f"{'':14}-> {finding.advice}"), soft_wrap=True)
