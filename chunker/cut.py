"""The cut rule: where a normalised NAR is split. The only file that names pyfastcdc.

FastCDC 2020 (Xia et al., IEEE TPDS 2020, https://ieeexplore.ieee.org/document/9055082), gear table
and seed 0 of pyfastcdc 0.3.1, normalised chunking level 2. pyfastcdc has no push interface, so a
chunk of a partial buffer is accepted only where bytes follow it, or it is as long as one can be: it
ends where the hash of its own last bytes says so, and not because nothing more has arrived; so any
split gives the same blocks.
"""

from __future__ import annotations

from pyfastcdc import FastCDC

CUT_RULE = "fastcdc2020-128k-nc2-v1"
BLOCK_BYTES_MIN = 32 * 1024
BLOCK_BYTES_AVERAGE = 128 * 1024
BLOCK_BYTES_MAX = 512 * 1024
BATCH_BYTES_MIN, BATCH_BYTES_MAX = 256 * 1024, 1024 * 1024
BATCH_SHARE = 64
"""Others wait for the blocks of a download: at most 1/64 of what has come waits to be cut."""


class Cutter:
    """feed bytes, get blocks; `finish` gives the rest. Holds at most 1.5 MiB."""

    def __init__(self) -> None:
        if not FastCDC.__module__.startswith("pyfastcdc.cy"):
            raise RuntimeError(
                "pyfastcdc came without its compiled part and would be a hundred times slower; "
                "install a wheel of it for this Python (3.11 to 3.13)"
            )
        self._rule = FastCDC(
            BLOCK_BYTES_AVERAGE,
            min_size=BLOCK_BYTES_MIN,
            max_size=BLOCK_BYTES_MAX,
            normalized_chunking=2,
            seed=0,
        )
        self._buffer = bytearray()
        self._fed_bytes = self._new_bytes = 0

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        self._buffer += data
        self._fed_bytes += len(data)
        self._new_bytes += len(data)
        batch = min(max(self._fed_bytes // BATCH_SHARE, BATCH_BYTES_MIN), BATCH_BYTES_MAX)
        if self._new_bytes < batch:
            return []
        self._new_bytes = 0
        return self._cut(is_all=False)

    def finish(self) -> list[bytes]:
        return self._cut(is_all=True)

    def _cut(self, *, is_all: bool) -> list[bytes]:
        """Cut off every chunk that what follows cannot change: with `is_all`, nothing follows."""
        whole, blocks, used = bytes(self._buffer), [], 0
        for chunk in self._rule.cut_buf(whole):
            end = chunk.offset + chunk.length
            is_final = is_all or end < len(whole) or chunk.length == BLOCK_BYTES_MAX
            if not is_final or not chunk.length:
                break
            blocks.append(whole[chunk.offset : end])
            used = end
        del self._buffer[:used]
        return blocks
