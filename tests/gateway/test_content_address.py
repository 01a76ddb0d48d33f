"""Content addresses of paths that a real Nix made (tests/golden), and of what it did not."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from chunker.digest import NarHash, nix32_encode
from chunker.record import PathRecord
from gateway import git_tree
from gateway.content_address import ContentCheck, binds_nar_hash, parse, recomputes, store_path_of
from gateway.errors import NotTrusted
from gateway.narinfo import format
from gateway.nixstore import parse_nar_hash
from gateway.policy import Policy, any_of
from gateway.seeding import NO_MANIFEST
from gateway.signing import KeyRing
from gateway.trust import admit
from tests.golden.samples import string, strings

GOLDEN = Path(__file__).parents[1] / "golden"
NOBODY = any_of(KeyRing(()))


def read(name: str) -> list[tuple[PathRecord, bytes]]:
    found = []
    for entry in json.loads((GOLDEN / name).read_text()):
        nar = base64.b64decode(entry["nar"])
        record = PathRecord(
            entry["store_path"],
            parse_nar_hash(entry["nar_hash"]),
            len(nar),
            tuple(entry["references"]),
            (),
            entry["content_address"],
            NO_MANIFEST,
        )
        assert hashlib.sha256(nar).digest() == record.nar_hash
        found.append((record, nar))
    return found


NEWER = read("newer_addresses.json")
ONE_ID = [
    (record, nar)
    for record, nar in NEWER
    if ":git:" in record.content_address
    and record.store_path.endswith(("-file", "-executable", "-link"))
]
"""A file, the same executable, and a link that spells it, with SHA-1 and SHA-256: not provable."""
ALL = read("content_addresses.json") + [entry for entry in NEWER if entry not in ONE_ID]
KINDS = [f"{r.content_address.rpartition(':')[0]} {r.store_path[44:]}" for r, _ in ALL]
every = pytest.mark.parametrize(("record", "nar"), ALL, ids=KINDS)


def one(kind: str, name: str = "") -> tuple[PathRecord, bytes]:
    return next(
        (record, nar)
        for record, nar in ALL
        if record.content_address.startswith(kind) and record.store_path.endswith(name)
    )


def holds(record: PathRecord, nar: bytes, step: int = 1 << 20) -> bool:
    check = ContentCheck(record)
    for at in range(0, len(nar), step):
        check.feed(memoryview(nar)[at : at + step])
    return check.holds()


def test_the_golden_paths_are_of_every_kind() -> None:
    kinds = {record.content_address.rpartition(":")[0] for record, _ in ALL}
    algorithms = ("md5", "sha1", "sha256", "sha512")
    fixed = {f"fixed:{prefix}{name}" for prefix in ("", "r:") for name in algorithms}
    newer = {"fixed:blake3", "fixed:r:blake3", "fixed:git:sha1", "fixed:git:sha256"}
    assert kinds == {"text:sha256", *fixed, *newer}
    assert len(ONE_ID) == 6 and len({record.content_address for record, _ in ONE_ID}) == 2
    assert any(record.store_path in record.references for record, _ in ALL)


@every
def test_the_store_path_recomputes_and_the_contents_hold(record: PathRecord, nar: bytes) -> None:
    assert recomputes(record)
    for step in (1, 7, 31, 1 << 20):
        assert holds(record, nar, step)


@every
def test_it_is_admitted_without_a_signature_and_served_with_its_address(
    record: PathRecord, nar: bytes
) -> None:
    admitted = admit(record, NOBODY)
    assert not admitted.vouched
    served = format(admitted.record, admitted.signatures).decode()
    assert f"\nCA: {record.content_address}\n" in served and "\nSig: " not in served


@every
def test_another_name_reference_or_address_is_refused(record: PathRecord, nar: bytes) -> None:
    other = "/nix/store/00000000000000000000000000000000-other"
    last = "1" if record.content_address[-1] == "0" else "0"
    for changed in (
        replace(record, store_path=record.store_path + "x"),
        replace(record, store_path=other),
        replace(record, references=tuple(sorted((*record.references, other)))),
        replace(record, references=tuple(sorted({*record.references, record.store_path})[:-1])),
        replace(record, content_address=record.content_address[:-1] + last),
        replace(record, content_address=""),
    ):
        if changed != record:
            assert not recomputes(changed)
            with pytest.raises(NotTrusted):
                admit(changed, NOBODY)


@every
def test_other_contents_do_not_hold(record: PathRecord, nar: bytes) -> None:
    middle = len(nar) // 2
    for at in (0, 40, middle, len(nar) - 17, len(nar) - 1):
        changed = bytearray(nar)
        changed[at] ^= 1
        assert not holds(record, bytes(changed))
    for changed in (nar[:-1], nar[:-16], nar[:50], b"", nar + bytes(8)):
        assert not holds(record, bytes(changed))


def test_where_the_address_is_the_nar_hash_the_record_must_say_so() -> None:
    record, _ = one("fixed:r:sha256", "small")
    assert binds_nar_hash(record)
    assert not recomputes(replace(record, nar_hash=NarHash(bytes(32))))
    for kind, name in (("fixed:r:sha256", "itself"), ("fixed:sha256", ""), ("text", "")):
        unbound, _ = one(kind, name)
        assert not binds_nar_hash(unbound)
        assert recomputes(replace(unbound, nar_hash=NarHash(bytes(32))))


def test_a_path_that_names_itself_is_hashed_with_the_places_of_its_name() -> None:
    """Some of its self-references already zeroed out: the same bytes modulo the hash part."""
    record, nar = one("fixed:r:sha256", "itself")
    own = record.store_hash.encode()
    assert nar.count(own) > 1
    assert not holds(record, nar.replace(own, bytes(32), 1))
    assert not holds(record, nar.replace(own, bytes(32)))


def test_an_executable_is_not_the_file() -> None:
    record, nar = one("fixed:sha256", "file")
    plain, marked = strings(b"regular"), strings(b"regular", b"executable", b"")
    assert nar.count(plain) == 1
    assert not holds(record, nar.replace(plain, marked))


def test_a_link_is_not_the_file_that_its_target_spells() -> None:
    """Its NAR differs in two words of the same length."""
    record, nar = one("fixed:sha256", "file")
    link = nar.replace(strings(b"regular"), strings(b"symlink"))
    link = link.replace(strings(b"contents"), strings(b"target"))
    assert len(link) == len(nar) and link != nar
    assert not holds(record, link)


@pytest.mark.parametrize(
    "text",
    ["", "text", "text:", "text:sha256:", "text:sha1:" + "0" * 32, "text:blake3:" + "0" * 52,
     "fixed:git:md5:" + "0" * 26, "fixed:git:blake3:" + "0" * 52, "fixed:git:" + "0" * 32,
     "fixed:git:r:sha1:" + "0" * 32, "git:sha1:" + "0" * 32, "fixed:sha256:" + "0" * 51,
     "fixed:sha256:" + "0" * 53,
     "fixed:sha256:" + "z" * 52, "fixed:sha256:" + "0" * 64, "fixed:sha256:" + "e" * 52,
     "fixed:r:r:sha256:" + "0" * 52, "fixed:SHA256:" + "0" * 52, "fixed: sha256:" + "0" * 52,
     "source:sha256:" + "0" * 52, "fixed:sha256:" + "0" * 52 + "\n"],
)  # fmt: skip
def test_what_is_no_known_address(text: str) -> None:
    assert parse(text) is None


def test_kinds_that_nix_does_not_make_have_no_path() -> None:
    own = "/nix/store/00000000000000000000000000000000-x"
    zeros = nix32_encode(bytes(32))
    kinds = ("text", "fixed", "fixed:git", "fixed:r:sha512")
    for kind, references in ((kind, (own,)) for kind in kinds):
        digits = nix32_encode(bytes(64)) if "512" in kind else zeros
        address = parse(f"{kind if '512' in kind else kind + ':sha256'}:{digits}")
        assert address is not None
        assert store_path_of(address, "x", references, own) is None


@pytest.mark.parametrize(("record", "nar"), ONE_ID, ids=[r.store_path[44:] for r, _ in ONE_ID])
def test_what_shares_its_id_with_a_link_is_not_proven_by_it(record: PathRecord, nar: bytes) -> None:
    """Nix makes such a path, and whoever has it may give another of the three under its name."""
    assert recomputes(record) and not holds(record, nar)
    for fed, undecided in ((nar, True), (nar[:-8], False), (nar + bytes(8), False)):
        check = ContentCheck(record)
        check.feed(fed)
        assert not check.holds() and check.is_undecided is undecided
    other = ContentCheck(record)
    other.feed(nar.replace(b"spelt", b"spult"))
    assert not other.holds() and not other.is_undecided


def test_a_tree_is_bound_whole() -> None:
    """Modes and names of what is in it, not only contents."""
    record, nar = one("fixed:git:sha1", "tree")
    assert holds(record, nar)
    executable = strings(b"regular", b"executable", b"")
    assert nar.count(executable) == 1
    assert not holds(record, nar.replace(executable, strings(b"regular")))
    assert nar.count(string(b"foo0")) == 1
    assert not holds(record, nar.replace(string(b"foo0"), string(b"foo1")))
    assert not holds(record, nar.replace(string(b"empty"), string(b"emptz")))
    assert nar.count(string(b"foo/deep")) == 1
    assert not holds(record, nar.replace(string(b"foo/deep"), string(b"foo/dee_")))


def test_a_directory_of_too_many_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are held in memory until it ends, and the NAR may be of any length."""
    record, nar = one("fixed:git:sha1", "tree")
    monkeypatch.setattr(git_tree, "OPEN_ENTRIES_MAX", 11)
    assert holds(record, nar, 100)
    monkeypatch.setattr(git_tree, "OPEN_ENTRIES_MAX", 10)
    assert not holds(record, nar, 100)


def test_a_denied_path_is_refused_with_the_right_address_too() -> None:
    record, _ = one("text")
    with pytest.raises(NotTrusted, match="denied_paths"):
        admit(record, Policy(KeyRing(()), denied_paths=["*"]))
