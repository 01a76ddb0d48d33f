"""What a seed offers, from a real Nix store and from binary caches."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from chunker.errors import NarMismatch
from chunker.manifest import decode_manifest
from chunker.packs import PackStore
from chunker.rebuild import rebuild
from chunker.record import PathRecord
from chunker.store import BlockStore, MemoryStore
from gateway.errors import StoreProblem, UpstreamError, UsageError
from gateway.nixstore import (
    NixStore,
    PathInfo,
    parse_nar_hash,
    parse_path_infos,
    references_first,
    resolve,
)
from gateway.offer import is_signed, policy
from gateway.seeding import offered, record_of, seed_cache, seed_store
from gateway.signing import KeyRing, SecretKey, read_secret_key
from gateway.trust import trusted_manifest
from gateway.upstream import open_cache
from peer.identity import PeerId
from tests.gateway.test_substituter import FOREIGN, KEY, signed_path, write_cache
from tests.nix import Closure

NONE = KeyRing(())


def nar_of(store: BlockStore, record: PathRecord) -> bytes:
    encoded = store.manifest(record.manifest)
    assert encoded is not None and store.is_verified(record.manifest)
    return b"".join(rebuild(decode_manifest(encoded), record.needles, store))


@pytest.mark.nix
def test_a_closure_out_of_a_real_store(closure: Closure, tmp_path: Path) -> None:
    store = PackStore.open(tmp_path)
    key = read_secret_key(closure.secret)
    with NixStore.open() as nix:
        infos = nix.closure([resolve(str(closure.nix.top / "result"))])
        assert {info.store_path for info in infos} == set(closure.infos)
        places = {info.store_path: n for n, info in enumerate(infos)}
        assert all(
            places[to] <= places[info.store_path] for info in infos for to in info.references
        )
        shown = list(
            seed_store(store, nix, infos, sign_key=key, publish_keys=NONE, all_paths=False)
        )
        assert [step.index for step in shown] == list(range(1, len(infos) + 1))
        assert shown[-1].bytes_done == sum(info.nar_size for info in infos)
        again = list(
            seed_store(store, nix, infos, sign_key=key, publish_keys=NONE, all_paths=False)
        )
        assert all(step.held for step in again) and not any(step.held for step in shown)
    for path in closure.infos:
        record = store.record(path[11:43])
        assert record is not None and nar_of(store, record) == closure.nar(path)
        assert is_signed(record, KeyRing((key.public,)))
        assert trusted_manifest(record, KeyRing((key.public,)))
        assert not trusted_manifest(record, KeyRing((KEY.public,)))
    store.close()


@pytest.mark.nix
def test_a_path_changed_behind_nix_is_not_offered(closure: Closure, tmp_path: Path) -> None:
    """What is on disk must be what the database says."""
    with NixStore.open() as nix:
        info = nix.info(closure.root)
        assert info is not None
        store = MemoryStore()
        wrong = replace(info, nar_hash=parse_nar_hash("sha256:" + "0" * 52))
        with pytest.raises(NarMismatch):
            list(seed_store(store, nix, [wrong], sign_key=KEY, publish_keys=NONE, all_paths=True))
        assert list(store.records()) == []


@pytest.mark.nix
def test_what_is_no_store_path(closure: Closure, tmp_path: Path) -> None:
    with NixStore.open() as nix:
        inside = os.path.join(closure.root, "inputs")
        assert resolve(inside) == closure.root
        link = tmp_path / "link"
        link.symlink_to(closure.nix.top / "result")
        assert resolve(str(link)) == closure.root
        with pytest.raises(UsageError, match="neither a store path"):
            resolve(str(tmp_path))
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        with pytest.raises(UsageError):
            resolve(str(tmp_path / "loop"))
        absent = f"/nix/store/{'0' * 32}-absent"
        assert nix.info(absent) is None
        with pytest.raises(StoreProblem, match="not valid"):
            nix.closure([absent])


def test_no_nix_store(tmp_path: Path) -> None:
    with pytest.raises(StoreProblem, match="there is no Nix store"):
        NixStore.open(tmp_path / "db.sqlite", tmp_path / "store")


def info(name: str, *, ultimate: bool = False, key: SecretKey | None = None) -> PathInfo:
    record, _ = signed_path(name, key or KEY, 100)
    return PathInfo(
        record.store_path, record.nar_hash, record.nar_size, (), ultimate,
        record.signatures if key else (), "",
    )  # fmt: skip


def test_offered_by_default_is_what_was_built_here_or_published() -> None:
    built, public, other = info("a", ultimate=True), info("b", key=KEY), info("c", key=FOREIGN)
    publish = KeyRing((KEY.public,))
    assert offered([built, public, other], publish, all_paths=False) == [built, public]
    assert offered([built, public, other], NONE, all_paths=False) == [built]
    assert offered([built, public, other], NONE, all_paths=True) == [built, public, other]


def test_nothing_to_offer_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="--all"):
        list(seed_store(MemoryStore(), None, [info("c", key=FOREIGN)], sign_key=None,  # type: ignore[arg-type]
                        publish_keys=NONE, all_paths=False))  # fmt: skip


async def test_a_cache_of_files(tmp_path: Path) -> None:
    record, nar = signed_path("path")
    write_cache(tmp_path, record, nar)
    store = MemoryStore()
    cache = open_cache(f"file://{tmp_path}")
    shown = [step async for step in seed_cache(store, cache, sign_key=KEY)]
    assert [step.path for step in shown] == [record.store_path]
    held = store.record(record.store_hash)
    assert held is not None and nar_of(store, held) == nar
    assert trusted_manifest(held, KeyRing((KEY.public,)))
    assert held.signatures == record.signatures
    assert [step.held async for step in seed_cache(store, cache)] == [True]


async def test_a_wrong_nar_in_a_cache_leaves_no_record(tmp_path: Path) -> None:
    record, nar = signed_path("path")
    write_cache(tmp_path, record, nar[:-40] + bytes(8) + nar[-32:])
    store = MemoryStore()
    with pytest.raises(UpstreamError, match="hash"):
        [step async for step in seed_cache(store, open_cache(f"file://{tmp_path}"))]
    assert list(store.records()) == []


def test_who_may_have_what() -> None:
    """Strangers: only what a publish key signed. Publish keys are never the trusted ones."""
    friend, stranger = PeerId("friend"), PeerId("stranger")
    ours, theirs = record_of(info("a", key=KEY)), record_of(info("b", key=FOREIGN))
    nothing = record_of(info("c"))
    trusted, publish = KeyRing((KEY.public,)), KeyRing((FOREIGN.public,))
    may = policy([friend], trusted, publish)
    assert may(friend, ours) and may(friend, theirs) and may(stranger, theirs)
    assert not may(stranger, ours)
    assert not may(friend, nothing) and not may(stranger, nothing)
    closed = policy([friend], trusted, NONE)
    assert not closed(stranger, ours) and not closed(stranger, theirs)
    assert not closed(friend, theirs)


def test_what_is_denied_is_offered_to_nobody() -> None:
    friend, stranger = PeerId("friend"), PeerId("stranger")
    ours, other = record_of(info("a", key=KEY)), record_of(info("b", key=KEY))
    ring = KeyRing((KEY.public,))
    may = policy([friend], ring, ring, lambda peer: [ring], lambda path: path == ours.store_path)
    for asker in (friend, stranger):
        assert may(asker, other) and not may(asker, ours)


def test_path_info_of_every_nix() -> None:
    entry = {
        "narHash": "sha256-" + "A" * 43 + "=",
        "narSize": 9,
        "references": [],
        "ultimate": True,
    }
    path = f"/nix/store/{'0' * 32}-x"
    old = f'[{{"path": "{path}", "narHash": "sha256:{"0" * 52}", "narSize": 9, "references": []}}]'
    for output in (json.dumps({path: entry}), json.dumps({"info": {path[11:]: entry}}), old):
        assert parse_path_infos(output)[path].nar_size == 9
    for bad in ("", "[]x", '{"x": 1}', '[{"path": 1}]'):
        with pytest.raises(StoreProblem):
            parse_path_infos(bad)


def test_references_first_survives_cycles() -> None:
    a, b, c = info("a"), info("b"), info("c")
    a, b = (
        replace(a, references=(a.store_path, b.store_path)),
        replace(b, references=(c.store_path,)),
    )
    c = replace(c, references=(b.store_path,))
    infos = {item.store_path: item for item in (a, b, c)}
    order = [item.store_path for item in references_first(infos, [a.store_path])]
    assert order == [c.store_path, b.store_path, a.store_path]
