"""The options of `narswarm pool ...`; what it does is imported only when it is called."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

EXAMPLE_CODE = "nsw14Zk9..."


def add_pool(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pool = commands.add_parser(
        "pool",
        help="an office: machines that share what its keys signed",
        description="Make a pool of this office's machines, or bring this machine into one.",
        epilog="example: narswarm pool create office",
    )
    actions = pool.add_subparsers(required=True, metavar="ACTION")
    create = _action(actions, "create", "a new pool; this machine is its first member", "office",
                     "pool_create")  # fmt: skip
    create.add_argument("name", help="lower case letters, digits and hyphens")
    create.add_argument("--public-key", action="append", dest="public_keys", metavar="KEY",
                        help="what members may have; else the keys of nix.conf")  # fmt: skip
    create.add_argument("--config", type=Path, metavar="FILE", help="instead of the usual files")
    invite = _action(
        actions, "invite", "a code that brings one machine in", "office", "pool_invite"
    )
    invite.add_argument("name", nargs="?", help="of the pool, where there are several")
    join = _action(actions, "join", "come in with a code", EXAMPLE_CODE, "pool_join")
    join.add_argument("code", help="what `pool invite` printed elsewhere")
    members = _action(actions, "members", "who is in, and here", "--json", "pool_members")
    members.add_argument("--json", action="store_true", help="one object instead of a table")
    leave = _action(actions, "leave", "forget a pool on this machine", "office", "pool_leave")
    leave.add_argument("name", help="of the pool")
    revoke = _action(actions, "revoke", "put a machine out of a pool", "12D3KooW...", "pool_revoke")
    revoke.add_argument("peer_id", metavar="PEERID", help="as `pool members` shows it")
    revoke.add_argument("--pool", dest="name", metavar="NAME", help="where there are several")


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    example: str,
    command: str,
) -> argparse.ArgumentParser:
    action = actions.add_parser(
        name, help=summary, description=summary, epilog=f"example: narswarm pool {name} {example}"
    )
    action.add_argument("--role", choices=["gateway", "peer", "seed"], default="gateway")
    action.add_argument("--store", type=Path, metavar="DIR", help="instead of that role's store")
    action.set_defaults(command=partial(_run, command))
    return action


def _run(command: str, options: argparse.Namespace) -> int:
    from . import pool_commands

    done: int = getattr(pool_commands, command)(options)
    return done
