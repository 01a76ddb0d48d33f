"""An office of real processes: whatever a test starts is stopped after it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gateway.program import Program
from peer.identity import load_or_create
from tests.nix import Closure


class Office:
    """Processes by name, each with a store and an identity in `top`."""

    def __init__(self, top: Path, closure: Closure) -> None:
        self.top = top
        self.closure = closure
        self.nix = closure.nix
        self.programs: list[Program] = []
        self.trust = ["--no-nix-conf", "--trusted-public-key", closure.public]

    def peer_id(self, name: str) -> str:
        (self.top / name).mkdir(exist_ok=True, mode=0o700)
        return load_or_create(self.top / name / "identity").peer_id

    def knows(self, *names: str) -> list[str]:
        return [word for name in names for word in ("--peer", self.peer_id(name))]

    def start(
        self,
        name: str,
        *words: str,
        module: str = "gateway.cli",
        environment: Mapping[str, str] | None = None,
    ) -> Program:
        root = str(Path(__file__).parents[2])
        program = Program.start(
            [*words, *self.trust],
            self.top / name,
            module=module,
            environment={
                "PYTHONPATH": root,
                "HOME": os.environ.get("HOME", "/"),
                **(environment or {}),
            },
        )
        self.programs.append(program)
        return program

    def seed(self, name: str, *known: str, module: str = "gateway.cli") -> Program:
        """A CI box that offers the closure out of /nix/store."""
        key = str(self.closure.secret)
        return self.start(
            name, "seed", self.closure.root, "--closure", "--sign-key", key,
            *self.knows(*known), module=module,
        )  # fmt: skip

    def gateway(
        self, *peers: Program, name: str = "gateway", more: tuple[str, ...] = ()
    ) -> Program:
        named = [word for peer in peers for word in ("--peer", peer.address)]
        program = self.start(name, "gateway", *named, *more)
        program.await_peers(len(peers))
        return program

    def substitute(
        self, name: str, *urls: str, path: str = "", check: bool = True, more: str = ""
    ) -> str:
        """`nix-store --realise` of the closure into a fresh store, with `more` settings; what Nix
        said on stderr."""
        settings = f"substituters = {' '.join(urls)}\ntrusted-public-keys = {self.closure.public}"
        settings += f"\n{more}"
        done = self.nix.run(
            "nix-store", "--store", str(self.top / f"root-{name}"),
            "--realise", path or self.closure.root,
            home=f"{self.top.name}-{name}", settings=settings, check=check,
        )  # fmt: skip
        return done.stderr if done.returncode == 0 or not check else ""

    def copy(self, name: str, url: str, *paths: str, check: bool = True) -> bool:
        """`nix copy --from`; whether it worked."""
        done = self.nix.run(
            "nix", "copy", "--from", url, "--to", str(self.top / f"root-{name}"),
            *(paths or (self.closure.root,)), home=f"{self.top.name}-{name}",
            settings=f"trusted-public-keys = {self.closure.public}", check=check,
        )  # fmt: skip
        return done.returncode == 0

    def verify(self, name: str, *paths: str) -> None:
        """`nix store verify`: contents and signatures of the closure in that client's store."""
        self.nix.run(
            "nix", "store", "verify", "--store", str(self.top / f"root-{name}"), "--recursive",
            *(paths or (self.closure.root,)), home=f"{self.top.name}-{name}",
            settings=f"trusted-public-keys = {self.closure.public}",
        )  # fmt: skip

    def logs(self) -> str:
        logs = {program.name: program.log for program in self.programs}
        return "\n".join(f"-- {name}\n{log.read_text()}" for name, log in logs.items())


@pytest.fixture
def office(tmp_path: Path, closure: Closure) -> Iterator[Office]:
    office = Office(tmp_path, closure)
    try:
        yield office
    finally:
        for program in office.programs:
            program.stop()
        print(office.logs())  # pytest shows it if the test failed
