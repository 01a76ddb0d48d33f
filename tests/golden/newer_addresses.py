"""Content addresses that need a newer Nix: newer_addresses.json, made with 2.34.

    python -m tests.golden.newer_addresses > tests/golden/newer_addresses.json

With that Nix in PATH (`scripts/interop-all` has it in a chroot). For `git` there is also what is no
directory: a file, the same file executable, and a link that spells it.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
from pathlib import Path

from tests.nix import Nix

SETTINGS = "experimental-features = nix-command git-hashing blake3-hashes"
SPELT = "spelt"
SHAPES = {"tree": ("git", "nar"), "file": ("git", "nar", "flat"), "executable": ("git", "nar"),
          "link": ("git", "nar"), "hollow": ("git",)}  # fmt: skip


def make_shapes(top: Path) -> None:
    """A tree in which Git sorts otherwise than a NAR, and what shares an id."""
    tree = top / "tree"
    (tree / "foo" / "deep" / "er").mkdir(parents=True)
    (tree / "empty").mkdir()
    for name in ("foo.c", "foo-", "foo0", "foo/deep/a", "foo/deep/er/b", "Z"):
        (tree / name).write_text(f"{name}\n")
    (tree / "nothing").write_bytes(b"")
    (tree / "block").write_bytes(bytes(range(256)))
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    (tree / "link").symlink_to("foo/deep")
    os.symlink(b"caf\xc3\xa9", os.fsencode(tree) + b"/\xc3\xbcml")
    (top / "hollow").mkdir()
    (top / "file").write_text(SPELT)
    (top / "executable").write_text(SPELT)
    (top / "executable").chmod(0o755)
    (top / "link").symlink_to(SPELT)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        top, nix = Path(directory), Nix(Path(directory))
        make_shapes(top)
        entries = [
            _entry(nix, top / shape, mode, algorithm)
            for shape, modes in SHAPES.items()
            for mode in modes
            for algorithm in (("sha1", "sha256") if mode == "git" else ("blake3",))
        ]
        print(json.dumps(entries, indent=1))


def _entry(nix: Nix, file: Path, mode: str, algorithm: str) -> dict[str, object]:
    name = f"{mode}-{algorithm}-{file.name}"
    words = ("nix", "store", "add", "--mode", mode, "--hash-algo", algorithm, "--name", name)
    path = nix.run(*words, str(file), settings=SETTINGS).stdout.strip()
    told = nix.run("nix", "path-info", "--json", "--json-format", "1", path, settings=SETTINGS)
    (info,) = json.loads(told.stdout).values()
    nar = subprocess.run(["nix-store", "--dump", path], capture_output=True, check=True).stdout
    return {
        "store_path": path,
        "content_address": info["ca"],
        "nar_hash": info["narHash"],
        "references": sorted(info["references"]),
        "nar": base64.b64encode(nar).decode(),
    }


if __name__ == "__main__":
    main()
