"""Pools on disk, below the store: everything 0600, replaced as a whole or not at all.

    pools/NAME/description     signed by the pool key: name, Nix keys, word, who has the key
               certificate     our own
               key             the pool's secret key, where the pool was created
               tokens/HEX      of a join code that is out: when its time is over
               members/HEX     a certificate, addresses, when last seen
               revoked/HEX     a revocation

NAME is 16 hex digits of the BLAKE3 of the pool's key, and HEX the BLAKE3 of a token or PeerId: what
others say never becomes a file name. Two processes write here, the one that runs and the command
line, and each file is one fact, so neither overwrites what the other knows. A token is used up by
removing its file: of all who try, one succeeds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import blake3
import msgpack

from peer.certificates import (
    BLOB_BYTES_MAX,
    DESCRIPTION_BYTES_MAX,
    Certificate,
    CertificateRefused,
    Description,
    Member,
    PoolId,
    Revocation,
    decode_certificate,
    decode_description,
    decode_revocation,
    verify,
)
from peer.errors import IdentityError, PeerError
from peer.identity import Identity, PeerId, load_or_create
from peer.joining import Joined
from peer.messages import ADDRESSES_MAX
from peer.pools import Known, Mine

from .errors import UsageError

NAME_BYTES = 8
MEMBER_BYTES_MAX = BLOB_BYTES_MAX + 4 * 1024
FILES_PER_POOL_MAX = 8192


@dataclass(frozen=True, slots=True)
class Listed:
    """A member as it was last known; its certificate may be over."""

    certificate: Certificate
    blob: bytes
    addresses: tuple[str, ...]
    seen: float
    """Seconds since 1970; 0 if never."""


@dataclass(frozen=True, slots=True)
class Held:
    """One pool as it is on disk."""

    directory: Path
    mine: Mine
    key: Identity | None
    members: tuple[Listed, ...]
    revoked: tuple[Known, ...]

    @property
    def id(self) -> str:
        """For people, where two pools have one name."""
        return self.directory.name

    @property
    def description(self) -> Description:
        return self.mine.description


def root_of(store: Path) -> Path:
    return store / "pools"


def directory_of(store: Path, pool: PoolId) -> Path:
    return root_of(store) / _hex(pool)[: 2 * NAME_BYTES]


def fingerprint(store: Path) -> tuple[tuple[str, int], ...]:
    """Changes whenever `load` would find something else, but for members."""
    root = root_of(store)
    found = []
    for path in (root, *root.glob("*"), *root.glob("*/revoked"), *root.glob("*/key")):
        try:
            found.append((str(path), path.stat().st_mtime_ns))
        except OSError:
            continue  # it is going just now; the next look sees that
    return tuple(sorted(found))


def load(store: Path, here: PeerId) -> tuple[list[Held], list[str]]:
    """The pools of `here`, and what is wrong with those that cannot be read."""
    held, wrong = [], []
    for directory in sorted(root_of(store).glob("*")):
        try:
            if (directory / "certificate").exists():
                held.append(_load(directory, here))
        except (OSError, PeerError, ValueError) as error:
            wrong.append(f"the pool in {directory} cannot be read: {error}")
    return held, wrong


def write_joined(store: Path, joined: Joined) -> Path:
    """A pool that was joined, or a renewed membership of one."""
    directory = directory_of(store, joined.description.pool)
    _write(directory / "description", joined.description_blob)
    seen = {
        listed.certificate.peer: listed.seen
        for listed in _members(directory, joined.description.pool)
    }
    for other, addresses in joined.others:
        peer = other.certificate.peer
        _write_member(directory, peer, other.blob, addresses, seen.get(peer, 0.0))
    _write(directory / "certificate", joined.member.blob)
    return directory


def write_member(
    directory: Path, peer: PeerId, blob: bytes, addresses: Iterable[str], seen: float
) -> None:
    """Not in a pool that was left meanwhile."""
    if (directory / "certificate").exists():
        _write_member(directory, peer, blob, addresses, seen)


def _write_member(
    directory: Path, peer: PeerId, blob: bytes, addresses: Iterable[str], seen: float
) -> None:
    data = msgpack.packb([blob, list(addresses)[:ADDRESSES_MAX], float(seen)], use_bin_type=True)
    _write(directory / "members" / _hex(peer.encode()), data)


def write_revocation(directory: Path, known: Known) -> None:
    """Not in a pool that was left meanwhile, and not over a newer one."""
    if not (directory / "certificate").exists():
        return
    file = directory / "revoked" / _hex(known.revocation.peer.encode())
    if file.exists() and decode_revocation(_read(file)).since >= known.revocation.since:
        return
    _write(file, known.blob)


def write_token(directory: Path, digest: bytes, expiry: float, now: float) -> None:
    """Beside those that are out; those whose time is over go."""
    for file in _files(directory / "tokens"):
        if float(file.read_bytes()[:32]) <= now:
            file.unlink(missing_ok=True)
    _write(directory / "tokens" / digest.hex(), f"{int(expiry)}\n".encode())


def remove_tokens(directory: Path) -> int:
    """How many join codes were still out."""
    files = list((directory / "tokens").glob("*"))
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)


def forget(directory: Path) -> None:
    """Leave: without its certificate it is no pool any more, whatever happens to the rest. Raises
    UsageError."""
    try:
        (directory / "certificate").unlink(missing_ok=True)
        # Out of the way first: a running process may be writing into it.
        left = Path(tempfile.mkdtemp(prefix=".left-", dir=directory.parent))
        directory.rename(left)
        shutil.rmtree(left)
    except OSError as error:
        raise UsageError(f"cannot remove {directory}: {error.strerror}") from error


class DiskRegister:
    """The tokens and keys of a store's pools, for the desk (peer.joining.Register)."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def take(self, digest: bytes, now: float) -> PoolId | None:
        for file in root_of(self._store).glob(f"*/tokens/{digest.hex()}"):
            try:
                expiry = float(file.read_bytes()[:32])
                description = _description(file.parents[1])
                file.unlink()
                _make_durable(file.parent)
            except (OSError, ValueError, CertificateRefused):
                return None  # somebody else was first
            return description.pool if expiry > now else None
        return None

    def key(self, pool: PoolId) -> Identity | None:
        try:
            return read_key(directory_of(self._store, pool))
        except (IdentityError, OSError):
            return None


def read_key(directory: Path) -> Identity | None:
    """None where another machine has it. Raises IdentityError."""
    file = directory / "key"
    return load_or_create(file) if file.exists() else None


def make_key(store: Path) -> Identity:
    """Of a new pool, in the directory that is named by it. Raises UsageError."""
    root = root_of(store)
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
        key = load_or_create(new / "key")
        new.rename(directory_of(store, PoolId(key.public)))
    except (OSError, IdentityError) as error:
        raise UsageError(f"cannot make a pool in {root}: {error}") from error
    return key


def _load(directory: Path, here: PeerId) -> Held:
    description = _description(directory)
    blob = _read(directory / "certificate")
    member = verify(
        blob,
        pools={description.pool},
        peer=here,
        # Our own that is over still gets us a new one; whether it is in force is asked elsewhere.
        now=decode_certificate(blob).issued,
        revoked_since=lambda pool, peer: None,
    )
    return Held(
        directory,
        Mine(description, member),
        read_key(directory),
        tuple(_members(directory, description.pool)),
        tuple(_revoked(directory, description.pool)),
    )


def _description(directory: Path) -> Description:
    return decode_description(_read(directory / "description", DESCRIPTION_BYTES_MAX))


def _members(directory: Path, pool: PoolId) -> Iterable[Listed]:
    for file in _files(directory / "members"):
        try:
            blob, addresses, seen = msgpack.unpackb(_read(file, MEMBER_BYTES_MAX))
            certificate = decode_certificate(blob)
            listed = Listed(certificate, blob, tuple(map(str, addresses)), float(seen))
        except (CertificateRefused, ValueError, TypeError):
            continue  # a member is only a hint: it will show its certificate itself
        if certificate.pool == pool:
            yield listed


def _revoked(directory: Path, pool: PoolId) -> Iterable[Known]:
    for file in _files(directory / "revoked"):
        blob = _read(file)
        revocation: Revocation = decode_revocation(blob)
        if revocation.pool == pool:
            yield Known(revocation, blob)


def _files(directory: Path) -> list[Path]:
    """Without those that are being written."""
    found = [file for file in directory.glob("*") if not file.name.startswith(".")]
    return sorted(found)[:FILES_PER_POOL_MAX]


def still_in_force(listed: Listed, now: float) -> Member | None:
    """The member, if its certificate holds; who was revoked is somebody else's to say."""
    try:
        return verify(
            listed.blob,
            pools={listed.certificate.pool},
            peer=listed.certificate.peer,
            now=now,
            revoked_since=lambda pool, peer: None,
        )
    except CertificateRefused:
        return None


def _read(file: Path, bytes_max: int = BLOB_BYTES_MAX) -> bytes:
    with file.open("rb") as opened:
        return opened.read(bytes_max + 1)


def _write(file: Path, data: bytes) -> None:
    """Nothing happens where it says so already, so that no reader is woken for nothing."""
    try:
        if file.exists() and file.read_bytes() == data:
            return
        for folder in reversed([folder for folder in file.parents if not folder.exists()]):
            folder.mkdir(exist_ok=True, mode=0o700)
        new = file.with_name(f".{file.name}.{os.getpid()}")
        new.unlink(missing_ok=True)
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(new, file)
        _make_durable(file.parent)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from error


def _make_durable(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hex(data: bytes) -> str:
    return blake3.blake3(data).hexdigest()
