"""The composition root: from one Config to a running gateway, peer or seed. Nothing else wires.

    config -> store, identity, keys -> catalogue -> swarm over libp2p -> (gateway) HTTP server

The store is opened and closed here, so that every role leaves it durable however it ends.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from chunker.block import Codec
from chunker.errors import StoreError
from chunker.packs import PackStore
from peer.catalogue import Catalogue
from peer.discovery import Discovery
from peer.errors import IdentityError
from peer.identity import Address, Identity, PeerId, load_or_create, parse_address
from peer.policies import Policies
from peer.swarm import Swarm

from . import control, nixconf
from .access import Access, find_access
from .activation import inherited_listeners
from .alarm_bell import AlarmBell
from .config import Config
from .errors import ConfigError, StoreProblem
from .node import Node
from .offer import audience
from .offer import policy as offers_to
from .policy import Policy, without
from .pool_keeper import PoolKeeper, wall_clock
from .signing import KeyRing, PublicKey
from .trust import trusted_manifest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .scout import Scout
    from .shelf import Shelf
    from .substituter import Substituter
    from .transfers import Transfers
    from .uploads import Uploads
    from .upstream import Upstream

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
MEASURE_SECONDS = 0.5


@asynccontextmanager
async def node(config: Config) -> AsyncIterator[Node]:
    """Open everything, run the swarm and the control socket, and close it all in order."""
    from peer.host import Libp2pTransport

    policy, alarms = trust_policy(config)
    publish = publish_keys(config)
    identity = _identity(config)
    addresses = tuple(_address(text) for text in (*config.peers, *config.seeds))
    configured = frozenset(address.peer for address in addresses)
    store = _open_store(config)
    try:
        pools = PoolKeeper(config.store, identity, config.role)
        may_have = offers_to(configured, policy.keys, publish, pools.keys_for, policy.denies)
        salt = secrets.token_bytes(32)
        known = audience(lambda: (policy.keys, publish, *pools.rings()), policy.denies)
        catalogue = Catalogue(store, salt, may_have, known)
        transport = Libp2pTransport(identity, [_host_port(text) for text in config.listen])
        swarm = Swarm(
            transport,
            store,
            catalogue,
            config.role,
            _policies(config, configured, policy, pools),
            addresses,
            random.Random(secrets.randbits(64)),
            pools.introductions,
            pools.handlers,
        )
        running = Node(config, identity, store, swarm, policy, alarms, pools)
        async with trio.open_nursery() as nursery:
            await nursery.start(swarm.run)
            verbs = {"explain": running.explain, "sign": running.countersign}
            await nursery.start(control.serve, config.store, running.status, verbs)
            nursery.start_soon(_flush, store)
            nursery.start_soon(pools.run, swarm, transport)
            nursery.start_soon(_discover, running)
            yield running
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store.close)


async def serve_http(
    running: Node, stopping: trio.Event, listening: Callable[[Node], Awaitable[None]]
) -> None:
    """The gateway's HTTP side, until `stopping`; current answers are finished first."""
    from .server import serve
    from .substituter import Substituter
    from .transfers import Transfers

    config, transfers, scout = running.config, Transfers(), _scout(running)
    running.upstreams = _upstreams(config, transfers, scout)
    running.policies_of = _policies_of(running)
    shelf = _shelf(config)
    substituter = Substituter(
        running.store,
        running.swarm,
        running.upstreams,
        running.policy,
        publish_keys(config),
        config.priority,
        ranks=_ranks(config, running.upstreams),
        policies_of=running.policies_of,
        saw=running.alarms.saw,
        hears_all=config.conflicts == "refuse",
        shelf=shelf,
    )
    uploads = running.uploads = None if shelf is None else _uploads(running, shelf)
    listeners = inherited_listeners() or await _listeners(config)
    port = listeners[0].socket.getsockname()[1]
    running.substituter, running.http_port = substituter, port
    running.deliveries = substituter.deliveries
    names = {config.http_host, "127.0.0.1", "localhost", "[::1]"}
    hosts = frozenset({f"{name}:{port}" for name in names} | names)
    await listening(running)
    async with trio.open_nursery() as nursery:
        await nursery.start(transfers.run)
        await nursery.start(scout.run)
        await nursery.start(substituter.run)
        nursery.start_soon(_measure, running, substituter)
        if uploads is not None:
            nursery.start_soon(uploads.run)
        put = None if uploads is None else uploads.put
        answers = substituter.answer, substituter.answer_at_once
        await serve(listeners, *answers, allowed_hosts=hosts, stopping=stopping, put=put)
        nursery.cancel_scope.cancel()


async def _listeners(config: Config) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(config.http_port, host=config.http_host)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {config.http_host}:{config.http_port} ({error.strerror}); stop what "
            "uses it, or choose another port with --http-port"
        ) from error


def _shelf(config: Config) -> Shelf | None:
    """For what comes beside NARs, where anything may be put here. Raises ConfigError."""
    from .shelf import Shelf

    directory = config.store / "shelf"
    try:
        return Shelf(directory) if config.accept_uploads else None
    except OSError as error:
        raise ConfigError(f"{directory}: {error.strerror}") from error


def _uploads(running: Node, shelf: Shelf) -> Uploads:
    """Where `nix copy --to` puts paths."""
    from .uploads import Uploads, upload_token

    config, policy, publish = running.config, running.policy, publish_keys(running.config)
    return Uploads(
        config.store / "uploads",
        running.store,
        upload_token(config.store, config.http_host),
        lambda record: policy.suffices(record) or policy.publishes(record, publish),
        running.swarm.catalogue.add,
        config.upload_spool_bytes,
        shelf,
        policy.keys,
    )


async def fetch_for_members(
    running: Node, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The peer's side of upstreams: what a member asks for is fetched once for all, and kept."""
    from .delivery import Deliveries
    from .lookup import admitted_by
    from .lookups import Lookups
    from .transfers import Transfers

    config, swarm = running.config, running.swarm
    transfers, scout = Transfers(), _scout(running)
    upstreams = running.upstreams = _upstreams(config, transfers, scout)
    lookups = Lookups(
        upstreams,
        lambda record, sources: admitted_by(record, [running.policy]),
        ranks=_ranks(config, upstreams),
    )
    swarm.office.look_up = lookups.record
    running.deliveries = Deliveries(
        running.store,
        swarm,
        upstreams,
        publish_keys(config),
        lookups.order,
        running.policy.suffices,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(transfers.run)
        await nursery.start(scout.run)
        await nursery.start(lookups.run)
        await running.deliveries.run(task_status)


def _scout(running: Node) -> Scout:
    """It verifies with the keys that count, for everybody or for one upstream."""
    from .scout import Scout

    keys = running.policy.keys
    own = [_ring(said.keys) for said in running.config.upstreams if said.keys]
    return Scout(keys.seals, [keys, *own])


def _upstreams(config: Config, transfers: Transfers, scout: Scout) -> tuple[Upstream, ...]:
    from .breaker import Guarded
    from .upstream import open_cache

    access = upstream_access(config)
    return tuple(Guarded(open_cache(one.url, access, transfers, scout)) for one in config.upstreams)


def _ranks(config: Config, upstreams: tuple[Upstream, ...]) -> dict[str, int]:
    """By the URL without a password, as the upstream itself says it."""
    return {one.url: said.priority for one, said in zip(upstreams, config.upstreams, strict=True)}


def _policies_of(running: Node) -> dict[str, Policy]:
    """For upstreams with keys of their own: the policy with those, too."""
    pairs = zip(running.upstreams, running.config.upstreams, strict=True)
    return {one.url: running.policy.with_keys(_ring(said.keys)) for one, said in pairs if said.keys}


def trusted_keys(config: Config) -> KeyRing:
    """From the configuration and, unless switched off, from the machine's nix.conf."""
    texts = list(config.trusted_public_keys)
    if config.use_nix_conf:
        texts += _nix_settings().trusted_public_keys
    return _ring(tuple(dict.fromkeys(texts)))


def publish_keys(config: Config) -> KeyRing:
    return without(_ring(config.publish_keys), config.denied_keys)


def trust_policy(config: Config) -> tuple[Policy, AlarmBell]:
    """Raises ConfigError for rules that could admit nothing."""
    keys = trusted_keys(config)
    alarms = AlarmBell(
        config.store,
        without(keys, config.denied_keys).keys,
        wall_clock,
        refuses=config.conflicts == "refuse",
    )
    policy = Policy(keys, config.trust, config.denied_keys, config.denied_paths, alarms.disputed)
    for key in policy.idle_keys:
        log.warning("the key %s is trusted, but no rule of [[trust]] names it: it is idle", key)
    return policy, alarms


def upstream_access(config: Config) -> Access:
    """How this machine reaches binary caches. Raises ConfigError."""
    nix = _nix_settings() if config.use_nix_conf else nixconf.NixSettings()
    return find_access(
        netrc=config.netrc_file,
        tls_roots=config.tls_roots,
        tokens=config.tokens_file,
        nix_netrc=nix.netrc_file,
        nix_tls_roots=nix.ssl_cert_file,
    )


def _nix_settings() -> nixconf.NixSettings:
    return nixconf.read(nixconf.files(os.environ))


def _ring(texts: tuple[str, ...]) -> KeyRing:
    return KeyRing(tuple(PublicKey.parse(text) for text in texts))


def _identity(config: Config) -> Identity:
    try:
        config.store.mkdir(parents=True, exist_ok=True, mode=0o700)
        return load_or_create(config.store / "identity")
    except (IdentityError, OSError) as error:
        raise ConfigError(str(error)) from error


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except (IdentityError, ValueError) as error:
        raise ConfigError(
            f"{text!r} is not a peer: give /ip4/ADDRESS/tcp/PORT/p2p/PEERID or a PeerId ({error})"
        ) from error


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{text!r} is not HOST:PORT, for example 0.0.0.0:4555")
    return host.strip("[]"), int(port)


def _open_store(config: Config) -> PackStore:
    codec = Codec.RAW if config.block_codec == "raw" else Codec.ZSTD
    try:
        return PackStore.open(config.store, codec=codec)
    except StoreError as error:
        raise StoreProblem(str(error)) from error


def _policies(
    config: Config, configured: frozenset[PeerId], policy: Policy, pools: PoolKeeper
) -> Policies:
    open_lan = config.lan == "open"

    def knows(peer: PeerId) -> bool:
        return peer in configured or pools.is_member(peer)

    return Policies(
        serves=lambda peer: open_lan or bool(config.publish_keys) or peer in configured,
        # A seed wants nothing, but in a pool the others must learn where it is.
        asks=lambda peer: (
            pools.is_member(peer) if config.role == "seed" else open_lan or knows(peer)
        ),
        knows=knows,
        trusted_manifest=lambda record: trusted_manifest(record, policy.keys),
        admits=policy.vouched,
        pulls_through=config.role == "peer",
    )


def discovers_peers(config: Config, pools: PoolKeeper) -> bool:
    """Whether this process says on the local network that it is there, and listens for others:
    where strangers may have something, or members of a pool must find each other."""
    return config.lan == "open" or bool(pools.rings())


async def _discover(running: Node) -> None:
    swarm, announces = running.swarm, discovers_peers(running.config, running.pools)
    chance = random.Random(secrets.randbits(64))
    discovery = Discovery(running.identity, swarm.addresses, chance, announces=announces)
    await discovery.run(swarm.discovered, swarm.dialling.woke)


async def _measure(running: Node, substituter: Substituter) -> None:
    while True:
        running.upstream_rates.look(trio.current_time(), substituter.deliveries.running())
        await trio.sleep(MEASURE_SECONDS)


async def _flush(store: PackStore) -> None:
    while True:
        await trio.sleep(FLUSH_SECONDS)
        try:
            await trio.to_thread.run_sync(store.flush)
        except StoreError as error:
            log.error("cannot make blocks durable: %s", error)
