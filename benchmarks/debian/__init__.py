"""A real closure, made by a real Nix of what this machine's Debian offers, and kept.

    packages that PROGRAMS need --apt-get download, dpkg-deb -x--> trees
    trees --nix-build closure.nix--> /nix/store --nix copy, signed, zstd--> a binary cache

About 290 paths and 540 MB of NARs, half of the paths below 64 KiB. Binaries have RPATHs with the
store paths of what they are linked against, scripts the store path of their interpreter, so that
references are as dense and as deep as those of nixpkgs.

It takes minutes and is made once, in $XDG_CACHE_HOME/narswarm-bench (default ~/.cache); what was
built in /nix/store is deleted when the cache has it. Another Debian gives another closure:
compare within a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = ("git", "python3", "perl", "curl", "vim", "tmux", "nginx-light", "sqlite3",
            "python3-numpy", "gdb")  # fmt: skip
PARTS = {"man": ("man", "info"), "doc": ("doc", "locale")}
INTERPRETER = "perl-base"
"""Whose store path scripts of packages that depend on it begin with."""
EDGES_NOT_FOLLOWED = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
NIX_SETTINGS = (
    "experimental-features = nix-command flakes\nsandbox = false\nbuild-users-group =\n"
    "substituters =\n"
)
COMMAND_SECONDS_MAX = 1800.0
VERSION = 1
"""Of what is kept: another one is made anew."""


class NoClosure(Exception):
    """It cannot be made here; says why."""


@dataclass(frozen=True, slots=True)
class Kept:
    """`cache` is a signed file:// binary cache with `.nar.zst`."""

    root: str
    public_key: str
    cache: Path
    paths: int
    nar_bytes: int
    file_bytes: int


@dataclass(slots=True)
class Package:
    version: str
    tree: str
    sha256: str
    dependencies: list[str]
    parts: list[str]
    interpreter: str | None


def kept() -> Kept:
    """What was made before, or made now. Raises NoClosure."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    place = Path(base) / "narswarm-bench" / f"debian-{VERSION}"
    if not (place / "closure.json").exists():
        _make(place)
    said = json.loads((place / "closure.json").read_text())
    return Kept(cache=place / "cache", **said)


def _make(place: Path) -> None:
    for program in ("apt-get", "dpkg-deb", "patchelf", "readelf", "nix-build"):
        if shutil.which(program) is None:
            raise NoClosure(f"the closure is made with {program}, which is not here")
    shutil.rmtree(place, ignore_errors=True)
    work = place / "work"
    work.mkdir(parents=True)
    packages = without_circles(_unpacked(work))
    text = json.dumps({name: _fields(package) for name, package in packages.items()}, indent=1)
    (work / "packages.json").write_text(text)
    for name in ("closure.nix", "builder.sh"):
        shutil.copy(HERE / name, work)
    _build(place, work)
    shutil.rmtree(work)


def _fields(package: Package) -> dict[str, object]:
    return {name: getattr(package, name) for name in Package.__slots__}


def _unpacked(work: Path) -> dict[str, Package]:
    """Every package that PROGRAMS depend on, by name."""
    options = _apt_options(work)
    _run("apt-get", *options, "update")
    edges = [f"--no-{kind}" for kind in EDGES_NOT_FOLLOWED]
    named = _run("apt-cache", *options, "depends", "--recurse", *edges, "--no-pre-depends",
                 *PROGRAMS)  # fmt: skip
    names = sorted({line for line in named.splitlines() if re.fullmatch(r"[a-z0-9][\w.+-]*", line)})
    described = described_in(_run("apt-cache", *options, "show", "--no-all-versions", *names))
    archives, trees = work / "archives", work / "trees"
    archives.mkdir()
    _run("apt-get", *options, "download", *described, directory=archives)
    found: dict[str, Package] = {}
    for archive in sorted(archives.iterdir()):
        name = archive.name.partition("_")[0]
        tree = trees / name
        tree.mkdir(parents=True)
        _run("dpkg-deb", "-x", str(archive), str(tree))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        found[name] = _package(described[name], tree, digest)
    return found


def _package(fields: dict[str, str], tree: Path, digest: str) -> Package:
    """Its dependencies include names of packages that are not there."""
    version = re.sub(r"[^\w.+-]", "-", fields["Version"].rpartition(":")[2])
    needed = f"{fields.get('Depends', '')},{fields.get('Pre-Depends', '')}"
    dependencies = {re.split(r"[ (|:]", one.strip())[0] for one in needed.split(",") if one.strip()}
    parts = [
        part
        for part, names in PARTS.items()
        if any((tree / "usr/share" / n).is_dir() for n in names)
    ]
    interpreter = INTERPRETER if INTERPRETER in dependencies else None
    return Package(version, str(tree), digest, sorted(dependencies), parts, interpreter)


def _apt_options(work: Path) -> tuple[str, ...]:
    """The sources of the machine, with a state of its own, as if nothing were installed."""
    for name in ("state/lists/partial", "archives-of-apt/archives/partial"):
        (work / name).mkdir(parents=True)
    settings = {
        "Dir::State": work / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": work / "archives-of-apt",
        "APT::Sandbox::User": "root",
    }
    return (
        "-qq",
        *(word for name, value in settings.items() for word in ("-o", f"{name}={value}")),
    )


def described_in(text: str) -> dict[str, dict[str, str]]:
    """What `apt-cache show` printed: the fields of each package, by name."""
    found: dict[str, dict[str, str]] = {}
    for paragraph in text.split("\n\n"):
        fields = dict(re.findall(r"(?m)^([\w-]+): (.*)$", paragraph))
        if "Package" in fields:
            found.setdefault(fields["Package"], fields)
    return found


def without_circles(packages: dict[str, Package]) -> dict[str, Package]:
    """Less the dependencies that are not there, and those that close a circle."""
    entered: set[str] = set()
    left: set[str] = set()

    def enter(name: str) -> None:
        entered.add(name)
        package = packages[name]
        for other in list(package.dependencies):
            if other not in packages or (other in entered and other not in left):
                package.dependencies.remove(other)
            elif other not in entered:
                enter(other)
        if package.interpreter not in package.dependencies:
            package.interpreter = None
        left.add(name)

    for name in sorted(packages):
        if name not in entered:
            enter(name)
    return packages


def _build(place: Path, work: Path) -> None:
    link, home = work / "result", work / "home"
    home.mkdir()
    nix = {"HOME": str(home), "NIX_CONFIG": NIX_SETTINGS}
    root = _run("nix-build", str(work / "closure.nix"), "--out-link", str(link), more=nix).strip()
    try:
        key = work / "key"
        key.touch(0o600)
        key.write_text(_run("nix", "key", "generate-secret", "--key-name", "bench-1", more=nix))
        public = _run("nix", "key", "convert-secret-to-public", more=nix, text=key.read_text())
        cache = f"file://{place}/cache?compression=zstd&secret-key={key}"
        _run("nix", "copy", "--to", cache, root, more=nix)
        told = json.loads(_run("nix", "path-info", "--json", "--recursive", root, more=nix))
    finally:
        link.unlink(missing_ok=True)
    infos = told if isinstance(told, list) else [dict(info, path=p) for p, info in told.items()]
    said = {
        "root": root,
        "public_key": public.strip(),
        "paths": len(infos),
        "nar_bytes": sum(info["narSize"] for info in infos),
        "file_bytes": sum(file.stat().st_size for file in (place / "cache/nar").iterdir()),
    }
    _run("nix-store", "--delete", *(info["path"] for info in infos), more=nix)
    (place / "closure.json").write_text(json.dumps(said, indent=1))


def _run(
    *words: str, directory: Path | None = None, more: dict[str, str] | None = None, text: str = ""
) -> str:
    """Its stdout. Raises NoClosure with the end of what it said otherwise."""
    done = subprocess.run(
        words, cwd=directory, env={**os.environ, **(more or {})}, input=text, capture_output=True,
        text=True, timeout=COMMAND_SECONDS_MAX, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise NoClosure(f"{' '.join(words[:4])} ...: {done.stderr.strip()[-1000:]}")
    return done.stdout
