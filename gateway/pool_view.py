"""`narswarm pool members` as a person sees it."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

WIDTH_CHARS_MIN = 96
_COLOURS = {"online": "green", "this machine": "bold", "revoked": "red", "expired": "yellow"}
_STEPS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def show_members(pool: Mapping[str, object], now: float) -> None:
    console = Console()
    console.width = max(console.width, WIDTH_CHARS_MIN)
    here = ", its key is here" if pool["key_is_here"] else ""
    console.print(f"[bold]{pool['name']}[/]  {pool['id']}{here}", highlight=False, soft_wrap=True)
    # Without lines: a PeerId must stay whole to be copied, and takes most of a terminal.
    table = Table(Column("peer", no_wrap=True), "role", "state", "seen", "ends", box=None)
    members = pool["members"]
    assert isinstance(members, list)
    for member in members:
        state = str(member["state"])
        seen, ends = float(member["seen"]), float(member["expires"]) - now
        table.add_row(
            str(member["peer_id"]),
            str(member["role"]),
            Text(state, style=_COLOURS.get(state, "")),
            f"{_span(now - seen)} ago" if seen and state not in ("online", "this machine") else "",
            "" if state in ("revoked", "expired") else f"in {_span(ends)}",
        )
    console.print(table)


def _span(seconds: float) -> str:
    for size, name in _STEPS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"
