"""The options of `keys add`, `use` and `doctor`; what they do is imported only when called."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_keys_add(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = kinds.add_parser(
        "add",
        help="trust a cache's key that several places agree on",
        description="Fetch a public key from several places and trust it if they agree.",
        epilog="example: narswarm keys add --from https://cache.example/public-key "
        "--confirm https://docs.example/install.html",
    )
    add.add_argument("--from", dest="source", required=True, metavar="URL", help="a page with it")
    add.add_argument("--confirm", action="append", required=True, metavar="URL",
                     help="another place that must say the same; may be repeated")  # fmt: skip
    add.add_argument("--name", help="which of several keys on these pages")
    add.add_argument("--config", type=Path, metavar="FILE", help="instead of the usual file")
    add.add_argument("--yes", action="store_true", help="do not ask")
    add.set_defaults(command=keys_add_command)


def add_setup(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    use = commands.add_parser(
        "use",
        help="make Nix ask the gateway (writes nix.conf)",
        description="Show what nix.conf will say, ask, and write it; --undo takes it out again.",
        epilog="example: narswarm use --undo",
    )
    use.add_argument("url", nargs="?", metavar="URL", help="of the gateway, if not as configured")
    use.add_argument("--undo", action="store_true", help="take out what `use` wrote")
    use.add_argument("--yes", action="store_true", help="do not ask")
    use.add_argument("--config", type=Path, metavar="FILE", help="instead of the usual files")
    use.add_argument("--trusted-public-key", action="append", dest="keys", default=[],
                     metavar="KEY", help="besides those of our configuration")  # fmt: skip
    where = use.add_mutually_exclusive_group()
    where.add_argument("--system", action="store_true", help="for all users, also when not root")
    where.add_argument("--user", action="store_true", help="for this user alone, also when root")
    use.set_defaults(command=use_command)
    doctor = commands.add_parser(
        "doctor",
        help="check that everything is as it must be",
        description="Ports, clock, mDNS, store, keys, and whether Nix really asks the gateway.",
        epilog="example: narswarm doctor",
    )
    doctor.add_argument("--config", type=Path, metavar="FILE", help="instead of the usual files")
    doctor.add_argument("--store", type=Path, metavar="DIR", help="instead of the usual one")
    doctor.add_argument("--json", action="store_true", help="one object instead of lines")
    doctor.set_defaults(command=doctor_command)


def keys_add_command(options: argparse.Namespace) -> int:
    from .setup import keys_add

    return keys_add(options)


def use_command(options: argparse.Namespace) -> int:
    from .setup import use_gateway

    return use_gateway(options)


def doctor_command(options: argparse.Namespace) -> int:
    import os
    from dataclasses import asdict

    from .config import load_config
    from .doctor import examine
    from .terminal import show_finding

    settings = load_config(
        "gateway", {"store": None if options.store is None else str(options.store)}, options.config
    )
    findings = []
    for finding in examine(settings, os.environ):
        findings.append(finding)
        if not options.json:
            show_finding(finding)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    return 1 if any(finding.state == "bad" for finding in findings) else 0
