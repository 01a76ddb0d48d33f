"""What a person sees: tables and sizes on a terminal. Only here is rich imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from .doctor import Finding

_MARKS = {"good": ("ok", "green"), "doubtful": ("hm", "yellow"), "bad": ("BAD", "bold red")}


def megabytes(count: object) -> str:
    """Bytes as MB (1e6) with one decimal."""
    assert isinstance(count, int)
    return f"{count / 1e6:.1f} MB"


def show_status(answer: Mapping[str, object]) -> None:
    console = Console()

    def say(text: str) -> None:
        # No wrapping and no colours: addresses are there to be copied.
        console.print(text, highlight=False, soft_wrap=True)

    say(f"[bold]{answer['role']}[/]  {answer['peer_id']}")
    for address in _items(answer["addresses"]):
        say(f"  listens on {address}")
    if "http" in answer:
        say(f"  Nix asks {answer['http']}")
    say(
        f"  holds {answer['paths']} paths, {answer['blocks']} blocks, "
        f"{megabytes(answer['stored_bytes'])}; received {megabytes(answer['wire_bytes'])}"
    )
    for pool in _items(answer["pools"]):
        if isinstance(pool, dict):
            say(f"  in pool {pool['name']}, {len(_items(pool['online']))} other members here")
    peers = [peer for peer in _items(answer["peers"]) if isinstance(peer, dict)]
    if not peers:
        say("  no peers yet: name one with --peer, or join a pool")
        return
    table = Table(Column("peer", no_wrap=True), "role", "connected", "blocks", "received")
    for peer in peers:
        table.add_row(
            str(peer["peer_id"]),
            str(peer["role"]),
            "yes" if peer["connected"] else "no",
            str(peer["blocks_received"]),
            megabytes(peer["bytes_received"]),
        )
    console.print(table)


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


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []
