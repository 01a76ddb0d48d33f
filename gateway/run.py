"""`narswarm gateway | peer | seed` as processes: start, say so, work until a signal, stop cleanly.

Ready is one line on stdout beginning with "ready", so that a script can wait for it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import signal
import sys
from collections.abc import Iterable

import trio

from chunker.errors import ChunkerError
from chunker.record import store_hash
from peer.errors import CannotListen

from .app import fetch_for_members, node, publish_keys, serve_http, upstream_access
from .config import Config
from .errors import ConfigError, GatewayError, UsageError
from .nixstore import NixStore, PathInfo, resolve
from .node import Node
from .seeding import Progress, seed_cache, seed_store
from .signing import KeyRing, SecretKey, read_secret_key
from .terminal import megabytes
from .uploads import NETRC_NAME
from .upstream import open_cache

log = logging.getLogger(__name__)

YOUNG_OBJECTS_MAX = 20_000
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
FREED_BYTES_KEPT = 32 * 1024 * 1024


def run(config: Config, options: argparse.Namespace) -> int:
    """Exit code 0 after a signal; errors a person can act on are GatewayErrors."""
    try:
        trio.run(_run, config, options)
    except BaseExceptionGroup as group:
        # Not `except*`: what that raises anew comes out wrapped in a group again.
        ours = _leaves(group)
        if all(isinstance(error, GatewayError | ChunkerError | CannotListen) for error in ours):
            raise _said(ours[0]) from None
        raise
    except ChunkerError as error:
        raise _said(error) from error
    return 0


def collect_seldom() -> None:
    """What the libraries made at import lives on: collections need not look at it. And hundreds of
    questions at once hold more young objects than a collection after each 700 expects: it would
    look at all of them again and again, which cost a fifth of 10,000 look-ups."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX)


def keep_freed_memory() -> None:
    """glibc gives what blocks leave free back to the system at once, and takes it anew, zeroed, for
    the next ones: 5 % of moving blocks. So much of it stays ours; the second limit is
    for decoders' windows, and is raised by glibc itself no more once one is set. Elsewhere nothing
    is changed."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_TRIM_THRESHOLD, FREED_BYTES_KEPT)
    mallopt(M_MMAP_THRESHOLD, FREED_BYTES_KEPT)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _said(error: BaseException) -> GatewayError:
    """An error of the packages below, as one that the command line prints."""
    if isinstance(error, CannotListen):
        return ConfigError(str(error))
    return error if isinstance(error, GatewayError) else GatewayError(str(error))


async def _run(config: Config, options: argparse.Namespace) -> None:
    stopping = trio.Event()
    sign_key = None
    if config.role == "seed" and options.sign_key is not None:
        sign_key = read_secret_key(options.sign_key)
        text = sign_key.public.text
        config = _trusting(config, text)
    async with node(config) as running, trio.open_nursery() as nursery:
        collect_seldom()
        keep_freed_memory()
        nursery.start_soon(_until_signal, stopping, nursery.cancel_scope)
        if config.role == "gateway":
            await serve_http(running, stopping, _say_ready)
        else:
            if config.role == "seed":
                await _fill_until(stopping, running, options, sign_key)
            elif config.upstreams:
                await nursery.start(fetch_for_members, running)
            if not (config.role == "seed" and options.exit):
                await _say_ready(running)
                await stopping.wait()
        nursery.cancel_scope.cancel()


def _trusting(config: Config, key: str) -> Config:
    from dataclasses import replace

    return replace(config, trusted_public_keys=(*config.trusted_public_keys, key))


async def _until_signal(stopping: trio.Event, everything: trio.CancelScope) -> None:
    """The first lets what is under way finish; the second does not."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if stopping.is_set():
                log.warning("stopped without waiting for the answers under way")
                everything.cancel()
            stopping.set()


async def _say_ready(running: Node) -> None:
    config = running.config
    if config.role == "gateway":
        print(f"ready: Nix may ask http://{config.http_host}:{running.http_port}")
        if config.accept_uploads:
            print(f"  nix copy --to it with: --option netrc-file {config.store / NETRC_NAME}")
        if not running.policy.keys.keys:
            print("warning: no trusted key is known, so nothing can be served; "
                  "give --trusted-public-key", file=sys.stderr)  # fmt: skip
    else:
        print(f"ready: {config.role} {running.identity.peer_id}")
    for address in running.swarm.addresses():
        print(f"  peers reach it at {address.text}")
    sys.stdout.flush()


async def _fill_until(
    stopping: trio.Event, running: Node, options: argparse.Namespace, sign_key: SecretKey | None
) -> None:
    """Raises GatewayError if a signal came first; what was done by then stays and is offered by
    the next start."""
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            await stopping.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop)
        await _fill(running, options, sign_key)
        nursery.cancel_scope.cancel()
    if stopping.is_set():
        raise GatewayError("stopped before everything was offered; start it again to go on")


async def _fill(running: Node, options: argparse.Namespace, sign_key: SecretKey | None) -> None:
    caches = [source for source in options.sources if "://" in source]
    paths = [source for source in options.sources if "://" not in source]
    publish = publish_keys(running.config)
    if paths and not caches:
        await trio.to_thread.run_sync(_fill_from_store, running, paths, options, sign_key, publish)
    access = upstream_access(running.config)
    for url in caches:
        cache = open_cache(url, access)
        shown = seed_cache(running.store, cache, paths, closure=options.closure, sign_key=sign_key)
        async for progress in shown:
            _done(running, progress)


def _fill_from_store(
    running: Node,
    paths: list[str],
    options: argparse.Namespace,
    sign_key: SecretKey | None,
    publish: KeyRing,
) -> None:
    roots = [resolve(path) for path in paths]
    nix = NixStore.open()
    try:
        infos = nix.closure(roots) if options.closure else [_info(nix, root) for root in roots]
        shown: Iterable[Progress] = seed_store(
            running.store,
            nix,
            infos,
            sign_key=sign_key,
            publish_keys=publish,
            all_paths=options.all,
            check=trio.from_thread.check_cancelled,
        )
        for progress in shown:
            trio.from_thread.run_sync(_done, running, progress)
    finally:
        nix.close()


def _info(nix: NixStore, path: str) -> PathInfo:
    info = nix.info(path)
    if info is None:
        raise UsageError(f"{path} is not a valid path of this Nix store; build it first")
    return info


def _done(running: Node, progress: Progress) -> None:
    """A path is in the store: offer it at once, and say so."""
    record = running.store.record(store_hash(progress.path))
    assert record is not None
    running.swarm.catalogue.add(record)
    _show(progress)


def _show(progress: Progress) -> None:
    line = f"[{progress.index}/{progress.total}] {megabytes(progress.bytes_done)}  {progress.path}"
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line[:110]}", end="", file=sys.stderr, flush=True)
        if progress.index == progress.total:
            print(file=sys.stderr)
    else:
        print(line, file=sys.stderr)
