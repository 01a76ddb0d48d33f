"""`python -m tests.fuzz requests --minutes 10`: look for bytes that a parser cannot stand.

A finding is written into the corpus, where `tests/fuzz/test_corpus.py` tries it from then on, and
the exit code is 1. `--keep` adds what reached new lines as well, so that the next run begins there.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from random import Random

from tests.fuzz.mutation import Finding, Fuzzer
from tests.fuzz.targets import CORPUS, TARGETS, Target

TOLD_SECONDS = 30.0
KEPT_BYTES_MAX = 2048


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="add what reached new lines")
    options = parser.parse_args()
    target = TARGETS[options.target]
    started = time.monotonic()
    try:
        fuzzer = Fuzzer(target, Random(options.seed))
        known, told = len(fuzzer.kept), started
        while (now := time.monotonic()) < started + options.minutes * 60:
            fuzzer.step()
            if now > told + TOLD_SECONDS:
                told = now
                print(f"{now - started:.0f} s, {fuzzer.runs} inputs, {fuzzer.reached} reached",
                      flush=True)  # fmt: skip
    except Finding as finding:
        print(f"found: {finding.reason}\nwritten to {_write(target, finding.data)}")
        return 1
    if options.keep:
        for data in fuzzer.kept[known:]:
            if len(data) <= KEPT_BYTES_MAX:
                _write(target, data)
    print(f"no finding: {fuzzer.runs} inputs in {time.monotonic() - started:.0f} s, "
          f"{fuzzer.reached} pairs of lines reached, seed {options.seed}")  # fmt: skip
    return 0


def _write(target: Target, data: bytes) -> str:
    path = CORPUS / target.name / f"{hashlib.sha256(data).hexdigest()[:16]}.bin"
    path.write_bytes(data)
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
