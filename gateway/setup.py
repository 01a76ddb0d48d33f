"""The commands that change this machine's set-up: show what would be written, ask, write.

`narswarm use` writes nix.conf, `narswarm keys add` our own configuration. Neither writes anything
before it was shown and agreed to (or `--yes` was given).
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path

import tomlkit
import tomlkit.exceptions
import trio

from . import config, control, key_sources, nixconf, use
from .errors import BadKey, ConfigError, UsageError
from .files import read_text, replace_text
from .signing import KeyRing, PublicKey


def use_gateway(options: argparse.Namespace) -> int:
    """`narswarm use [URL] [--undo]`: 0 done or nothing to do, 1 declined. Raises GatewayError."""
    for_all = options.system or (os.geteuid() == 0 and not options.user)
    system = nixconf.system_file(os.environ)
    file = system if for_all else nixconf.user_file(os.environ)
    if options.undo:
        plan, nothing = use.undo_plan(file), "has nothing of narswarm's"
    else:
        settings = config.load_config("gateway", {}, options.config)
        url = (options.url or _url(settings)).rstrip("/")
        keys = tuple(dict.fromkeys((*settings.trusted_public_keys, *options.keys)))
        KeyRing(PublicKey.parse(key) for key in keys)
        if use.is_made_by_nix(file):
            print(use.nixos_advice(file, url, keys))
            return 1
        _check_trust(for_all, url, keys, system)
        files = [system] if for_all else nixconf.files(os.environ)
        plan, nothing = use.make_plan(file, url, keys, files), "says all this already"
    if plan.old == plan.new:
        print(f"{file} {nothing}; nothing to do")
        return 0
    if not _agreed(plan.diff, f"Change {file}?", yes=options.yes):
        return 1
    use.write(plan)
    print(f"changed {file}")
    if for_all and use.DAEMON_SOCKET.exists():
        print("the daemon reads it when it starts:  systemctl restart nix-daemon.service")
    if not options.undo:
        print("see whether Nix asks the gateway:  narswarm doctor")
    return 0


def keys_add(options: argparse.Namespace) -> int:
    """`narswarm keys add --from URL --confirm URL`: 0 done or nothing to do, 1 declined. Raises
    GatewayError."""
    urls = [options.source, *options.confirm]
    key_sources.check_places(urls)
    file = config.SYSTEM_FILE if os.geteuid() == 0 else config.user_file(os.environ)
    file = options.config or file
    pages = trio.run(_pages, urls, options.config)
    keys = key_sources.agreed(pages, options.name or "")
    old = read_text(file)
    new = with_keys(old, keys, str(file))
    if new == old:
        print(f"{file} has {' '.join(keys)} already; nothing to do")
        return 0
    diff = difflib.unified_diff(
        old.splitlines(), new.splitlines(), str(file), str(file), lineterm="", n=2
    )
    for url in urls:
        print(f"the same at {url}")
    if not _agreed("\n".join(diff), f"Trust what is signed by {', '.join(keys)}?", yes=options.yes):
        return 1
    replace_text(file, new)
    print(f"changed {file}; let Nix trust it as well with:  narswarm use")
    return 0


def with_keys(text: str, keys: list[str], place: str) -> str:
    """Our configuration with these trusted keys, all else as it was. Pure. Raises ConfigError, or
    BadKey where another key of the same name is trusted already."""
    try:
        document = tomlkit.parse(text)
    except tomlkit.exceptions.TOMLKitError as error:
        raise ConfigError(f"{place}: not TOML: {error}") from error
    trusted = document.get("trusted_public_keys")
    if trusted is None:
        trusted = document["trusted_public_keys"] = tomlkit.array()
    if not isinstance(trusted, list):
        raise ConfigError(f"{place}: trusted_public_keys: expected a list of texts")
    for key in keys:
        if key in trusted:
            continue
        name = key.partition(":")[0]
        if any(str(other).startswith(f"{name}:") for other in trusted):
            raise BadKey(f"{place} trusts another key named {name}; take that out first, if it "
                         "is to be replaced")  # fmt: skip
        trusted.append(key)
    return tomlkit.dumps(document)


async def _pages(urls: list[str], config_file: Path | None) -> dict[str, bytes]:
    from .app import upstream_access
    from .upstream import HttpCache

    access = upstream_access(config.load_config("gateway", {}, config_file))
    return {url: await key_sources.fetch(url, HttpCache(url, access)) for url in urls}


def _url(settings: config.Config) -> str:
    """Where the gateway is: as it says itself if it runs, else as configured."""
    try:
        return str(control.ask(settings.store)["http"])
    except (UsageError, KeyError):
        if settings.http_port:
            return f"http://{settings.http_host}:{settings.http_port}"
    raise UsageError(
        "the gateway takes any free port, and does not run: start it, or name its URL"
    ) from None


def _check_trust(for_all: bool, url: str, keys: tuple[str, ...], system: Path) -> None:
    if for_all or use.store_is_ours():
        return
    user, groups = use.who_am_i()
    if not use.may_choose(nixconf.read([system]), url, keys, user, groups):
        raise UsageError(use.untrusted_advice(user, url, keys, system))


def _agreed(diff: str, question: str, *, yes: bool) -> bool:
    print(diff)
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked; nothing is written. Give --yes to write it")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() in ("y", "yes"):
        return True
    print("nothing is changed")
    return False
