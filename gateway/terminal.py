"""What a person sees: tables and sizes on a terminal. Only here is rich imported."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table


def megabytes(count: object) -> str:
    """Bytes as MB (1e6) with one decimal."""
    assert isinstance(count, int)
    return f"{count / 1e6:.1f} MB"


def show_status(answer: Mapping[str, object]) -> None:
    console = Console()
    console.print(f"[bold]{answer['role']}[/]  {answer['peer_id']}", highlight=False)
    for address in _items(answer["addresses"]):
        console.print(f"  listens on {address}", highlight=False)
    if "http" in answer:
        console.print(f"  Nix asks {answer['http']}", highlight=False)
    console.print(
        f"  holds {answer['paths']} paths, {answer['blocks']} blocks, "
        f"{megabytes(answer['stored_bytes'])}; received {megabytes(answer['wire_bytes'])}",
        highlight=False,
    )
    peers = [peer for peer in _items(answer["peers"]) if isinstance(peer, dict)]
    if not peers:
        console.print("  no peers yet: name one with --peer")
        return
    table = Table("peer", "role", "connected", "blocks", "received")
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


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []
