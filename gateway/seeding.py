"""Filling the block store from a local Nix store or from a binary cache, with progress.

What is offered by default: what this machine built itself (`ultimate`), or what a publish key
signed. The rest of a closure came from somebody else's cache and is theirs to offer. `--sign-key`
signs what was built here, and every manifest: that settles for whoever trusts the key which of
several manifests is right. What is held already is not read again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import trio

from chunker.digest import ManifestId
from chunker.errors import ChunkerError
from chunker.ingest import Ingest
from chunker.manifest import decode_manifest, signature_text
from chunker.record import PathRecord, is_store_path, store_hash
from chunker.store import BlockStore

from .errors import UpstreamError, UsageError
from .narinfo import Narinfo, fingerprint
from .nixstore import NixStore, PathInfo
from .offer import is_signed
from .signing import KeyRing, SecretKey
from .upstream import FileCache, Upstream

log = logging.getLogger(__name__)

NO_MANIFEST = ManifestId(bytes(32))
CLOSURE_PATHS_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class Progress:
    """One more path is done. `index` counts from 1; `bytes_done` are of NARs, also held ones."""

    path: str
    index: int
    total: int
    bytes_done: int
    held: bool


def record_of(info: PathInfo | Narinfo) -> PathRecord:
    """Its record before a manifest is known."""
    return PathRecord(
        info.store_path,
        info.nar_hash,
        info.nar_size,
        info.references,
        tuple(info.signatures),
        info.content_address,
        NO_MANIFEST,
    )


def offered(infos: Iterable[PathInfo], publish_keys: KeyRing, *, all_paths: bool) -> list[PathInfo]:
    """Those that a seed may offer without being told to offer everything. Pure."""
    return [
        info
        for info in infos
        if all_paths or info.ultimate or is_signed(record_of(info), publish_keys)
    ]


def seed_store(
    store: BlockStore,
    nix: NixStore,
    infos: Sequence[PathInfo],
    *,
    sign_key: SecretKey | None,
    publish_keys: KeyRing,
    all_paths: bool,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Progress]:
    """`check` is called between pieces; what it raises ends the seeding. Raises NarError,
    NarMismatch or StoreError; what was done before stays."""
    chosen = offered(infos, publish_keys, all_paths=all_paths)
    if not chosen:
        raise UsageError(
            "nothing to offer: none of these paths was built here or signed by a publish key; "
            "give --all to offer what others signed"
        )
    done = 0
    for index, info in enumerate(chosen, 1):
        record = record_of(info)
        if sign_key is not None and info.ultimate:
            record = signed(record, sign_key)
        if not record.signatures:
            log.warning(
                "%s has no signature, so nobody will take it; give --sign-key", info.store_path
            )
        held = held_manifest(store, record)
        if held is None:
            ingest = Ingest(store, record.needles, nar_size_max=record.nar_size)
            for piece in nix.nar(info):
                check()
                ingest.feed(piece)
            manifest, _ = ingest.finish(record.nar_hash, record.nar_size)
        else:
            manifest = held
        keep(store, record, manifest, sign_key)
        done += record.nar_size
        yield Progress(info.store_path, index, len(chosen), done, held is not None)
    store.flush()


async def seed_cache(
    store: BlockStore,
    cache: Upstream,
    paths: Sequence[str] = (),
    *,
    closure: bool = False,
    sign_key: SecretKey | None = None,
) -> AsyncIterator[Progress]:
    """`paths`: full store paths to take, with all they refer to if `closure`; none: everything
    there is (only a file:// cache can be listed). Raises UpstreamError or a ChunkerError."""
    infos = await _wanted(cache, paths, closure)
    done = 0
    for index, info in enumerate(infos, 1):
        record = record_of(info)
        held = await trio.to_thread.run_sync(held_manifest, store, record)
        manifest = held or await _take(store, cache, info, record)
        await trio.to_thread.run_sync(keep, store, record, manifest, sign_key)
        done += record.nar_size
        yield Progress(info.store_path, index, len(infos), done, held is not None)
    await trio.to_thread.run_sync(store.flush)


async def _wanted(cache: Upstream, paths: Sequence[str], closure: bool) -> list[Narinfo]:
    for path in paths:
        if not is_store_path(path):
            raise UsageError(f"{path!r} is not a store path, which {cache.url} could have")
    found: dict[str, Narinfo] = {}
    queue = [store_hash(path) for path in paths] or roots_of(cache)
    seen = set(queue)
    while queue:
        wanted = queue.pop()
        info = await cache.narinfo(wanted)
        if info is None:
            raise UpstreamError(f"{cache.url} does not have {wanted}")
        found[info.store_path] = info
        for reference in info.references if closure else ():
            if (name := store_hash(reference)) not in seen:
                seen.add(name)
                queue.append(name)
        if len(found) > CLOSURE_PATHS_MAX:
            raise UpstreamError(f"{cache.url}: a closure of more than {CLOSURE_PATHS_MAX} paths")
    return [found[path] for path in sorted(found)]


def roots_of(cache: Upstream) -> list[str]:
    """The store hashes of a cache that can be listed. Raises UpstreamError."""
    if not isinstance(cache, FileCache):
        raise UpstreamError(
            f"{cache.url} cannot be listed; name the store paths to take from it as well"
        )
    return cache.store_hashes()


async def _take(
    store: BlockStore, cache: Upstream, info: Narinfo, record: PathRecord
) -> ManifestId:
    ingest = Ingest(store, record.needles, nar_size_max=record.nar_size)
    try:
        async with cache.nar(info) as pieces:
            async for piece in pieces:
                await trio.to_thread.run_sync(ingest.feed, piece)
        finished = await trio.to_thread.run_sync(ingest.finish, record.nar_hash, record.nar_size)
        return finished[0]
    except ChunkerError as error:
        raise UpstreamError(f"{cache.url}: {info.store_path}: {error}") from error


def held_manifest(store: BlockStore, record: PathRecord) -> ManifestId | None:
    """The verified manifest of exactly this NAR, if it and every block of it are here."""
    known = store.record(record.store_hash)
    if known is None or known.nar_hash != record.nar_hash or known.needles != record.needles:
        return None
    encoded = store.manifest(known.manifest)
    if encoded is None or not store.is_verified(known.manifest):
        return None
    return known.manifest if all(store.has(decode_manifest(encoded).blocks)) else None


def signed(record: PathRecord, key: SecretKey) -> PathRecord:
    text = fingerprint(record.store_path, record.nar_hash, record.nar_size, record.references)
    signatures = dict.fromkeys((*record.signatures, key.sign(text)))
    return replace(record, signatures=tuple(signatures))


def keep(
    store: BlockStore, record: PathRecord, manifest: ManifestId, key: SecretKey | None
) -> None:
    """The record enters the store, with a manifest signature where there is a key."""
    vouched: tuple[str, ...] = ()
    if key is not None:
        vouched = (key.sign(signature_text(record.store_path, record.nar_hash, manifest)),)
    store.put_record(replace(record, manifest=manifest, manifest_signatures=vouched))
