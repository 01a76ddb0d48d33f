"""Content-addressed paths as a real Nix makes them: content_addresses.json, by tests.golden.make.

Each has its NAR, for the hash in a CA field is of that or of the file in it. They are small.
"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

from tests.nix import Nix

EXPRESSION = """
let
  derive = name: text: derivation {
    inherit name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" text ];
    PATH = "/bin:/usr/bin";
  };
in rec {
  word = builtins.toFile "word" "one word\\n";
  sentence = builtins.toFile "sentence" "it names ${word}\\n";
  library = derive "library" "echo library > $out";
  itself = derive "itself" ''
    mkdir $out
    echo $out ${library} $out > $out/names
    ln -s $out/names $out/link
  '';
  empty = builtins.toFile "empty" "";
}
"""


def make(nix: Nix, directory: Path) -> str:
    (directory / "file").write_text("seven!\n")
    (directory / "empty").write_bytes(b"")
    (directory / "addresses.nix").write_text(EXPRESSION)
    tree = directory / "small"
    tree.mkdir()
    (tree / "script").write_text("#!/bin/sh\necho hello\n")
    (tree / "script").chmod(0o755)
    (tree / "link").symlink_to("script")
    made = [_said(nix, "nix-store", "--add", str(directory / name)) for name in ("file", "small")]
    for algorithm in ("md5", "sha1", "sha256", "sha512"):
        for recursive in ([], ["--recursive"]):
            words = ["nix-store", "--add-fixed", *recursive, algorithm]
            made.append(_said(nix, *words, str(directory / "file")))
    made.append(_said(nix, "nix-store", "--add-fixed", "sha256", str(directory / "empty")))
    texts = [
        "nix-instantiate",
        "--eval",
        "--read-write-mode",
        "--json",
        str(directory / "addresses.nix"),
        "-A",
    ]
    made += [json.loads(_said(nix, *texts, name)) for name in ("word", "sentence", "empty")]
    expression = str(directory / "addresses.nix")
    made.append(_said(nix, "nix-instantiate", expression, "-A", "itself"))
    built = _said(nix, "nix-build", expression, "-A", "itself", "--no-out-link")
    done = nix.run("nix", "store", "make-content-addressed", "--json", built)
    rewritten = json.loads(done.stdout)["rewrites"]
    made += rewritten.values()
    entries = [_entry(nix, path) for path in sorted(set(made))]
    nix.run("nix-store", "--delete", *made, *rewritten, check=False)
    return json.dumps(entries, indent=1) + "\n"


def _said(nix: Nix, *words: str) -> str:
    return nix.run(*words).stdout.strip()


def _entry(nix: Nix, path: str) -> dict[str, object]:
    of_itself = ["--derivation"] if path.endswith(".drv") else []
    (info,) = json.loads(nix.run("nix", "path-info", "--json", *of_itself, path).stdout)
    nar = subprocess.run(["nix-store", "--dump", path], capture_output=True, check=True).stdout
    return {
        "store_path": path,
        "content_address": info["ca"],
        "nar_hash": info["narHash"],
        "references": sorted(info["references"]),
        "nar": base64.b64encode(nar).decode(),
    }
