"""One client process on each of several hosts, held until each is told to go.

Starting a Python process takes longer than some transfers, so all are started first and say
"ready"; `go` is one line to one of them, and a flash crowd is `go` for all in a row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from benchmarks.hosts import Host
from benchmarks.origin import Noise

NIX_CONNECTIONS = 25
"""http-connections of nix.conf, as it is by default."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one client saw: seconds to its last byte, paths that failed, bodies continued."""

    seconds: float
    failed: int
    continued: int
    errors: tuple[str, ...]


class Clients:
    """All are ready when this is made. Those that still run at the end of the block are killed."""

    def __init__(
        self,
        places: Sequence[tuple[Host, str]],
        paths: Sequence[Noise],
        directory: Path,
        retry_seconds: Sequence[float] | None = None,
        connections: int = NIX_CONNECTIONS,
    ) -> None:
        """`places`: (host, URL of the cache that it asks); `retry_seconds` for each of them, and
        `connections` of each at once."""
        self._paths = len(paths)
        file = directory / "paths.json"
        file.write_text(json.dumps([(p.store_hash, p.nar_hash.hex(), p.nar_size) for p in paths]))
        retries = retry_seconds or [0.0] * len(places)
        self._processes = [
            subprocess.Popen(
                [*host.within, sys.executable, "-m", "benchmarks.client", url, str(file),
                 str(connections), str(retry)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for (host, url), retry in zip(places, retries, strict=True)
        ]  # fmt: skip
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.readline()

    def go(self, number: int) -> None:
        stdin = self._processes[number].stdin
        assert stdin is not None
        stdin.write("go\n")
        stdin.flush()

    def go_all(self) -> None:
        for number in range(len(self._processes)):
            self.go(number)

    def outcomes(self, seconds_max: float) -> list[Outcome]:
        """In the order of the hosts. Who is not done by then has failed in everything."""
        deadline = time.monotonic() + seconds_max
        return [self._outcome(process, deadline, seconds_max) for process in self._processes]

    def _outcome(
        self, process: subprocess.Popen[str], deadline: float, seconds_max: float
    ) -> Outcome:
        try:
            said, _ = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Outcome(seconds_max, self._paths, 0, (f"not done in {seconds_max:.0f} s",))
        if process.returncode != 0:
            return Outcome(seconds_max, self._paths, 0, ("the client itself failed",))
        found = json.loads(said)
        return Outcome(
            found["seconds"], found["failed"], found["continued"], tuple(found["errors"])
        )

    def __enter__(self) -> Clients:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
