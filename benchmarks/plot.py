"""The growth of a crowd as a small SVG: time on the left, egress on the right, against members.

Both scales are logarithmic in both directions, so that "grows with N" is a slope and "does not" is
a level line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10

Row = Mapping[str, float]
Line = tuple[str, str, str, Sequence[tuple[float, float]]]
"""Name, colour, dash pattern, points."""

WIDTH, HEIGHT = 760, 320
PANEL_WIDTH, PANEL_HEIGHT = 270, 200
LEFT, TOP, GAP = 60, 50, 110
OURS, WITHOUT, BOUND = "#0a6e8a", "#b4552d", "#777777"


def svg(rows: Sequence[Row]) -> str:
    def points(name: str) -> list[tuple[float, float]]:
        return [(row["peers"], row[name]) for row in rows]

    seconds: list[Line] = [
        ("without peers", WITHOUT, "", points("direct_seconds_max")),
        ("swarm, slowest", OURS, "", points("seconds_max")),
        ("swarm, median", OURS, "4 3", points("seconds_median")),
        ("fluid bound", BOUND, "2 3", points("fluid_seconds")),
    ]
    copies: list[Line] = [
        ("without peers", WITHOUT, "", [(row["peers"], row["peers"]) for row in rows]),
        ("swarm", OURS, "", points("origin_copies")),
    ]
    right = LEFT + PANEL_WIDTH + GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            'font-family="sans-serif" font-size="12" fill="#222222">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *_panel(LEFT, "seconds to the last byte", seconds),
            *_panel(right, "copies that left the origin", copies),
            "</svg>",
            "",
        ]
    )


def _panel(left: float, title: str, lines: Sequence[Line]) -> list[str]:
    across = [x for line in lines for x, _ in line[3]]
    up = [max(y, 0.1) for line in lines for _, y in line[3]]
    low, high = floor(log10(min(up))), max(ceil(log10(max(up))), floor(log10(min(up))) + 1)
    x_low, x_high = log10(min(across)), log10(max(across)) + 1e-9

    def place(x: float, y: float) -> tuple[float, float]:
        right = (log10(x) - x_low) / (x_high - x_low)
        above = (log10(max(y, 10**low)) - low) / (high - low)
        return left + right * PANEL_WIDTH, TOP + PANEL_HEIGHT * (1 - above)

    bottom = TOP + PANEL_HEIGHT
    drawn = [f'<text x="{left}" y="{TOP - 30}" font-weight="bold">{title}</text>']
    for power in range(low, high + 1):
        y = place(min(across), 10**power)[1]
        drawn.append(f'<path d="M{left} {y:.1f}h{PANEL_WIDTH}" stroke="#dddddd"/>')
        drawn.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10**power:g}</text>')
    for x in sorted(set(across)):
        at = place(x, 10**low)[0]
        drawn.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{x:g}</text>')
    middle = left + PANEL_WIDTH / 2
    drawn.append(f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">members</text>')
    for number, (name, colour, dash, points) in enumerate(lines):
        where = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        style = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash or "none"}"'
        drawn.append(f'<polyline points="{where}" fill="none" {style}/>')
        drawn.append(
            _legend(left + 135 * (number % 2), bottom + 54 + 16 * (number // 2), name, style)
        )
    return drawn


def _legend(x: float, y: float, name: str, style: str) -> str:
    return (f'<path d="M{x} {y - 4}h22" fill="none" {style}/>'
            f'<text x="{x + 28}" y="{y}">{name}</text>')  # fmt: skip
