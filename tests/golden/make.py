"""Makes the golden data with a real Nix: python -m tests.golden.make. Review the diff it leaves.

tree.nar, tree.json       a tree with everything a NAR can hold, as `nix-store --dump` writes it
tree.ls                   what `nix nar ls` says of it
narinfos/*, keys.json     narinfos that Nix signed, and the keys
content_addresses.json    paths that name their contents, one of each kind
newer_addresses.json      kinds that only newer versions make (tests.golden.newer_addresses)
cuts.json                 block lengths and ids of the cut rule, and a ManifestId: these pin formats
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.golden import addresses
from tests.golden.samples import sample_bytes, sample_manifest
from tests.nix import Closure, Nix

HERE = Path(__file__).parent


def make_tree(top: Path) -> None:
    (top / "dir" / "empty").mkdir(parents=True)
    (top / "dir" / "file").write_text("contents\n")
    (top / "Z").write_bytes(b"")
    (top / "a").write_bytes(bytes(range(256)) * 33)
    (top / "a.b").write_text("sorts between a and ab? bytes decide")
    (top / "ab").symlink_to("../somewhere/else")
    (top / "programme").write_text("#!/bin/sh\n")
    (top / "programme").chmod(0o755)
    os.symlink(b"caf\xc3\xa9", os.fsencode(top) + b"/\xc3\xbcml")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        make_tree(tree)
        nar = subprocess.run(["nix-store", "--dump", tree], capture_output=True, check=True).stdout
        (HERE / "tree.nar").write_bytes(nar)
        digest = subprocess.run(
            ["nix-hash", "--type", "sha256", "--base32", tree],
            capture_output=True, check=True, text=True,
        ).stdout.strip()  # fmt: skip
        (HERE / "tree.json").write_text(json.dumps({"nix32": digest, "bytes": len(nar)}) + "\n")
        listed = Nix(Path(directory)).run(
            "nix", "nar", "ls", "--json", "--recursive", str(HERE / "tree.nar"), "/"
        )
        (HERE / "tree.ls").write_text(listed.stdout)

        made = addresses.make(Nix(Path(directory)), Path(directory))
        (HERE / "content_addresses.json").write_text(made)
        closure = Closure.build(Nix(Path(directory)), HERE.parent / "interop" / "closure.nix")
        shutil.rmtree(HERE / "narinfos", ignore_errors=True)
        (HERE / "narinfos").mkdir()
        for path in closure.infos:
            name = f"{path[11:43]}.narinfo"
            (HERE / "narinfos" / name).write_bytes((closure.cache / name).read_bytes())
        closure.delete()
        keys = {"public": closure.public, "secret": closure.secret.read_text()}
        (HERE / "keys.json").write_text(json.dumps(keys, indent=1) + "\n")

    name, manifest = sample_manifest(sample_bytes())
    cuts = {
        "lengths": list(manifest.lengths),
        "blocks": [block.hex() for block in manifest.blocks],
        "rewrites": list(zip(manifest.rewrites.offsets, manifest.rewrites.indexes, strict=True)),
        "manifest": name.hex(),
    }
    (HERE / "cuts.json").write_text(json.dumps(cuts, indent=1) + "\n")


if __name__ == "__main__":
    main()
