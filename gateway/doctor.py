"""`narswarm doctor`: is everything as it must be for Nix to be served here?

Each check looks at one thing and finds it good, doubtful or bad, with what to do. Nothing is
changed, and a gateway that runs is only asked. The last check is the one that counts: a store path
that nobody has is asked for through Nix itself, and the gateway must have heard of it.
"""

from __future__ import annotations

import datetime
import email.utils
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

from chunker.digest import NIX32_ALPHABET
from chunker.errors import StoreError
from chunker.packs import PackStore

from . import config, control, nixconf
from .errors import GatewayError, UpstreamError, UsageError
from .signing import KeyRing, PublicKey

FREE_BYTES_MIN = 1_000_000_000
SKEW_SECONDS_MAX = 120.0
NIX_SECONDS_MAX = 60.0
THIS_CODE_IS_OF = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)

State = Literal["good", "doubtful", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    state: State
    said: str
    advice: str = ""


def _good(what: str, said: str) -> Finding:
    return Finding(what, "good", said)


def _doubtful(what: str, said: str, advice: str) -> Finding:
    return Finding(what, "doubtful", said, advice)


def _bad(what: str, said: str, advice: str) -> Finding:
    return Finding(what, "bad", said, advice)


def examine(settings: config.Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Every check, one after the other."""
    try:
        status = control.ask(settings.store)
    except UsageError:
        status = None
    yield from check_store(settings.store)
    yield from check_ports(settings, status)
    yield from check_keys(settings, environ)
    yield from check_upstreams_and_clock(settings)
    yield from check_mdns(settings)
    yield from check_nix(settings, status, environ)


def check_store(directory: Path) -> Iterator[Finding]:
    if not (directory / "index.sqlite").exists():
        yield _good("store", f"{directory} will be made by the first start")
        return
    try:
        store = PackStore.open(directory, read_only=True)
        stats = store.stats()
        store.close()
    except StoreError as error:
        yield _bad("store", str(error), "move it away; what it held can be fetched again")
        return
    said = f"{directory} holds {stats.records} paths, {stats.block_bytes_stored / 1e6:.0f} MB"
    if directory.stat().st_mode & 0o077:
        yield _doubtful("store", f"others may read {directory}", f"chmod 700 {directory}")
    free = shutil.disk_usage(directory).free
    if free < FREE_BYTES_MIN:
        yield _bad("store", f"{said}; {free / 1e6:.0f} MB are free", "make some room")
    else:
        yield _good("store", f"{said}; {free / 1e9:.0f} GB are free")


def check_ports(settings: config.Config, status: Mapping[str, object] | None) -> Iterator[Finding]:
    if status is not None:
        yield _good("gateway", f"process {status['process']} serves {status['http']}")
        addresses = status["addresses"]
        assert isinstance(addresses, list)
        for address in addresses:
            yield _good("ports", f"peers reach it at {address}")
        return
    yield _bad("gateway", f"no gateway runs on {settings.store}", "start it: narswarm gateway")
    wanted = [("http", settings.http_host, settings.http_port)]
    for listener in settings.listen:
        name, _, number = listener.rpartition(":")
        wanted.append(("peers", name.strip("[]"), int(number)))
    for kind, host, port in wanted:
        if not port:
            continue
        problem = _why_not_bound(host, port)
        if problem:
            yield _bad("ports", f"{host}:{port} ({kind}): {problem}",
                          "stop what uses it, or configure another port")  # fmt: skip
        else:
            yield _good("ports", f"{host}:{port} is free ({kind})")


def _why_not_bound(host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def check_keys(settings: config.Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        nix = nixconf.read(nixconf.files(environ))
        own = settings.trusted_public_keys
        known = (*own, *(nix.trusted_public_keys if settings.use_nix_conf else ()))
        ring = KeyRing(PublicKey.parse(key) for key in dict.fromkeys(known))
    except GatewayError as error:
        yield _bad("keys", str(error), "correct it; nothing can be served until then")
        return
    if not ring.keys:
        yield _bad("keys", "no key is trusted, so nothing can be served",
                      "narswarm keys add, or trusted_public_keys in the configuration")  # fmt: skip
        return
    yield _good("keys", f"what is served is signed by {', '.join(sorted(ring.keys))}")
    for key in own:
        if key not in nix.trusted_public_keys:
            yield _bad("keys", f"Nix does not trust {key}: it would refuse what it signed",
                          "narswarm use")  # fmt: skip
    for key in settings.publish_keys:
        if key not in known:
            yield _doubtful("keys", f"strangers get what {key} signed, which is not "
                          "trusted here", "add it to trusted_public_keys")  # fmt: skip


def check_upstreams_and_clock(settings: config.Config) -> Iterator[Finding]:
    now = datetime.datetime.now(datetime.UTC)
    dates: list[tuple[str, str]] = []
    for url in (upstream.url for upstream in settings.upstreams):
        try:
            dates.append((url, trio.run(_date_at, url, settings)))
            yield _good("upstream", f"{url} answers")
        except UpstreamError as error:
            yield _bad("upstream", str(error), "check its URL, proxy and certificates")
    skews = {url: _skew(date, now) for url, date in dates}
    wrong = [
        f"{skew:+.0f} s beside {url}"
        for url, skew in skews.items()
        if skew is not None and abs(skew) > SKEW_SECONDS_MAX
    ]
    if now < THIS_CODE_IS_OF or wrong:
        yield _bad("clock", f"it says {now:%Y-%m-%d %H:%M:%S} UTC {', '.join(wrong)}",
                   "set it, for example: timedatectl set-ntp true")  # fmt: skip
    elif any(skew is not None for skew in skews.values()):
        yield _good("clock", "agrees with the upstreams")
    else:
        yield _good("clock", f"{now:%Y-%m-%d %H:%M} UTC (no upstream to compare with)")


async def _date_at(url: str, settings: config.Config) -> str:
    """The Date header of a cache; empty for one that is a directory. Raises UpstreamError."""
    from .app import upstream_access
    from .upstream import HttpCache, open_cache

    cache = open_cache(url, upstream_access(settings))
    await cache.narinfo(_nowhere())
    return cache.last_date if isinstance(cache, HttpCache) else ""


def _skew(date: str, now: datetime.datetime) -> float | None:
    try:
        return (now - email.utils.parsedate_to_datetime(date)).total_seconds()
    except (TypeError, ValueError):
        return None


def check_mdns(settings: config.Config) -> Iterator[Finding]:
    if settings.lan == "off":
        yield _good("mDNS", "not used (lan = off): only configured peers are met")
        return
    from peer.lan import hears_itself

    if trio.run(hears_itself):
        yield _good("mDNS", "what is announced on this machine is heard on it")
    else:
        yield _bad("mDNS", "an announcement of this machine is not heard on it",
                      "open UDP port 5353 in the firewall, or name peers with --peer")  # fmt: skip


def check_nix(
    settings: config.Config, status: Mapping[str, object] | None, environ: Mapping[str, str]
) -> Iterator[Finding]:
    if shutil.which("nix-store", path=environ.get("PATH")) is None:
        yield _bad("Nix", "there is no Nix on the PATH", "install it, or correct the PATH")
        return
    if status is None:
        yield _doubtful("Nix", "whether it asks cannot be seen without a running gateway",
                      "start it and run narswarm doctor again")  # fmt: skip
        return
    wanted = _nowhere()
    try:
        done = subprocess.run(
            ["nix-store", "--realise", "--dry-run", f"/nix/store/{wanted}-narswarm-doctor"],
            capture_output=True, text=True, timeout=NIX_SECONDS_MAX, check=False, env=dict(environ),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        yield _bad("Nix", f"it did not answer in {NIX_SECONDS_MAX:.0f} s",
                      "see which of the substituters in nix.conf hangs")  # fmt: skip
        return
    asked = control.ask(settings.store).get("asked")
    if isinstance(asked, list) and wanted in asked:
        yield _good("Nix", f"it asks {status['http']}")
    elif "ignoring untrusted substituter" in done.stderr:
        yield _bad("Nix", "its daemon does not trust you: it ignores the gateway",
                      "sudo narswarm use, or be one of trusted-users")  # fmt: skip
    else:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        yield _bad("Nix", f"it does not ask {status['http']} (it said: {last[0][:200]})",
                      "narswarm use; restart the Nix daemon if there is one")  # fmt: skip


def _nowhere() -> str:
    """The hash of a store path that nobody has."""
    return "".join(secrets.choice(NIX32_ALPHABET) for _ in range(32))
