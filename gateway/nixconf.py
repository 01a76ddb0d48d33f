"""nix.conf: which keys and substituters this machine's Nix trusts already.

Syntax: Nix's src/libutil/config.cc: `name = value`, `#` comments, `extra-` appends, `include FILE`
must exist and `!include FILE` may; relative includes start at the including file. Which files:
$NIX_CONF_DIR/nix.conf, then those of $NIX_USER_CONF_FILES or else nix/nix.conf in the XDG
configuration directories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError

INCLUDE_DEPTH_MAX = 10
FILE_BYTES_MAX = 1024 * 1024
DEFAULT_KEYS = ("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",)
"""What Nix trusts where nix.conf says nothing (src/libstore/globals.hh)."""


@dataclass(frozen=True)
class NixSettings:
    trusted_public_keys: tuple[str, ...] = ()
    substituters: tuple[str, ...] = ()
    netrc_file: str = ""
    ssl_cert_file: str = ""
    trusted_users: tuple[str, ...] = ("root",)
    trusted_substituters: tuple[str, ...] = ()


def system_file(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("NIX_CONF_DIR") or "/etc/nix") / "nix.conf"


def user_file(environ: Mapping[str, str]) -> Path:
    """Where a user's own settings go: the first of the files that Nix reads for them."""
    named = [name for name in environ.get("NIX_USER_CONF_FILES", "").split(":") if name]
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or "/") / ".config")
    return Path(named[0]) if named else home / "nix" / "nix.conf"


def files(environ: Mapping[str, str]) -> list[Path]:
    """All that Nix reads, in the order in which later ones win."""
    named = [Path(name) for name in environ.get("NIX_USER_CONF_FILES", "").split(":") if name]
    shared = [
        Path(name) / "nix" / "nix.conf"
        for name in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
        if name
    ]
    mine = named or [user_file(environ), *shared]
    return [system_file(environ), *reversed(mine)]


def read(paths: Sequence[Path]) -> NixSettings:
    """Later files win; missing ones do not count; what no file sets is as Nix has it. Raises
    ConfigError."""
    return read_texts([(path, None) for path in paths])


def read_texts(paths: Sequence[tuple[Path, str | None]]) -> NixSettings:
    """`read`, with the text that a file is to have instead of its own. Raises ConfigError."""
    values = {"trusted-public-keys": list(DEFAULT_KEYS), "trusted-users": ["root"]}
    for path, text in paths:
        if text is not None:
            _take(path, text, values, 0)
        elif path.is_file():
            _read(path, values, 0)
    return NixSettings(
        tuple(values.get("trusted-public-keys", ())),
        tuple(values.get("substituters", ())),
        " ".join(values.get("netrc-file", ())),
        " ".join(values.get("ssl-cert-file", ())),
        tuple(values["trusted-users"]),
        tuple(values.get("trusted-substituters", ())),
    )


def _read(path: Path, values: dict[str, list[str]], depth: int) -> None:
    if depth > INCLUDE_DEPTH_MAX:
        raise ConfigError(f"{path}: includes nested deeper than {INCLUDE_DEPTH_MAX}")
    try:
        text = path.read_bytes()[:FILE_BYTES_MAX].decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    _take(path, text, values, depth)


def _take(path: Path, text: str, values: dict[str, list[str]], depth: int) -> None:
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        if words[0] in ("include", "!include") and len(words) == 2:
            included = path.parent / words[1]
            if included.is_file():
                _read(included, values, depth + 1)
            elif words[0] == "include":
                raise ConfigError(f"{path} includes {included}, which is not there")
        elif len(words) >= 2 and words[1] == "=":
            name = words[0].removeprefix("extra-")
            name = {"binary-cache-public-keys": "trusted-public-keys"}.get(name, name)
            if words[0].startswith("extra-"):
                values.setdefault(name, []).extend(words[2:])
            else:
                values[name] = words[2:]
