"""Pauses in reading, on a simulated line: packets come at its rate, and wait while nobody reads."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from gateway.pauses import AT_ONCE_BYTES, Pauses

PACKET_BYTES = 1448
CALL_SECONDS = 20e-6
MBIT = 1_000_000 / 8


@dataclass
class Reading:
    reads: int
    seconds: float
    paused: float


def read(rate: float, size: int, at_once: int, computes: float = 0.0) -> Reading:
    """`size` bytes at `rate` bytes a second, no more than `at_once` in one read, each byte of which
    takes `computes` seconds of the processor."""
    pauses, now, computed, got, found = Pauses(), 0.0, 0.0, 0, Reading(0, 0.0, 0.0)
    while got < size:
        come = min(int(now * rate) // PACKET_BYTES * PACKET_BYTES, size)
        if come - got < PACKET_BYTES and come < size:
            now = max(now, (got + 2 * PACKET_BYTES) / rate)  # waits for packets
            continue
        piece = min(come - got, at_once)
        got += piece
        busy = CALL_SECONDS + piece * computes
        now, computed = now + busy, computed + busy
        seconds = pauses.after(now, computed, piece)
        now += seconds
        found.reads += 1
        found.paused += seconds
    found.seconds = now
    return found


@pytest.mark.parametrize("at_once", [256 * 1024, 16 * 1024], ids=["plain", "records of TLS"])
def test_a_slow_line_is_read_seldom_and_carries_as_much(at_once: int) -> None:
    size = 32_000_000
    found = read(25 * MBIT, size, at_once)
    assert found.reads < size / PACKET_BYTES / 6
    assert found.seconds < size / (25 * MBIT) + 0.05


@pytest.mark.parametrize("at_once", [256 * 1024, 16 * 1024], ids=["plain", "records of TLS"])
def test_a_fast_line_is_not_held_up(at_once: int) -> None:
    size = 256_000_000
    found = read(1000 * MBIT, size, at_once)
    assert found.seconds < 1.02 * size / (1000 * MBIT)


def test_who_computes_is_not_paused() -> None:
    """Decoding takes longer than the line: each pause would make it slower still."""
    size = 16_000_000
    found = read(400 * MBIT, size, 16 * 1024, computes=1 / 5_000_000)
    assert found.paused < 0.01 * found.seconds


def test_a_small_download_is_not_paused() -> None:
    assert read(5 * MBIT, AT_ONCE_BYTES, 256 * 1024).paused == 0.0
