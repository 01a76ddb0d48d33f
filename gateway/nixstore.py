"""A local Nix store, read only: what is valid in it, with which hash, size and references.

Nix keeps that in SQLite (src/libstore/schema.sql): `ValidPaths` has a row per path with its
NarHash (`sha256:` and hexadecimal digits), NarSize, whether this machine built it itself
(`ultimate`), signatures separated by blanks and the content address; `Refs` has the edges,
self-references included. The database is in WAL mode: even a reader must be able to write
its shared-memory file. So root opens it with `mode=ro`; for everybody else that fails, and
`immutable=1` would ignore the WAL and show an old state. They ask Nix itself instead, with
`nix path-info --json`, whose shape changed over the years (a list; an object by path).

A chroot store (`nix --store /root/x`) has its database in /root/x/nix/var/nix/db and its files in
/root/x/nix/store, but its paths still read /nix/store/...: names here are always those.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from chunker.digest import DIGEST_BYTES, NarHash, nix32_decode
from chunker.nar import write_tree
from chunker.record import STORE_DIRECTORY, is_store_path

from .errors import StoreProblem, UsageError

STATE_DB = Path("/nix/var/nix/db/db.sqlite")
REAL_STORE = Path(STORE_DIRECTORY)
BUSY_SECONDS_MAX = 10.0
NIX_SECONDS_MAX = 600.0
NIX_PATHS_PER_CALL = 500
"""A command line holds 2 MiB; a store path at most 255 bytes."""
SYMLINKS_MAX = 40

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PathInfo:
    """A valid path. `references` are full store paths, sorted, distinct, itself included where
    it mentions itself."""

    store_path: str
    nar_hash: NarHash
    nar_size: int
    references: tuple[str, ...]
    ultimate: bool
    """Built on this machine: nobody else vouches for it, and nobody else need."""
    signatures: tuple[str, ...]
    content_address: str


class _Source(Protocol):
    def infos(self, paths: Iterable[str]) -> dict[str, PathInfo]: ...
    def valid_paths(self) -> list[str]: ...
    def close(self) -> None: ...


class NixStore:
    """Use as a context manager, or close it. Synchronous; may be used from any one thread at a
    time."""

    def __init__(self, source: _Source, real_store: Path) -> None:
        self._source = source
        self._real_store = real_store

    @classmethod
    def open(cls, state_db: Path = STATE_DB, real_store: Path = REAL_STORE) -> NixStore:
        """Raises StoreProblem where there is no store, or neither its database nor Nix answers."""
        try:
            return cls(_Database(state_db), real_store)
        except sqlite3.Error as error:
            if not real_store.is_dir():
                raise StoreProblem(
                    f"there is no Nix store in {real_store}; name another one, "
                    "or seed from a binary cache"
                ) from error
            source = _NixCommand(state_db, real_store)
            try:
                source.probe()
            except StoreProblem as problem:
                raise StoreProblem(
                    f"the Nix database {state_db} cannot be opened ({error}) and asking nix "
                    f"failed as well ({problem}); run this as root, or put nix on PATH"
                ) from error
            return cls(source, real_store)

    def __enter__(self) -> NixStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._source.close()

    def info(self, path: str) -> PathInfo | None:
        """None where the path is not valid here."""
        return self._source.infos([path]).get(path)

    def valid_paths(self) -> list[str]:
        """Every valid path, sorted; derivations too."""
        return sorted(self._source.valid_paths())

    def closure(self, paths: Iterable[str]) -> list[PathInfo]:
        """Everything the paths need at run time, references before referrers.
        Raises StoreProblem for a path that is not valid here."""
        roots = sorted(set(paths))
        found: dict[str, PathInfo] = {}
        wanted = set(roots)
        while wanted:
            batch = self._source.infos(sorted(wanted))
            if missing := sorted(wanted - batch.keys()):
                raise StoreProblem(
                    f"{missing[0]} is not valid in this Nix store"
                    + (f", nor are {len(missing) - 1} others" if len(missing) > 1 else "")
                    + "; build or fetch it first"
                )
            found |= batch
            wanted = {to for info in batch.values() for to in info.references} - found.keys()
        return references_first(found, roots)

    def nar(self, info: PathInfo) -> Iterator[bytes]:
        """The path as a NAR, in pieces."""
        return write_tree(self.real_path(info.store_path))

    def real_path(self, store_path: str) -> Path:
        assert is_store_path(store_path)
        return self._real_store / store_path[len(STORE_DIRECTORY) + 1 :]


def resolve(text: str, real_store: Path = REAL_STORE) -> str:
    """The store path that `text` means: one, something below one, or a link such as ./result
    that leads to one. Raises UsageError. Whether it is valid, `NixStore.info` tells."""
    stores = {STORE_DIRECTORY, str(real_store), os.path.realpath(real_store)}
    path = os.path.abspath(text)
    for _ in range(SYMLINKS_MAX):
        for store in stores:
            if path.startswith(f"{store}/"):
                name = path[len(store) + 1 :].split("/", 1)[0]
                return _checked(f"{STORE_DIRECTORY}/{name}", text)
        link = _first_link(path)
        if link is None:
            break
        rest = path[len(link) :].lstrip("/")
        path = os.path.abspath(os.path.join(os.path.dirname(link), os.readlink(link), rest))
    raise UsageError(f"{text} is neither a store path nor a link to one")


def references_first(infos: Mapping[str, PathInfo], roots: Iterable[str]) -> list[PathInfo]:
    """Depth first without recursion; self-references and cycles are cut where they close.
    References that `infos` lacks are passed over. Pure."""
    ordered: list[PathInfo] = []
    seen: set[str] = set()
    for root in roots:
        if root in seen or root not in infos:
            continue
        seen.add(root)
        stack = [(infos[root], iter(infos[root].references))]
        while stack:
            info, references = stack[-1]
            for reference in references:
                if reference not in seen and reference in infos:
                    seen.add(reference)
                    stack.append((infos[reference], iter(infos[reference].references)))
                    break
            else:
                ordered.append(info)
                stack.pop()
    return ordered


def parse_nar_hash(text: str) -> NarHash:
    """`sha256:` with hexadecimal or base32 digits, or `sha256-` with base64, as Nix writes them.
    Raises ValueError."""
    kind, digits = text[:7], text[7:]
    try:
        if kind == "sha256-":
            digest = base64.b64decode(digits, validate=True)
        elif kind == "sha256:" and len(digits) == 2 * DIGEST_BYTES:
            digest = bytes.fromhex(digits)
        elif kind == "sha256:":
            digest = nix32_decode(digits)
        else:
            raise ValueError(f"{text!r:.80} is not a SHA-256 hash")
    except binascii.Error as error:
        raise ValueError(f"{text!r:.80}: {error}") from error
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"{text!r:.80} is not 32 bytes")
    return NarHash(digest)


class _Database:
    """Raises sqlite3.Error from its constructor, StoreProblem later."""

    def __init__(self, path: Path) -> None:
        # `check_same_thread`: seeding runs in a worker thread, one at a time.
        self._connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=BUSY_SECONDS_MAX,
            check_same_thread=False,
        )
        try:
            # SQLite opens lazily: only a query shows whether it may.
            self._connection.execute("SELECT id FROM ValidPaths LIMIT 1").fetchone()
            self._connection.execute("SELECT referrer FROM Refs LIMIT 1").fetchone()
        except sqlite3.Error:
            self._connection.close()
            raise

    def infos(self, paths: Iterable[str]) -> dict[str, PathInfo]:
        found = _stored(lambda: [self._info(path) for path in paths])
        return {info.store_path: info for info in found if info is not None}

    def valid_paths(self) -> list[str]:
        query = "SELECT path FROM ValidPaths"
        return _stored(lambda: [row[0] for row in self._connection.execute(query)])

    def close(self) -> None:
        self._connection.close()

    def _info(self, path: str) -> PathInfo | None:
        row = self._connection.execute(
            "SELECT id, hash, narSize, ultimate, sigs, ca FROM ValidPaths WHERE path = ?", (path,)
        ).fetchone()
        if row is None:
            return None
        references = self._connection.execute(
            "SELECT path FROM Refs JOIN ValidPaths ON id = reference WHERE referrer = ?", (row[0],)
        )
        return PathInfo(
            store_path=path,
            nar_hash=parse_nar_hash(row[1]),
            nar_size=int(row[2] or 0),
            references=tuple(sorted(reference for (reference,) in references)),
            ultimate=bool(row[3]),
            signatures=tuple((row[4] or "").split()),
            content_address=row[5] or "",
        )


class _NixCommand:
    """Asks `nix path-info`. Slow to start (tens of ms), so in batches."""

    def __init__(self, state_db: Path, real_store: Path) -> None:
        self._options: list[str] = []
        if real_store != REAL_STORE:
            self._options = ["--store", _chroot(state_db, real_store)]

    def probe(self) -> None:
        self._run(["--version"])

    def infos(self, paths: Iterable[str]) -> dict[str, PathInfo]:
        asked = sorted(set(paths))
        found: dict[str, PathInfo] = {}
        for start in range(0, len(asked), NIX_PATHS_PER_CALL):
            found |= self._path_infos(asked[start : start + NIX_PATHS_PER_CALL])
        return found

    def valid_paths(self) -> list[str]:
        return list(self._path_infos(["--all"]))

    def close(self) -> None:
        pass

    def _path_infos(self, arguments: list[str]) -> dict[str, PathInfo]:
        try:
            output = self._run(["path-info", "--json", *self._options, *arguments])
        except StoreProblem as problem:
            # Some versions refuse the whole question over one path that is not valid.
            if "is not valid" not in str(problem) or arguments == ["--all"]:
                raise
            if len(arguments) == 1:
                return {}
            return {k: v for one in arguments for k, v in self._path_infos([one]).items()}
        return parse_path_infos(output)

    def _run(self, arguments: list[str]) -> str:
        command = ["nix", "--extra-experimental-features", "nix-command", *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=NIX_SECONDS_MAX, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StoreProblem(f"nix could not be asked: {error}") from error
        if done.returncode != 0:
            raise StoreProblem(f"nix says: {done.stderr.strip()[-500:]}")
        return done.stdout


def parse_path_infos(output: str) -> dict[str, PathInfo]:
    """What `nix path-info --json` printed, of any version. Raises StoreProblem. Pure."""
    try:
        parsed = json.loads(output)
        if isinstance(parsed, dict) and isinstance(parsed.get("info"), dict):
            parsed = parsed["info"]
        entries = (
            [(_full(path), entry) for path, entry in parsed.items()]
            if isinstance(parsed, dict)
            else [(_full(entry["path"]), entry) for entry in parsed]
        )
        return {
            path: PathInfo(
                store_path=path,
                nar_hash=parse_nar_hash(entry["narHash"]),
                nar_size=int(entry["narSize"]),
                references=tuple(sorted({_full(name) for name in entry["references"]})),
                ultimate=bool(entry.get("ultimate", False)),
                signatures=tuple(entry.get("signatures") or ()),
                content_address=_content_address(entry.get("ca")),
            )
            for path, entry in entries
            if entry is not None and entry.get("valid", True)
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreProblem(
            f"the answer of `nix path-info --json` was not understood ({error!r}); run as root, "
            "so that the database is read directly"
        ) from error


def _content_address(value: object) -> str:
    """The newest versions print an object instead of the text; that is left to the database."""
    return value if isinstance(value, str) else ""


def _full(name: str) -> str:
    return name if name.startswith("/") else f"{STORE_DIRECTORY}/{name}"


def _chroot(state_db: Path, real_store: Path) -> str:
    root = real_store.parent.parent
    if real_store != root / "nix" / "store" or state_db != root / "nix/var/nix/db/db.sqlite":
        raise StoreProblem(f"{real_store} is not the store of a root directory; run this as root")
    return str(root)


def _stored(read: Callable[[], T]) -> T:
    try:
        return read()
    except (sqlite3.Error, ValueError) as error:
        raise StoreProblem(f"the Nix database cannot be read: {error}") from error


def _first_link(path: str) -> str | None:
    """The outermost symbolic link on the way to `path`."""
    for end in [place for place, char in enumerate(path) if char == "/" and place] + [len(path)]:
        if os.path.islink(path[:end]):
            return path[:end]
    return None


def _checked(store_path: str, text: str) -> str:
    if not is_store_path(store_path):
        raise UsageError(f"{text} leads to {store_path}, which is no store path")
    return store_path
