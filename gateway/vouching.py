"""A second builder's word, published without the bytes: `narswarm sign`.

    valid paths of this Nix store -> their real bytes hashed -> signature -> HASH.narinfo in a
    directory that any web server can give away, or a file:// upstream names; or on what a running
    process holds (gateway.countersigning)

A signature says "I built this, and got these bytes". So by default only what this machine built
itself is signed, and never on the database's word alone: the bytes are read and hashed. The
narinfos name no NAR (SIGNATURES_ONLY_URL): a gateway that has the directory among its upstreams
unites the signatures with those of a cache that has the NAR. What is in the directory already
keeps its signatures; other content of the same path there means that two builders disagree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chunker.digest import nix32_encode
from chunker.record import SIGNATURES_MAX, PathRecord

from .errors import NarinfoError, StoreProblem, UsageError
from .files import read_text, replace_text
from .narinfo import NARINFO_BYTES_MAX, SIGNATURES_ONLY_URL, fingerprint, format, parse
from .nixstore import NixStore, PathInfo
from .seeding import record_of
from .signing import SecretKey

CACHE_INFO = "StoreDir: /nix/store\nWantMassQuery: 0\nPriority: 100\n"

Outcome = Literal["signed", "not built here", "not held"]
Publish = Callable[[PathRecord], bool]
"""Sign it and give the signature away; False: there is nothing to put it on."""


@dataclass(frozen=True, slots=True)
class Vouched:
    path: str
    index: int
    total: int
    outcome: Outcome


def vouch(
    nix: NixStore, infos: Sequence[PathInfo], publish: Publish, *, all_paths: bool
) -> Iterator[Vouched]:
    """`all_paths`: also what was not built here. Raises StoreProblem for bytes that are not what
    the database says, and what `publish` raises; what was published before stays."""
    for index, info in enumerate(infos, 1):
        if not info.ultimate and not all_paths:
            yield Vouched(info.store_path, index, len(infos), "not built here")
            continue
        check_bytes(nix, info)
        outcome: Outcome = "signed" if publish(record_of(info)) else "not held"
        yield Vouched(info.store_path, index, len(infos), outcome)


def into(directory: Path, key: SecretKey) -> Publish:
    """As a cache without NARs. Raises StoreProblem where other content is signed there already."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "nix-cache-info").exists():
        replace_text(directory / "nix-cache-info", CACHE_INFO)

    def put(record: PathRecord) -> bool:
        publish(record, key, directory)
        return True

    return put


def check_bytes(nix: NixStore, info: PathInfo) -> None:
    """Raises StoreProblem unless the bytes on disk are those of the database."""
    digest, size = hashlib.sha256(), 0
    for piece in nix.nar(info):
        digest.update(piece)
        size += len(piece)
    if digest.digest() != info.nar_hash or size != info.nar_size:
        raise StoreProblem(
            f"{info.store_path} has the hash sha256:{nix32_encode(digest.digest())}, but was "
            f"registered with sha256:{nix32_encode(info.nar_hash)}: it was changed and is not "
            f"signed; run: nix-store --verify-path {info.store_path}"
        )


def publish(record: PathRecord, key: SecretKey, directory: Path) -> None:
    file = directory / f"{record.store_hash}.narinfo"
    text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    others = tuple(one for one in _signatures(file, text) if one.partition(":")[0] != key.name)
    signatures = (key.sign(text), *others)
    if len(signatures) > SIGNATURES_MAX:
        raise UsageError(f"{file} has {SIGNATURES_MAX} signatures; use another directory")
    replace_text(file, format(record, signatures, SIGNATURES_ONLY_URL).decode())


def _signatures(file: Path, text: bytes) -> tuple[str, ...]:
    """Those in `file`, if it is of the content that `text` is the fingerprint of."""
    there = read_text(file)
    if not there:
        return ()
    try:
        info = parse(there.encode()[: NARINFO_BYTES_MAX + 1])
    except NarinfoError as error:
        raise StoreProblem(f"{file} is in the way: {error}; use another directory") from error
    if fingerprint(info.store_path, info.nar_hash, info.nar_size, info.references) != text:
        by = ", ".join(one.partition(":")[0] for one in info.signatures) or "nobody"
        raise StoreProblem(
            f"{info.store_path} was built with other content here than what {by} signed in {file}: "
            "the build is not reproducible, or one of the builders is wrong"
        )
    return info.signatures
