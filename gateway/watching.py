"""`narswarm status` and `narswarm peers` for a person: pages drawn from the JSON, once or again and
again. A page is drawn for a width; where that is small, names are cut and columns left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from .errors import UsageError

Page = RenderableType
Answer = Mapping[str, object]
REFRESH_SECONDS = 1.0
WIDE_COLUMNS = 130
PEER_CHARS_MIN = 12
HASH_CHARS = 33
"""Of a store path's name: the hash and its dash."""
BAR_COLUMNS = 12
SOURCES_SHOWN = 3
NAME_CHARS_MIN = 8
CONFLICTS_SHOWN = 5
NAR_HASH_CHARS = 15
"""Enough to tell two apart."""
POOL_CHARS_MAX = 8


def show(page: Callable[[Answer, int], Page], answer: Answer) -> None:
    console = Console()
    # No wrapping: addresses are there to be copied.
    console.print(page(answer, console.width), soft_wrap=True)


def watch(ask: Callable[[], Answer], page: Callable[[Answer, int], Page]) -> None:
    """Until Ctrl-C. Raises UsageError if there was no answer at all; later it waits for one."""
    console = Console()
    drawn = page(ask(), console.width)
    try:
        with Live(drawn, console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                time.sleep(REFRESH_SECONDS)
                try:
                    live.update(page(ask(), console.width), refresh=True)
                except UsageError as error:
                    live.update(Text(f"{error}", overflow="fold"), refresh=True)
    except KeyboardInterrupt:
        return


def status_page(answer: Answer, width: int) -> Page:
    lines: list[Page] = [Text.assemble((_text(answer, "role"), "bold"), f"  {answer['peer_id']}")]
    lines += [Text(f"  listens on {address}") for address in _items(answer["addresses"])]
    if "http" in answer:
        lines.append(Text(f"  Nix asks {answer['http']}"))
    lines.append(
        Text(
            f"  holds {answer['paths']} paths, {answer['blocks']} blocks, "
            f"{size(_count(answer, 'stored_bytes'))}"
        )
    )
    lines += [Text(f"  {line}") for line in _came_from(answer)]
    lines += [Text(f"  {line}") for line in _connected(answer)]
    lines += [Text(f"  {line}") for line in (*_withheld(answer), *_uploaded(answer))]
    lines += [Text(f"  ALARM {line}", "bold red") for line in _disagreements(answer)]
    transfers = _mappings(answer["transfers"])
    if transfers:
        lines += [Text(""), _transfers(transfers, width)]
    return Group(*lines)


def peers_page(answer: Answer, width: int) -> Page:
    peers = _mappings(answer["peers"])
    if not peers:
        return Text("no peers yet: name one with --peer")
    wide = width >= WIDE_COLUMNS
    pools = any(peer["pool"] for peer in peers)
    titles = ["peer", "role", "link", "state"]
    columns = [Column(title, no_wrap=True) for title in titles]
    columns += [Column("pool", no_wrap=True)] * pools
    titles = ["in/s", "out/s", "received", "sent", "owed"] if wide else ["in/s", "out/s", "owed"]
    columns += [Column(title, justify="right", no_wrap=True) for title in titles]
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for peer in sorted(peers, key=_order):
        name = _text(peer, "peer_id")
        row = [name if wide else _short(name), _text(peer, "role"), _text(peer, "link")]
        row += [_state(peer), *([_cut(_text(peer, "pool"), wide=wide)] * pools)]
        row += [rate(_count(peer, key)) for key in ("received_per_second", "sent_per_second")]
        if wide:
            row += [size(_count(peer, key)) for key in ("bytes_received", "bytes_sent")]
        table.add_row(*row, str(peer["blocks_owed"] or ""))
    return table


def size(count: int) -> str:
    """Bytes in the unit that leaves few digits; MB are 1e6."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def rate(per_second: int) -> str:
    return f"{size(per_second)}/s" if per_second else ""


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def duration(seconds: float) -> str:
    if seconds < 99:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 99 else f"{minutes / 60:.0f} h"


def _came_from(answer: Answer) -> list[str]:
    lines = []
    sources = answer.get("sources")
    if isinstance(sources, dict):
        lines.append(
            f"gave Nix {size(sum(sources.values()))}: {size(sources['store'])} were here, "
            f"{size(sources['peers'])} from peers, {size(sources['upstreams'])} from upstreams"
        )
    duplicates = _count(answer, "duplicate_bytes")
    of_no_use = f", {size(duplicates)} of it of no use" if duplicates else ""
    lines.append(f"peers sent {size(_count(answer, 'swarm_bytes'))}{of_no_use}")
    return lines


def _connected(answer: Answer) -> list[str]:
    peers = _mappings(answer["peers"])
    if not peers:
        return ["no peers yet: name one with --peer"]
    connected = sum(bool(peer["connected"] or peer["only_asks_us"]) for peer in peers)
    owed = sum(_count(peer, "blocks_owed") for peer in peers)
    words = [f"{connected} of {len(peers)} peers connected"]
    words += [f"{owed} blocks in flight"] * bool(owed)
    words += [f"{answer['bans']} banned"] * bool(answer["bans"])
    for direction, key in (("in", "received_per_second"), ("out", "sent_per_second")):
        if per_second := _count(answer, key):
            words.append(f"{rate(per_second)} {direction}")
    return [", ".join(words)]


def _withheld(answer: Answer) -> list[str]:
    closures = answer.get("closures")
    if not isinstance(closures, dict) or not closures["walks"]:
        return []
    return [
        f"looked {_times(closures['walks'])} whether the closure of what only peers have can be "
        f"had; {closures['incomplete'] or 'no'} narinfos withheld because it cannot"
    ]


def _uploaded(answer: Answer) -> list[str]:
    """Nothing where nothing may be put."""
    uploads = answer.get("uploads")
    if not isinstance(uploads, dict):
        return []
    words = [f"{uploads['paths']} paths were put here, {size(uploads['nar_bytes'])} of them new"]
    words += [f"{uploads[kind]} {kind}" for kind in ("realisations", "logs") if uploads[kind]]
    words += [f"{uploads['refused']} requests refused"] * bool(uploads["refused"])
    words += [f"{size(uploads['spooled_bytes'])} wait"] * bool(uploads["spooled_bytes"])
    return [", ".join(words)]


def _disagreements(answer: Answer) -> list[str]:
    conflicts = _mappings(answer["conflicts"])
    lines = [
        f"{_text(one, 'store_path').removeprefix('/nix/store/')}: "
        + " and ".join(
            f"{', '.join(str(key) for key in _items(content['keys']))} signed "
            f"{_text(content, 'nar_hash')[:NAR_HASH_CHARS]}…"
            for content in _mappings(one["contents"])
        )
        for one in conflicts[-CONFLICTS_SHOWN:]
    ]
    return lines + [f"and {len(conflicts) - CONFLICTS_SHOWN} older ones"] * (
        len(conflicts) > CONFLICTS_SHOWN
    )


def _transfers(transfers: list[Answer], width: int) -> Table:
    rows = []
    for one in transfers:
        left = one["seconds_left"]
        rows.append((
            f"{size(_count(one, 'done_bytes'))} of {size(_count(one, 'nar_bytes'))}",
            rate(_count(one, "bytes_per_second")),
            _from_whom(one, wide=width >= WIDE_COLUMNS),
            duration(left) if isinstance(left, float) else "waits",
        ))  # fmt: skip
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    bar = BAR_COLUMNS if width >= WIDE_COLUMNS else BAR_COLUMNS // 3
    names = [_text(one, "store_path").removeprefix("/nix/store/")[HASH_CHARS:] for one in transfers]
    left_over = width - bar - sum(widths) - 2 * (len(widths) + 2)
    name_chars = max(NAME_CHARS_MIN, min(left_over, max(map(len, names))))
    # Numbers keep their width and are to be compared; the name has what is left.
    table = Table(
        Column(width=bar),
        Column(overflow="ellipsis", no_wrap=True, width=name_chars),
        *(Column(justify="right", no_wrap=True, width=chars) for chars in widths),
        box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for one, name, row in zip(transfers, names, rows, strict=True):
        total, done = max(_count(one, "nar_bytes"), 1), _count(one, "done_bytes")
        table.add_row(ProgressBar(total=total, completed=done), name, *row)
    return table


def _from_whom(transfer: Answer, *, wide: bool) -> str:
    sources = transfer["sources"]
    assert isinstance(sources, dict)
    if "upstreams" in sources:
        return "upstream"
    if not wide or not sources:
        return f"{len(sources)} peer{'s' * (len(sources) != 1)}"
    total = sum(sources.values())
    shown = sorted(sources, key=lambda peer: -sources[peer])[:SOURCES_SHOWN]
    words = [f"{_short(peer)} {round(100 * sources[peer] / total)} %" for peer in shown]
    return ", ".join(words + ["…"] * (len(sources) > len(shown)))


def _state(peer: Answer) -> str:
    if peer["banned"]:
        return "banned"
    if peer["connected"]:
        return "connected"
    if peer["only_asks_us"]:
        return "asks us"
    pause = peer["dialled_in_seconds"]
    return f"again in {duration(pause)}" if isinstance(pause, float) else "away"


def _order(peer: Answer) -> tuple[bool, int, str]:
    moved = _count(peer, "bytes_received") + _count(peer, "bytes_sent")
    return not (peer["connected"] or peer["only_asks_us"]), -moved, _text(peer, "peer_id")


def _short(peer: str) -> str:
    """PeerIds begin alike; their ends tell them apart."""
    return f"…{peer[-PEER_CHARS_MIN + 1 :]}"


def _cut(pool: str, *, wide: bool) -> str:
    fits = wide or len(pool) <= POOL_CHARS_MAX
    return pool if fits else f"{pool[: POOL_CHARS_MAX - 1]}…"


def _text(answer: Answer, key: str) -> str:
    return str(answer[key])


def _count(answer: Answer, key: str) -> int:
    value = answer[key]
    assert isinstance(value, int)
    return value


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _mappings(value: object) -> list[Answer]:
    return [item for item in _items(value) if isinstance(item, dict)]
