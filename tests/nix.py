"""Driving a real Nix in tests: builds, binary caches, clients with a HOME of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

NIX_SECONDS_MAX = 120.0
"""Of one command; below what a test may take, so that what Nix said is in the failure."""
STDERR_CHARS_SHOWN = 3000


class Nix:
    """`top`: an empty directory for keys, caches and the builder's HOME."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def run(
        self,
        *words: str,
        home: str = "builder",
        settings: str = "",
        check: bool = True,
        text: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """One command. `home` names the HOME, which holds the cache of narinfos seen; `text` is
        its stdin."""
        directory = self.top / f"home-{home}"
        directory.mkdir(exist_ok=True)
        config = (
            "experimental-features = nix-command flakes\nsandbox = false\nbuild-users-group =\n"
            f"substituters =\nconnect-timeout = 5\n{settings}\n"
        )
        try:
            done = subprocess.run(
                words,
                env={**os.environ, "HOME": str(directory), "NIX_CONFIG": config},
                input=text,
                capture_output=True,
                text=True,
                timeout=NIX_SECONDS_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            said = (late.stderr or b"").decode(errors="replace")  # bytes, whatever was asked for
            raise AssertionError(
                f"{' '.join(words)} did not end:\n{said[-STDERR_CHARS_SHOWN:]}"
            ) from late
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)} failed:\n{done.stderr[-STDERR_CHARS_SHOWN:]}")
        return done

    def generate_key(self, name: str) -> tuple[Path, str]:
        """The file of a new secret key, and its public half."""
        secret = self.run("nix", "key", "generate-secret", "--key-name", name).stdout
        file = self.top / f"{name}.key"
        file.write_text(secret)
        file.chmod(0o600)
        public = self.run("nix", "key", "convert-secret-to-public", text=secret)
        return file, public.stdout.strip()

    def version(self) -> str:
        return self.run("nix", "--version").stdout.split()[-1]


@dataclass(frozen=True)
class Closure:
    """`infos` by store path as `nix path-info --json` has them; `cache`: a signed file:// cache
    of it, uncompressed."""

    nix: Nix
    root: str
    infos: dict[str, dict]  # type: ignore[type-arg]
    cache: Path
    secret: Path
    public: str

    @classmethod
    def build(cls, nix: Nix, expression: Path) -> Closure:
        link = nix.top / "result"
        # Copied, for a Nix in a chroot sees `top` and not this repository.
        copy = Path(shutil.copy(expression, nix.top))
        root = nix.run(
            "nix-build", str(copy), "--argstr", "seed", token_hex(8), "--out-link", str(link)
        ).stdout.strip()
        secret, public = nix.generate_key("build-1")
        nix.run("nix", "store", "sign", "--key-file", str(secret), "--recursive", root)
        cache = nix.top / "cache"
        nix.run("nix", "copy", "--to", f"file://{cache}?compression=none", root)
        found = json.loads(
            nix.run("nix", "path-info", "--json", "--sigs", "--recursive", root).stdout
        )
        if isinstance(found, list):  # an object by path since 2.19
            found = {info["path"]: info for info in found}
        return cls(nix, root, found, cache, secret, public)

    def delete(self) -> None:
        """Leave the machine's store as it was."""
        (self.nix.top / "result").unlink(missing_ok=True)
        self.nix.run("nix-store", "--delete", *self.infos, check=False)

    @property
    def largest(self) -> str:
        return max(self.infos, key=lambda path: self.infos[path]["narSize"])

    def nar(self, path: str) -> bytes:
        """As Nix dumps it."""
        done = subprocess.run(["nix-store", "--dump", path], capture_output=True, check=True)
        return done.stdout
