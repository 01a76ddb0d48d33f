"""What one peer says, hears and sends in swarms of 10 to 10,000, simulated (tests/sim/growth.py).

One holder, one NAR, at most 32 sessions each, links of 3 MB/s, the real Exchange and Uplink at
every peer. Seconds are virtual but for `seconds`, which is what the simulation took.
"""

from __future__ import annotations

from tests.sim.growth import PEERS, grow

MEANING = {
    "messages_growth": "messages of one peer in the largest swarm over those in one of 100",
    "message_bytes_growth": "the same for their bytes, without blocks",
}
BASE_PEERS = 100
"""Smaller swarms have fewer sessions than a peer may have."""


def run() -> dict[str, object]:
    rows = [grow(peers) for peers in PEERS]
    base = next(row for row in rows if row["peers"] == BASE_PEERS)
    ratios = {
        f"{name}_growth": round(rows[-1][f"{name}_per_peer"] / base[f"{name}_per_peer"], 2)
        for name in ("messages", "message_bytes")
    }
    return {**ratios, "rows": rows}
