"""`narswarm sign`: what is signed, what is not, and what it leaves in the directory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from chunker.digest import NarHash
from chunker.nar import write_tree
from gateway.errors import StoreProblem, UsageError
from gateway.narinfo import SIGNATURES_ONLY_URL, Narinfo, fingerprint, parse
from gateway.nixstore import NixStore, PathInfo
from gateway.seeding import record_of
from gateway.signing import KeyRing, SecretKey
from gateway.vouching import into, publish, vouch

ONE, TWO = SecretKey("one-1", b"1" * 32), SecretKey("two-1", b"2" * 32)


class Listed:
    """The database of a small store."""

    def __init__(self) -> None:
        self.known: dict[str, PathInfo] = {}

    def infos(self, paths: Iterable[str]) -> dict[str, PathInfo]:
        return {path: self.known[path] for path in paths if path in self.known}

    def valid_paths(self) -> list[str]:
        return list(self.known)

    def close(self) -> None:
        pass


class Machine:
    def __init__(self, top: Path) -> None:
        self.top = top
        self.listed = Listed()
        self.nix = NixStore(self.listed, top)

    def add(self, name: str, text: str, *, ultimate: bool = True) -> PathInfo:
        path = f"/nix/store/{'0' * 31}{len(self.listed.known)}-{name}"
        self.top.mkdir(exist_ok=True)
        (self.top / path[11:]).write_text(text)
        nar = b"".join(write_tree(self.top / path[11:]))
        digest = NarHash(hashlib.sha256(nar).digest())
        info = PathInfo(path, digest, len(nar), (path,), ultimate, ("other-1:AAAA",), "")
        self.listed.known[path] = info
        return info

    def sign(self, key: SecretKey, *infos: PathInfo, all_paths: bool = False) -> list[str]:
        done = vouch(self.nix, infos, into(self.top.parent / "out", key), all_paths=all_paths)
        return [one.outcome for one in done]

    def written(self, info: PathInfo) -> Narinfo:
        file = self.top.parent / "out" / f"{info.store_path[11:43]}.narinfo"
        return parse(file.read_bytes())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "store")


def signers(info: Narinfo, *keys: SecretKey) -> list[str]:
    text = fingerprint(info.store_path, info.nar_hash, info.nar_size, info.references)
    verified = KeyRing(key.public for key in keys).verified(text, info.signatures)
    assert verified == info.signatures
    return [one.partition(":")[0] for one in verified]


def test_what_was_built_here_is_signed_by_each_key_once(machine: Machine) -> None:
    built = machine.add("built", "here")
    for key in (ONE, TWO, ONE):
        assert machine.sign(key, built) == ["signed"]
    written = machine.written(built)
    assert signers(written, ONE, TWO) == ["one-1", "two-1"]
    assert written.url == SIGNATURES_ONLY_URL and written.references == (built.store_path,)
    assert (machine.top.parent / "out" / "nix-cache-info").read_text().startswith("StoreDir: /nix/")


def test_what_came_from_elsewhere_is_not_vouched_for_unless_told(machine: Machine) -> None:
    fetched, built = machine.add("fetched", "f", ultimate=False), machine.add("built", "b")
    assert machine.sign(ONE, fetched, built) == ["not built here", "signed"]
    with pytest.raises(FileNotFoundError):
        machine.written(fetched)
    assert machine.sign(ONE, fetched, all_paths=True) == ["signed"]
    assert signers(machine.written(fetched), ONE) == ["one-1"]


def test_bytes_that_are_not_the_databases_are_not_signed(machine: Machine) -> None:
    built = machine.add("built", "here")
    (machine.top / built.store_path[11:]).write_text("hers")
    with pytest.raises(StoreProblem, match="nix-store --verify-path"):
        machine.sign(ONE, built)
    with pytest.raises(FileNotFoundError):
        machine.written(built)


def test_other_content_in_the_directory_is_a_disagreement(machine: Machine, tmp_path: Path) -> None:
    record = record_of(machine.add("built", "here"))
    publish(record, ONE, tmp_path)
    with pytest.raises(StoreProblem, match="other content here than what one-1 signed"):
        publish(replace(record, nar_hash=NarHash(bytes(32))), TWO, tmp_path)
    file = tmp_path / f"{record.store_hash}.narinfo"
    assert signers(parse(file.read_bytes()), ONE, TWO) == ["one-1"]
    file.write_text("something else\n")
    with pytest.raises(StoreProblem, match="is in the way"):
        publish(record, TWO, tmp_path)


def test_more_signatures_than_a_narinfo_holds(machine: Machine, tmp_path: Path) -> None:
    record = record_of(machine.add("built", "here"))
    for number in range(16):
        publish(record, SecretKey(f"k-{number}", bytes([number]) * 32), tmp_path)
    with pytest.raises(UsageError, match="16 signatures"):
        publish(record, ONE, tmp_path)
