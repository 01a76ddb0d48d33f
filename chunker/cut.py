"""The cut rule: where a normalised NAR is split. The only file that names pyfastcdc.

FastCDC 2020 (Xia et al., IEEE TPDS 2020, https://ieeexplore.ieee.org/document/9055082), gear table
and seed 0 of pyfastcdc 0.3.1, normalised chunking level 2. pyfastcdc has no push interface, so a
chunk of a partial buffer is accepted only where at least BLOCK_BYTES_MAX bytes follow its start:
then the cut cannot depend on bytes that have not arrived, and any split gives the same blocks.
"""

from __future__ import annotations

from pyfastcdc import FastCDC

CUT_RULE = "fastcdc2020-128k-nc2-v1"
BLOCK_BYTES_MIN = 32 * 1024
BLOCK_BYTES_AVERAGE = 128 * 1024
BLOCK_BYTES_MAX = 512 * 1024
BATCH_BYTES = 1024 * 1024
FIRST_BYTES = 640 * 1024
FIRST_BATCHES = 16
"""So many are smaller, because others wait for the first blocks of a download."""


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
        self._batch_bytes = FIRST_BYTES
        self._fed = 0

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        self._buffer += data
        if len(self._buffer) < self._batch_bytes:
            return []
        self._fed += 1
        if self._fed > FIRST_BATCHES:
            self._batch_bytes = BATCH_BYTES
        return self._cut(len(self._buffer) - BLOCK_BYTES_MAX)

    def finish(self) -> list[bytes]:
        return self._cut(len(self._buffer))

    def _cut(self, starts_before: int) -> list[bytes]:
        """Cut off every chunk that starts at or before `starts_before`."""
        whole, blocks, used = bytes(self._buffer), [], 0
        for chunk in self._rule.cut_buf(whole):
            if chunk.offset > starts_before or chunk.offset == len(whole):
                break
            blocks.append(whole[chunk.offset : chunk.offset + chunk.length])
            used = chunk.offset + chunk.length
        del self._buffer[:used]
        return blocks
