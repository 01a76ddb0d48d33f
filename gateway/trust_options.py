"""The options of `sign` and `explain`; what they do is imported only when called."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import StoreProblem, UsageError

if TYPE_CHECKING:
    from chunker.record import PathRecord

    from .signing import SecretKey
    from .vouching import Publish


def add_trust(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sign = commands.add_parser(
        "sign",
        help="vouch for what this machine built, without hosting it",
        description="Hash store paths and sign them, for gateways that want two builders to "
        "agree: narinfos without a NAR in a directory, or on what a running process holds.",
        epilog="example: narswarm sign --key-file ci.key --to /srv/signatures --recursive ./result",
    )
    sign.add_argument("paths", nargs="+", metavar="STORE-PATH", help="or links to them")
    sign.add_argument("--key-file", type=Path, required=True, metavar="FILE", help="a secret key")
    where = sign.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=Path, metavar="DIR",
                       help="for a web server, or a file:// upstream")  # fmt: skip
    where.add_argument("--role", choices=["gateway", "peer", "seed"],
                       help="what this running process holds gets the signature")  # fmt: skip
    sign.add_argument("--store", type=Path, metavar="DIR", help="instead of that role's store")
    sign.add_argument("-r", "--recursive", action="store_true", help="all they refer to as well")
    sign.add_argument("--all", action="store_true",
                      help="also what was not built here, if its bytes are right")  # fmt: skip
    sign.set_defaults(command=sign_command)
    explain = commands.add_parser(
        "explain",
        help="where a path would come from, who signed it, and why it would be refused",
        description="Ask the running gateway and everybody it knows about one store path. "
        "Exit code 0: Nix would get it; 1: it would not.",
        epilog="example: narswarm explain ./result",
    )
    explain.add_argument("path", metavar="STORE-PATH", help="or a link to one, or its hash part")
    explain.add_argument("--role", choices=["gateway", "peer", "seed"], default="gateway")
    explain.add_argument("--store", type=Path, metavar="DIR", help="instead of that role's store")
    explain.add_argument("--json", action="store_true", help="one object instead of a page")
    explain.set_defaults(command=explain_command)


def sign_command(options: argparse.Namespace) -> int:
    from .nixstore import NixStore, resolve
    from .signing import read_secret_key
    from .vouching import into, vouch

    key = read_secret_key(options.key_file)
    roots = [resolve(path) for path in options.paths]
    publish = into(options.to, key) if options.to else _onto_what_is_held(options, key)
    signed, absent, foreign = 0, 0, []
    with NixStore.open() as nix:
        closure = nix.closure(roots)
        infos = closure if options.recursive else [i for i in closure if i.store_path in roots]
        for done in vouch(nix, infos, publish, all_paths=options.all):
            if done.outcome == "signed":
                signed += 1
                print(f"[{done.index}/{done.total}] {done.path}", file=sys.stderr)
            elif done.outcome == "not held":
                absent += 1
            else:
                foreign.append(done.path)
    where = f"in {options.to}" if options.to else f"at the {options.role}, {absent} not held there"
    print(f"{signed} signed by {key.name} {where}, {len(foreign)} not built here")
    if named := sorted(set(foreign) & set(roots)):
        raise UsageError(
            f"{named[0]} was not built on this machine, so it is not signed; "
            "rebuild it (nix build --rebuild) and give --all to vouch for it"
        )
    return 0


def _onto_what_is_held(options: argparse.Namespace, key: SecretKey) -> Publish:
    from .config import load_config
    from .control import ask
    from .countersigning import question

    store = None if options.store is None else str(options.store)
    settings = load_config(options.role, {"store": store})

    def publish(record: PathRecord) -> bool:
        answer = ask(settings.store, f"sign {question(record, key)}")
        if "error" in answer:
            raise StoreProblem(str(answer["error"]))
        return bool(answer["signed"])

    return publish


def explain_command(options: argparse.Namespace) -> int:
    from .config import load_config
    from .control import EXPLAIN_SECONDS_MAX, ask
    from .nixstore import resolve

    store = None if options.store is None else str(options.store)
    settings = load_config(options.role, {"store": store})
    path = options.path if len(options.path) == 32 else resolve(options.path)
    answer = ask(settings.store, f"explain {path}", EXPLAIN_SECONDS_MAX)
    if "error" in answer:
        raise UsageError(str(answer["error"]))
    if options.json:
        print(json.dumps(answer, indent=1, sort_keys=True))
    else:
        from .explain_page import show

        show(answer)
    return 0 if answer["admitted"] else 1
