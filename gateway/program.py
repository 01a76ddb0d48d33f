"""One `narswarm` process, started and stopped from outside: by the demo, tests and benchmarks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .control import ask
from .errors import GatewayError

STOP_SECONDS_MAX = 15.0
CONNECT_SECONDS_MAX = 60.0
POLL_SECONDS = 0.05
LOG_CHARS_SHOWN = 2000


@dataclass
class Program:
    """`ready` are its first lines on stdout: where Nix and peers reach it."""

    name: str
    process: subprocess.Popen[str]
    store: Path
    log: Path
    ready: list[str]

    @classmethod
    def start(
        cls,
        words: Sequence[str],
        store: Path,
        *,
        module: str = "gateway.cli",
        within: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Program:
        """Run `words` (`gateway`, `peer` or `seed` and its options) with `store`; return when it
        is ready. Its stderr goes to `store`.log. `within` goes before the command, as in
        `ip netns exec NAME`. Raises GatewayError with the end of the log."""
        log = store.with_suffix(".log")
        command = [*within, sys.executable, "-m", module, *words, "--store", str(store)]
        if "--listen" not in words:
            command += ["--listen", "127.0.0.1:0"]
        if words[0] == "gateway" and "--http-port" not in words:
            command += ["--http-port", "0"]
        with log.open("a") as errors:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "XDG_CONFIG_HOME": str(store / "none"), **(environment or {})},
            )
        program = cls(store.name, process, store, log, [])
        assert process.stdout is not None
        for line in process.stdout:
            program.ready.append(line.strip())
            if "/p2p/" in line:
                return program
        process.wait()
        process.stdout.close()
        raise GatewayError(
            f"{program.name} did not start: {log.read_text()[-LOG_CHARS_SHOWN:].strip()}"
        )

    @property
    def address(self) -> str:
        """For --peer and --seed of others."""
        return next(line.split()[-1] for line in self.ready if "/p2p/" in line)

    @property
    def url(self) -> str:
        """For Nix."""
        return self.ready[0].split()[-1]

    def status(self) -> dict[str, object]:
        return ask(self.store)

    def await_peers(self, count: int) -> None:
        """Until so many peers are connected. Raises GatewayError after a minute."""
        deadline = time.monotonic() + CONNECT_SECONDS_MAX
        while time.monotonic() < deadline:
            peers = self.status()["peers"]
            assert isinstance(peers, list)
            if sum(peer["connected"] for peer in peers) >= count:
                return
            time.sleep(POLL_SECONDS)
        raise GatewayError(f"{self.name} did not reach {count} peers")

    def kill(self) -> None:
        """As a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """As systemd would; the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.process.returncode
