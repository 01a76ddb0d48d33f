"""The command line: parse, call, print, exit. Decides nothing.

Exit codes: 0 done; 1 the work failed; 2 wrong usage or configuration; 3 the store cannot be used.
Commands that need no network do not import libp2p, which takes a second.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import GatewayError, StoreProblem, UsageError
from .pool_options import add_pool
from .setup_options import add_keys_add, add_setup
from .trust_options import add_trust

if TYPE_CHECKING:
    from .watching import Page

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING, format="narswarm: %(levelname)s: %(message)s", stream=sys.stderr
    )
    if options.verbose:
        for package in ("chunker", "peer", "gateway"):
            logging.getLogger(package).setLevel(logging.DEBUG)
    command: Command = options.command
    try:
        return command(options)
    except GatewayError as error:
        print(f"narswarm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="narswarm",
        description="A local Nix substituter that gets NARs in blocks from peers.",
        epilog="example: narswarm demo",
    )
    top.add_argument("-v", "--verbose", action="store_true", help="log what happens to stderr")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_node(
        commands,
        "gateway",
        "this workstation's substituter (HTTP on loopback)",
        "narswarm gateway --peer /ip4/192.168.1.5/tcp/4555/p2p/12D3KooW... "
        "--upstream https://cache.nixos.org",
        _gateway,
    )
    _add_node(
        commands,
        "peer",
        "an office LAN cache: keeps what passes, serves many, no HTTP",
        "narswarm peer --upstream https://cache.nixos.org --peer 12D3KooW...",
        _peer,
    )
    seed = _add_node(
        commands,
        "seed",
        "offer what this machine built, or what a binary cache holds",
        "narswarm seed ./result --closure --sign-key ci.key --peer 12D3KooW...",
        _seed,
    )
    seed.add_argument(
        "sources",
        nargs="*",
        metavar="STORE-PATH|URL",
        help="store paths or links to them; with the URL of a cache, what to take from it",
    )
    seed.add_argument("--closure", action="store_true", help="with everything they refer to")
    seed.add_argument("--sign-key", type=Path, metavar="FILE", help="sign what was built here")
    seed.add_argument("--all", action="store_true", help="also offer what others signed or nobody")
    seed.add_argument("--exit", action="store_true", help="fill the store, then exit")
    _add_small(commands)
    return top


def _add_node(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    example: str,
    run: Command,
) -> argparse.ArgumentParser:
    node = commands.add_parser(
        name, help=summary, description=summary, epilog=f"example: {example}"
    )
    node.set_defaults(command=run)
    node.add_argument("--config", type=Path, metavar="FILE", help="instead of the usual files")
    node.add_argument("--store", type=Path, metavar="DIR", help="where blocks are kept")
    add = node.add_argument
    add("--listen", action="append", metavar="HOST:PORT", help="for peers; port 0 is any")
    add("--peer", action="append", dest="peers", metavar="ADDRESS",
        help="a peer we know, which may have what is trusted here")  # fmt: skip
    add("--trusted-public-key", action="append", dest="trusted_public_keys", metavar="KEY",
        help="besides those of nix.conf: NAME:BASE64")  # fmt: skip
    add("--publish-key", action="append", dest="publish_keys", metavar="KEY",
        help="strangers may have what this key signed")  # fmt: skip
    add("--lan", choices=["off", "open"], help="open: also talk to strangers on this network")
    add("--no-nix-conf", action="store_false", dest="use_nix_conf", default=None,
        help="do not take keys from nix.conf")  # fmt: skip
    add("--netrc-file", metavar="FILE", help="passwords for caches, besides /etc/nix/netrc")
    add("--tokens-file", metavar="FILE", help="bearer tokens for caches: lines of HOST TOKEN")
    add("--tls-roots", metavar="FILE", help="certificate authorities, instead of the machine's")
    add("--block-codec", choices=["zstd", "raw"], help="how blocks are kept (zstd)")
    if name in ("gateway", "peer"):
        add("--upstream", action="append", dest="upstreams", metavar="URL",
            help="an ordinary binary cache, asked for what no peer has")  # fmt: skip
    if name == "gateway":
        add("--http-host", metavar="HOST", help="loopback unless you know why")
        add("--http-port", type=int, metavar="PORT", help="8555; 0 is any")
        add("--accept-uploads", action="store_true", default=None,
            help="take signed paths that `nix copy --to` puts here")  # fmt: skip
        add("--priority", type=int, help="in nix-cache-info; lower is asked first")
    elif name == "peer":
        add("--seed", action="append", dest="seeds", metavar="ADDRESS", help="fetch from this seed")
    return node


def _add_small(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="the whole job on this machine in a minute",
        description="Run a seed, a LAN peer and a gateway in a temporary directory.",
        epilog="example: narswarm demo --json",
    )
    demo.add_argument("--json", action="store_true", help="one object instead of a table")
    demo.add_argument("--no-nix", action="store_true", help="do not use Nix even if it is here")
    demo.set_defaults(command=_demo)
    keys = commands.add_parser(
        "keys",
        help="make and show keys and this machine's PeerId",
        description="Keys in Nix's own format, and PeerIds.",
        epilog="example: narswarm keys generate office-1 ci.key",
    )
    kinds = keys.add_subparsers(required=True, metavar="ACTION")
    generate = kinds.add_parser(
        "generate", help="a new signing key", epilog="example: narswarm keys generate ci-1 ci.key"
    )
    generate.add_argument("name", help="as it will stand before the colon")
    generate.add_argument("file", type=Path, help="new file for the secret key (0600)")
    generate.set_defaults(command=_keys_generate)
    public = kinds.add_parser(
        "public", help="the public half", epilog="example: narswarm keys public ci.key"
    )
    public.add_argument("file", type=Path)
    public.set_defaults(command=_keys_public)
    peer = kinds.add_parser(
        "peer-id", help="this store's PeerId", epilog="example: narswarm keys peer-id --role peer"
    )
    _store_options(peer)
    peer.set_defaults(command=_keys_peer_id)
    add_keys_add(kinds)
    add_setup(commands)
    _add_seeing(commands)
    add_trust(commands)
    add_pool(commands)
    verify = commands.add_parser(
        "verify",
        help="check every block of a store; changes nothing",
        epilog="example: narswarm verify --role seed",
    )
    _store_options(verify)
    verify.set_defaults(command=_verify)


def _add_seeing(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = commands.add_parser(
        "status", help="what a running process does", epilog="example: narswarm status --json"
    )
    _seeing_options(status, _status)
    peers = commands.add_parser(
        "peers",
        help="whom a running process is connected with, and what passes",
        epilog="example: narswarm peers --watch",
    )
    _seeing_options(peers, _peers)


def _seeing_options(command: argparse.ArgumentParser, run: Command) -> None:
    _store_options(command)
    how = command.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one object instead of a table")
    how.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    command.set_defaults(command=run)


def _store_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--role", choices=["gateway", "peer", "seed"], default="gateway")
    command.add_argument("--store", type=Path, metavar="DIR", help="instead of that role's store")


def _store(options: argparse.Namespace) -> Path:
    from .config import load_config

    return load_config(options.role, {"store": _text(options.store)}).store


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


_NODE_FIELDS = (
    "listen", "peers", "seeds", "trusted_public_keys", "publish_keys", "lan", "use_nix_conf",
    "block_codec", "http_host", "http_port", "priority", "upstreams", "accept_uploads",
    "netrc_file", "tokens_file", "tls_roots",
)  # fmt: skip


def _node(role: str, options: argparse.Namespace) -> int:
    from .config import load_config
    from .run import run

    overrides: dict[str, object] = {name: getattr(options, name, None) for name in _NODE_FIELDS}
    overrides["store"] = _text(options.store)
    config = load_config(role, overrides, options.config)  # type: ignore[arg-type]
    return run(config, options)


def _gateway(options: argparse.Namespace) -> int:
    return _node("gateway", options)


def _peer(options: argparse.Namespace) -> int:
    return _node("peer", options)


def _seed(options: argparse.Namespace) -> int:
    return _node("seed", options)


def _demo(options: argparse.Namespace) -> int:
    from .demo import demo

    return demo(as_json=options.json, use_nix=not options.no_nix)


def _keys_generate(options: argparse.Namespace) -> int:
    from .signing import generate, write_secret_key

    key = generate(options.name)
    write_secret_key(options.file, key)
    print(key.public.text)
    return 0


def _keys_public(options: argparse.Namespace) -> int:
    from .signing import read_secret_key

    print(read_secret_key(options.file).public.text)
    return 0


def _keys_peer_id(options: argparse.Namespace) -> int:
    from peer.errors import IdentityError
    from peer.identity import load_or_create

    directory = _store(options)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        print(load_or_create(directory / "identity").peer_id)
    except (IdentityError, OSError) as error:
        raise UsageError(str(error)) from error
    return 0


def _status(options: argparse.Namespace) -> int:
    from .watching import status_page

    return _see(options, lambda answer: answer, status_page)


def _peers(options: argparse.Namespace) -> int:
    from .watching import peers_page

    return _see(options, lambda answer: {"peers": answer["peers"]}, peers_page)


def _see(
    options: argparse.Namespace,
    part: Callable[[dict[str, object]], dict[str, object]],
    page: Callable[[Mapping[str, object], int], Page],
) -> int:
    from .control import ask
    from .watching import show, watch

    store = _store(options)
    if options.json:
        print(json.dumps(part(ask(store)), indent=1, sort_keys=True))
    elif options.watch:
        watch(lambda: ask(store), page)
    else:
        show(page, ask(store))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from chunker.errors import StoreError
    from chunker.packs import PackStore

    try:
        store = PackStore.open(_store(options), read_only=True)
        try:
            rotten = 0
            for block in store.verify():
                rotten += 1
                print(f"rotten block {block.hex()}")
            print(f"{store.stats().blocks} blocks, {rotten} rotten")
        finally:
            store.close()
    except StoreError as error:
        raise StoreProblem(str(error)) from error
    return 1 if rotten else 0


if __name__ == "__main__":
    sys.exit(main())
