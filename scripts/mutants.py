"""Take out one defence after the other: python scripts/mutants.py [NAME...]

Each tests/mutants/*.patch removes one defence and names in its first line the test that must go
red. Every patch is applied to a copy of the tracked files; a test that stays green, or breaks for
another reason than a failed test, counts as failed. Prints
"N passed, N failed"; exit code 1 if any failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS_MAX = 180
TESTS_FAILED = 1
"""pytest's exit code for that; 2 to 5 are other troubles."""


def judge(patch: Path, top: Path) -> str:
    """An empty text if the mutant was caught, else why not."""
    copy = top / patch.stem
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in files:
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    applied = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", str(patch)],
        cwd=copy, capture_output=True, text=True, check=False,
        env={**os.environ, "GIT_DIR": str(copy / "none")},
    )  # fmt: skip
    if applied.returncode:
        return f"does not apply: {applied.stderr.strip()}"
    test = patch.read_text().splitlines()[0].removeprefix("# test: ")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", test],
            cwd=copy, capture_output=True, text=True, check=False, timeout=SECONDS_MAX,
            env={**os.environ, "PYTHONPATH": str(copy)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{test} did not end in {SECONDS_MAX} s"
    shutil.rmtree(copy)
    if done.returncode == TESTS_FAILED:
        return ""
    reason = "stayed green" if done.returncode == 0 else f"ended with {done.returncode}"
    return f"{test} {reason}\n{done.stdout[-1500:]}"


def main() -> int:
    patches = sorted((ROOT / "tests" / "mutants").glob("*.patch"))
    if sys.argv[1:]:
        patches = [patch for patch in patches if patch.stem in sys.argv[1:]]
    at_once = (os.cpu_count() or 1) + 1  # many tests wait for something
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(at_once) as pool:
        verdicts = list(pool.map(lambda patch: judge(patch, Path(directory)), patches))
    for patch, verdict in zip(patches, verdicts, strict=True):
        print(f"{'ok    ' if not verdict else 'FAILED'} {patch.stem}")
        if verdict:
            print(f"       {verdict}")
    failed = sum(map(bool, verdicts))
    print(f"{len(verdicts) - failed} passed, {failed} failed")
    return 1 if failed or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
