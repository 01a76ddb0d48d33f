"""`narswarm pool create | invite | join | members | leave | revoke`.

All of them work on the files below the store (gateway.pool_files); a process that runs with that
store takes up within seconds what they changed. Only `join` uses the network, by a short-lived
host with the store's own identity.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from peer.certificates import (
    NIX_KEYS_MAX,
    SERIAL_BITS,
    WORD_BYTES,
    Description,
    PoolId,
    Revocation,
    is_pool_name,
    issue,
    sign,
)
from peer.errors import CannotListen, IdentityError, NotHere, PeerError
from peer.identity import Address, Identity, load_or_create, parse_address, parse_peer_id
from peer.join_code import (
    ADDRESSES_PER_CODE_MAX,
    TOKEN_BYTES,
    TOKEN_SECONDS,
    JoinCode,
    parse_join_code,
    token_digest,
)
from peer.joining import Answer, Joined, Question, accept, ask
from peer.messages import ADDRESSES_MAX, POOLS_MAX
from peer.pools import Known

from . import pool_files
from .config import Config, load_config
from .errors import GatewayError, UsageError
from .pool_files import Held
from .pool_keeper import wall_clock
from .signing import KeyRing, PublicKey


class JoinRefused(GatewayError):
    """The inviter said no, or could not be asked."""


def pool_create(options: argparse.Namespace) -> int:
    from .app import trusted_keys

    config = _config(options)
    if not is_pool_name(options.name):
        raise UsageError(
            f"{options.name!r} cannot name a pool: up to 32 lower case letters, digits and hyphens"
        )
    held = _load(config.store, identity := _identity(config.store))
    _make_sure_it_is_new(held, options.name)
    given = options.public_keys or [key.text for key in trusted_keys(config).keys.values()]
    keys = KeyRing(PublicKey.parse(text) for text in given)
    if not keys.keys:
        raise UsageError("a pool must name the keys whose paths members may have: --public-key KEY")
    if len(keys.keys) > NIX_KEYS_MAX:
        raise UsageError(f"a pool names at most {NIX_KEYS_MAX} keys; say which with --public-key")
    key = pool_files.make_key(config.store)
    pool, here = PoolId(key.public), identity.peer_id
    texts = tuple(public.text for public in keys.keys.values())
    word = secrets.token_bytes(WORD_BYTES)
    description = Description(pool, options.name, texts, word, here)
    own = issue(key, here, options.role, wall_clock(), secrets.randbits(SERIAL_BITS), None)
    answer = Answer(sign(key, description), own, ())
    pool_files.write_joined(config.store, accept(answer, pool, here, wall_clock()))
    print(f"pool {options.name} is made, and this machine is in it")
    for text in texts:
        print(f"  members may have what {text.partition(':')[0]} signed")
    print(f"Bring in others: narswarm pool invite{_role_words(options)}")
    return 0


def pool_invite(options: argparse.Namespace) -> int:
    config = _config(options)
    held = _one(_load(config.store, _identity(config.store)), options.name, with_key=True)
    addresses = _listening(config.store)
    if not addresses:
        raise UsageError(
            f"start narswarm {options.role} first: who comes with the code asks it, and the code "
            "says where it is"
        )
    token = secrets.token_bytes(TOKEN_BYTES)
    now = wall_clock()
    pool_files.write_token(held.directory, token_digest(token), now + TOKEN_SECONDS, now)
    code = JoinCode(
        held.description.pool, addresses[0].peer, token, tuple(addresses[:ADDRESSES_PER_CODE_MAX])
    )
    if all(_is_loopback(address) for address in addresses):
        print(f"warning: only this machine reaches this {options.role}; restart it: it "
              "has a pool since, and will listen for others", file=sys.stderr)  # fmt: skip
    print(f"Good once, for {TOKEN_SECONDS // 3600} hours; whoever has it can come in. "
          "On the other machine:", file=sys.stderr)  # fmt: skip
    print(f"narswarm pool join {code.text}")
    return 0


def pool_join(options: argparse.Namespace) -> int:
    import trio

    config = _config(options)
    try:
        code = parse_join_code(options.code)
    except PeerError as error:
        raise UsageError(str(error)) from error
    identity = _identity(config.store)
    held = _load(config.store, identity)
    if code.inviter == identity.peer_id:
        raise UsageError("this code was made here; use it on the machine that is to come in")
    running = _listening(config.store)
    addresses = tuple(address.text for address in running[:ADDRESSES_MAX])
    question = Question(code.token, b"", options.role, addresses)
    if len(held) >= POOLS_MAX and all(h.description.pool != code.pool for h in held):
        raise UsageError(f"this machine is in {POOLS_MAX} pools already; leave one first")
    try:
        joined = trio.run(_join, identity, code, question)
    except NotHere as error:
        raise JoinRefused(
            "the code is not accepted: it was used, or is older than a day; ask for a new one"
        ) from error
    except PeerError as error:
        raise JoinRefused(f"the pool cannot be joined: {error}") from error
    name = joined.description.name
    if any(h.description.name == name and h.description.pool != code.pool for h in held):
        print(f"warning: this machine is in two pools named {name} now; pool members shows which "
              "is which", file=sys.stderr)  # fmt: skip
    pool_files.write_joined(config.store, joined)
    print(f"this machine is now in pool {name}")
    for text in joined.description.keys:
        print(f"  it may have what {text.partition(':')[0]} signed; Nix takes it if you trust that")
    if not running:
        print(f"Start it: narswarm {options.role}")
    elif all(_is_loopback(address) for address in running):
        print(f"Restart narswarm {options.role} here, so that others reach it as well")
    return 0


async def _join(identity: Identity, code: JoinCode, question: Question) -> Joined:
    import trio

    from peer.host import Libp2pTransport

    transport = Libp2pTransport(identity, [("127.0.0.1", 0)])
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run, {})
            answer = await ask(transport, code.addresses, question)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None
    return accept(answer, code.pool, identity.peer_id, wall_clock())


def pool_members(options: argparse.Namespace) -> int:
    config = _config(options)
    held = _load(config.store, _identity(config.store))
    online = _online(config.store)
    pools = [_described(pool, online.get(pool.id, set())) for pool in held]
    if options.json:
        print(json.dumps({"pools": pools}, indent=1, sort_keys=True))
        return 0
    if not pools:
        print("this machine is in no pool: narswarm pool create NAME, or narswarm pool join CODE")
        return 0
    from .pool_view import show_members

    for pool in pools:
        show_members(pool, wall_clock())
    return 0


def pool_leave(options: argparse.Namespace) -> int:
    config = _config(options)
    held = _one(_load(config.store, _identity(config.store)), options.name)
    pool_files.forget(held.directory)
    print(f"this machine has left pool {options.name}")
    if held.key is not None:
        print("its key was here: nobody can come in or be renewed any more", file=sys.stderr)
    return 0


def pool_revoke(options: argparse.Namespace) -> int:
    config = _config(options)
    identity = _identity(config.store)
    try:
        peer = parse_peer_id(options.peer_id)
    except IdentityError as error:
        raise UsageError(str(error)) from error
    held = _one(_load(config.store, identity), options.name, with_key=True)
    if peer == identity.peer_id:
        raise UsageError("that is this machine; to leave the pool: narswarm pool leave")
    revocation = Revocation(held.description.pool, peer, int(wall_clock()))
    assert held.key is not None
    blob = sign(held.key, revocation)
    pool_files.write_revocation(held.directory, Known(revocation, blob))
    print(f"{peer} is out of pool {held.description.name}; members hear of it as they meet")
    if codes := pool_files.remove_tokens(held.directory):
        print(f"{codes} join codes that were still out are void; it could have had one")
    return 0


# -- what they share -----------------------------------------------------------------------------


def _config(options: argparse.Namespace) -> Config:
    store = None if options.store is None else str(options.store)
    return load_config(options.role, {"store": store}, getattr(options, "config", None))


def _identity(store: Path) -> Identity:
    try:
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        return load_or_create(store / "identity")
    except (IdentityError, OSError) as error:
        raise UsageError(str(error)) from error


def _load(store: Path, identity: Identity) -> list[Held]:
    held, wrong = pool_files.load(store, identity.peer_id)
    for said in wrong:
        print(f"warning: {said}", file=sys.stderr)
    return held


def _make_sure_it_is_new(held: Sequence[Held], name: str) -> None:
    if any(pool.description.name == name for pool in held):
        raise UsageError(f"this machine is in a pool named {name} already")
    if len(held) >= POOLS_MAX:
        raise UsageError(f"this machine is in {POOLS_MAX} pools already; leave one first")


def _one(held: Sequence[Held], name: str | None, *, with_key: bool = False) -> Held:
    """The pool that was meant. Raises UsageError."""
    named = [p for p in held if name is None or name in (p.description.name, p.id)]
    if not named:
        called = "" if name is None else f" named {name}"
        raise UsageError(
            f"this machine is in no pool{called}; make one with narswarm pool create NAME, or come "
            "in with narswarm pool join CODE"
        )
    able = [pool for pool in named if pool.key is not None or not with_key]
    if not able:
        holder = named[0].description.holder
        raise UsageError(f"the pool's key is not here; do this on the machine of {holder}")
    if len(able) > 1:
        names = ", ".join(f"{pool.description.name} ({pool.id})" for pool in able)
        raise UsageError(f"which pool? this machine is in {names}")
    return able[0]


def _listening(store: Path) -> list[Address]:
    """Where the process that holds the store is reached; nothing if none runs."""
    from .control import ask as ask_process

    try:
        addresses = ask_process(store)["addresses"]
    except UsageError:
        return []
    assert isinstance(addresses, list)
    return [parse_address(text) for text in addresses]


def _online(store: Path) -> dict[str, set[str]]:
    """PeerIds that have a session with the running process, by pool."""
    from .control import ask as ask_process

    try:
        pools = ask_process(store).get("pools", [])
    except UsageError:
        return {}
    assert isinstance(pools, list)
    return {pool["id"]: set(pool["online"]) for pool in pools}


def _described(held: Held, online: set[str]) -> dict[str, object]:
    own = held.mine.member.certificate
    revoked = {known.revocation.peer: known.revocation.since for known in held.revoked}
    members: list[dict[str, object]] = [
        {
            "peer_id": own.peer, "role": own.role, "expires": own.expiry, "state": "this machine",
            "seen": 0.0, "addresses": [],
        }
    ]  # fmt: skip
    for listed in sorted(held.members, key=lambda listed: -listed.seen):
        certificate = listed.certificate
        if certificate.peer == own.peer:
            continue
        since = revoked.pop(certificate.peer, None)
        out = since is not None and certificate.issued <= since
        over = certificate.expiry <= wall_clock()
        here = certificate.peer in online
        members.append({
            "peer_id": certificate.peer, "role": certificate.role, "expires": certificate.expiry,
            "state": "revoked" if out else "expired" if over else "online" if here else "away",
            "seen": listed.seen, "addresses": list(listed.addresses),
        })  # fmt: skip
    members += [
        {"peer_id": peer, "role": "", "expires": since, "state": "revoked", "seen": 0.0,
         "addresses": []}
        for peer, since in revoked.items()
        if peer != own.peer
    ]  # fmt: skip
    description = held.description
    return {
        "name": description.name, "id": held.id, "keys": list(description.keys),
        "holder": description.holder,
        "key_is_here": held.key is not None, "members": members,
    }  # fmt: skip


def _is_loopback(address: Address) -> bool:
    return address.host is None or address.host.startswith("127.") or address.host == "::1"


def _role_words(options: argparse.Namespace) -> str:
    return "" if options.role == "gateway" else f" --role {options.role}"


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _first(error)
        if isinstance(error, (PeerError, CannotListen)):
            return error
    return group
