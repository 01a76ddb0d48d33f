"""What is freed is used again, and not asked of the system anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from gateway.run import keep_freed_memory

def pages(size, times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        bytearray(b"x") * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
for size in (150_000, 600_000, 8_000_000):
    pages(size, 1)
    print(pages(size, 50) * 4096 / (50 * size))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_blocks_and_windows_of_decoders_cost_no_new_pages() -> None:
    """A limit of 516 KiB once made each larger one new: four times the processor time for what
    came from upstreams."""
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    shares = [float(line) for line in ran.stdout.split()]
    assert len(shares) == 3 and max(shares) < 0.1
