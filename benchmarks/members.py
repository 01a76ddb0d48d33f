"""The gateways of an office: one process of the shipped program on each host, all acquainted.

introduce      how members come to know each other, decided here and nowhere else
start          identities first, then all processes, and back when each has met all others
kill, restart  as power cuts do; ports and stores stay
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from benchmarks.hosts import Host
from gateway.program import Program
from peer.identity import Address, load_or_create

SWARM_PORT, HTTP_PORT = 4555, 8555
STARTS_AT_ONCE = 4
LOG_CHARS_SHOWN = 2000
LIAR = "tests.interop.evil"


def introduce(hosts: Sequence[Host], stores: Sequence[Path]) -> list[list[str]]:
    """For each member the options that name all others."""
    addresses = []
    for host, store in zip(hosts, stores, strict=True):
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        identity = load_or_create(store / "identity")
        addresses.append(Address(identity.peer_id, host.address, SWARM_PORT).text)
    return [
        [word for other in addresses if other != own for word in ("--peer", other)]
        for own in addresses
    ]


class Members:
    """Running gateways; `with` stops them. `liars` send each block with a bit flipped."""

    def __init__(
        self,
        hosts: Sequence[Host],
        directory: Path,
        words: Sequence[str],
        liars: frozenset[int] = frozenset(),
    ) -> None:
        """`words`: options of all (keys, upstreams). Stores are DIRECTORY/NUMBER and may be full
        already. Raises GatewayError when one does not start or does not meet the others."""
        self._hosts = hosts
        self._stores = [store_of(directory, number) for number in range(len(hosts))]
        self._words = words
        self._liars = liars
        self._known = introduce(hosts, self._stores)
        self.programs: list[Program | None] = [None] * len(hosts)
        try:
            self.start(range(len(hosts)))
            self.await_all()
        except BaseException:
            self.stop()
            raise

    def urls(self) -> list[str]:
        """What clients on the same hosts ask."""
        return [f"http://127.0.0.1:{HTTP_PORT}" for _ in self._hosts]

    def start(self, numbers: Sequence[int]) -> None:
        with ThreadPoolExecutor(STARTS_AT_ONCE) as pool:
            for _ in pool.map(self._start, numbers):
                pass

    def _start(self, number: int) -> None:
        host, lies = self._hosts[number], number in self._liars
        self.programs[number] = Program.start(
            ["gateway", *self._words, *self._known[number],
             "--listen", f"{host.address}:{SWARM_PORT}", "--http-port", str(HTTP_PORT)],
            self._stores[number],
            module=LIAR if lies else "gateway.cli",
            within=host.within,
            environment={"EVIL": "corrupt"} if lies else {},
        )  # fmt: skip

    def await_all(self) -> None:
        """Until each is connected to all others."""
        for program in self._running():
            program.await_peers(len(self._hosts) - 1)

    def kill(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            program = self.programs[number]
            assert program is not None
            program.kill()
            program.stop()

    def statuses(self) -> list[dict[str, object]]:
        return [program.status() for program in self._running()]

    def cpu_seconds(self) -> float:
        """User and system time of all gateways that run."""
        return sum(cpu_seconds(program.process.pid) for program in self._running())

    def peak_megabytes(self) -> float:
        """The largest resident set that any of them had."""
        return max(_peak_kilobytes(program.process.pid) for program in self._running()) / 1000

    def show_log(self, number: int) -> None:
        """To stderr: why a member failed its client."""
        program = self.programs[number]
        if program is not None:
            text = program.log.read_text()[-LOG_CHARS_SHOWN:].strip()
            print(f"member {number} said: {text or 'nothing'}", file=sys.stderr)

    def stop(self) -> None:
        running = self._running()
        for program in running:
            program.process.terminate()  # all at once; the waiting comes after
        for program in running:
            program.stop()

    def _running(self) -> list[Program]:
        return [p for p in self.programs if p is not None and p.process.poll() is None]

    def __enter__(self) -> Members:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def store_of(directory: Path, number: int) -> Path:
    return directory / f"member{number}"


def fill_store(store: Path, cache: Path, words: Sequence[str]) -> None:
    """Put everything that a cache on disk holds into the store of a member to be."""
    Program.start(["seed", cache.as_uri(), *words], store).stop()


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_kilobytes(process: int) -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert match is not None
    return int(match[1])
