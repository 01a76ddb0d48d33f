"""nix.conf: which keys and substituters this machine's Nix trusts already.

Syntax: Nix's src/libutil/config.cc: `name = value`, `#` comments, `extra-` appends, `include FILE`
must exist and `!include FILE` may; relative includes start at the including file.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def read(paths: Sequence[Path]) -> NixSettings:
    """Later files win; missing ones do not count; what no file sets is as Nix has it. Raises
    ConfigError."""
    values = {"trusted-public-keys": list(DEFAULT_KEYS)}
    for path in paths:
        if path.is_file():
            _read(path, values, 0)
    return NixSettings(
        tuple(values.get("trusted-public-keys", ())),
        tuple(values.get("substituters", ())),
        " ".join(values.get("netrc-file", ())),
        " ".join(values.get("ssl-cert-file", ())),
    )


def _read(path: Path, values: dict[str, list[str]], depth: int) -> None:
    if depth > INCLUDE_DEPTH_MAX:
        raise ConfigError(f"{path}: includes nested deeper than {INCLUDE_DEPTH_MAX}")
    try:
        text = path.read_bytes()[:FILE_BYTES_MAX].decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
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
