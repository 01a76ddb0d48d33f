"""Configuration: one frozen value, made once at the edge and passed down in pieces.

    defaults of the role  <-  configuration files  <-  command line

The files are /etc/narswarm/config.toml and then $XDG_CONFIG_HOME/narswarm/config.toml, key by
key; a file named with --config stands alone instead of both. Keys are flat and are the fields of
`Config`, without `role`: the command that was called is the role. A key that is not known is
refused with the nearest known one, a value of the wrong type with the expected type and the
place it came from: a misspelt option that silently does nothing would be found out only when
the office is slow. Every refusal is a ConfigError (exit code 2). Only `trust`, the rules of
gateway.policy, is written as tables, `[[trust]]`, with the fields of `Rule` as keys.

Trust is spelt in two lists that never mix: `trusted_public_keys` say what Nix may be handed
here, `publish_keys` say what strangers may have from here, and those default to none.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from .errors import ConfigError
from .policy import Rule, denied_path

Role = Literal["gateway", "peer", "seed"]
Lan = Literal["off", "open"]
BlockCodec = Literal["zstd", "raw"]
Conflicts = Literal["report", "refuse"]

ROLES: tuple[Role, ...] = ("gateway", "peer", "seed")
SWARM_PORT = 4555
HTTP_PORT = 8555
PRIORITY = 20
PRIORITY_MAX = 1000
PORT_MAX = 65535
UPLOAD_SPOOL_BYTES = 16 * 1024**3
UPLOAD_SPOOL_BYTES_MAX = 1 << 50
CONFIG_BYTES_MAX = 1024 * 1024
LIST_ITEMS_MAX = 1024
RULE_KEYS_MAX = 16
"""As many signatures as a path record can carry."""
SYSTEM_FILE = Path("/etc/narswarm/config.toml")
SYSTEM_STATE = Path("/var/lib/narswarm")
LISTEN_EVERYWHERE = (f"0.0.0.0:{SWARM_PORT}",)
LISTEN_NOWHERE = ("127.0.0.1:0",)
"""For a gateway that knows nobody: a port that only this machine can reach."""


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    url: str
    priority: int = 0
    """NARs are had from the lowest that has them; among equals from who answers first."""
    keys: tuple[str, ...] = ()
    """`name:base64`; they count for what this upstream says, and for nobody else."""


@dataclass(frozen=True, slots=True)
class Config:
    role: Role
    store: Path
    """Directory of the block store."""
    http_host: str = "127.0.0.1"
    http_port: int = HTTP_PORT
    """0 takes any free port."""
    listen: tuple[str, ...] = LISTEN_EVERYWHERE
    """`host:port` of the swarm's TCP listeners."""
    trusted_public_keys: tuple[str, ...] = ()
    """`name:base64`; what Nix may be handed here, besides the keys of nix.conf."""
    publish_keys: tuple[str, ...] = ()
    """`name:base64`; what strangers may have from here."""
    trust: tuple[Rule, ...] = ()
    """Which trusted keys admit which paths; none: any one admits any path."""
    denied_keys: tuple[str, ...] = ()
    """Names of keys, or `name:base64`; what they signed counts for nothing."""
    denied_paths: tuple[str, ...] = ()
    """Store paths, their hash parts, or patterns of names; nobody gets them from here."""
    conflicts: Conflicts = "report"
    """What to do where two trusted keys signed different contents of one path."""
    peers: tuple[str, ...] = ()
    """Configured peers: addresses ending in a PeerId, or bare PeerIds."""
    seeds: tuple[str, ...] = ()
    """Addresses of seeds that this process fetches from."""
    upstreams: tuple[UpstreamSettings, ...] = ()
    """Ordinary binary caches: a URL, or a table of `url`, `priority` and `keys`."""
    netrc_file: Path | None = None
    """Passwords for upstreams, besides the usual places (see gateway.access)."""
    tokens_file: Path | None = None
    """Bearer tokens for upstreams: lines of `HOST[:PORT] TOKEN`."""
    tls_roots: Path | None = None
    """PEM file of the certificate authorities that count, instead of the machine's."""
    lan: Lan = "off"
    accept_uploads: bool = False
    """Whether `nix copy --to` may put signed paths here, with the token (gateway.uploads)."""
    upload_spool_bytes: int = UPLOAD_SPOOL_BYTES
    """Compressed NARs that were put here and wait for their narinfo; a longer one is refused."""
    use_nix_conf: bool = True
    """Whether the trusted-public-keys of nix.conf count as well."""
    block_codec: BlockCodec = "zstd"
    priority: int = PRIORITY
    """Priority in nix-cache-info; below the upstreams' is asked first."""


def load_config(
    role: Role,
    overrides: Mapping[str, object] | None = None,
    config_file: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    system_file: Path = SYSTEM_FILE,
    root: bool | None = None,
) -> Config:
    """Read the files and put the layers together. Raises ConfigError.

    `overrides` are command line values by field name; None means not given. `environ` and `root`
    (whether this is user 0) default to those of the process."""
    environ = os.environ if environ is None else environ
    root = os.geteuid() == 0 if root is None else root
    if config_file is not None:
        layers = [(str(config_file), read_file(config_file))]
    else:
        layers = [
            (str(path), read_file(path))
            for path in (system_file, user_file(environ))
            if path.is_file()
        ]
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    layers.append(("the command line", given))
    return combine(role, layers, default_store(role, environ, root), _is_in_pools)


def combine(
    role: Role,
    layers: Iterable[tuple[str, Mapping[str, object]]],
    store: Path,
    in_pools: Callable[[Path], bool] = lambda store: False,
) -> Config:
    """The configuration of `role` from (place, values) layers, later ones winning. `in_pools`:
    whether the machine with this store has joined any, and so others that it listens for. Pure."""
    if role not in ROLES:
        raise ConfigError(f"role must be one of {', '.join(ROLES)}, not {role!r}")
    values: dict[str, object] = {"store": store}
    for place, layer in layers:
        for key, value in layer.items():
            values[key] = _reader(key, place)(value, f"{place}: {key}")
    if "listen" not in values:
        known = values.get("peers") or values.get("seeds") or values.get("lan") == "open"
        known = known or in_pools(values["store"])  # type: ignore[arg-type]
        values["listen"] = LISTEN_NOWHERE if role == "gateway" and not known else LISTEN_EVERYWHERE
    return Config(role=role, **values)  # type: ignore[arg-type]


def read_file(path: Path) -> dict[str, object]:
    """The keys of one TOML file. Raises ConfigError naming the file."""
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
        if len(data) > CONFIG_BYTES_MAX:
            raise ConfigError(f"{path}: more than {CONFIG_BYTES_MAX} bytes of configuration")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def user_file(environ: Mapping[str, str]) -> Path:
    base = _xdg(environ, "XDG_CONFIG_HOME", ".config")
    return base / "narswarm" / "config.toml"


def default_store(role: Role, environ: Mapping[str, str], root: bool) -> Path:
    """One directory per role: a store has one process, and a seed may run beside a gateway.
    An explicit XDG_STATE_HOME wins for root as well."""
    if root and not environ.get("XDG_STATE_HOME"):
        return SYSTEM_STATE / role
    return _xdg(environ, "XDG_STATE_HOME", ".local/state") / "narswarm" / role


def _is_in_pools(store: Path) -> bool:
    return any((store / "pools").glob("*/certificate"))  # as gateway.pool_files lays them down


def _xdg(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    """XDG Base Directory Specification: a relative path in the variable is ignored."""
    named = environ.get(variable, "")
    if os.path.isabs(named):
        return Path(named)
    home = environ.get("HOME", "")
    return (Path(home) if os.path.isabs(home) else Path("/")) / below_home


def _reader(key: str, place: str) -> Callable[[object, str], object]:
    if key in _READERS:
        return _READERS[key]
    if key == "role":
        raise ConfigError(f"{place}: 'role' is not a key; the command (gateway, peer, seed) is it")
    near = difflib.get_close_matches(key.replace("-", "_").lower(), _READERS, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(_READERS))}"
    raise ConfigError(f"{place}: unknown key '{key}'; {hint}")


def _wrong(where: str, expected: str, value: object) -> ConfigError:
    return ConfigError(f"{where}: expected {expected}, not {type(value).__name__} {value!r:.80}")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise _wrong(where, "a non-empty text", value)
    return value.strip()


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, "a list of texts", value)
    if len(value) > LIST_ITEMS_MAX:
        raise ConfigError(f"{where}: more than {LIST_ITEMS_MAX} entries")
    return tuple(dict.fromkeys(_text(item, where) for item in value))


def _keys(value: object, where: str) -> tuple[str, ...]:
    keys = _texts(value, where)
    for key in keys:
        name, colon, base64 = key.partition(":")
        if not (name and colon and base64) or " " in key:
            raise _wrong(where, "public keys written name:base64", key)
    return keys


def _denied_keys(value: object, where: str) -> tuple[str, ...]:
    keys = _texts(value, where)
    for key in keys:
        if " " in key or key.startswith(":"):
            raise _wrong(where, "names of keys, or public keys written name:base64", key)
    return keys


def _denied_paths(value: object, where: str) -> tuple[str, ...]:
    try:
        return tuple(denied_path(text) for text in _texts(value, where))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _rules(value: object, where: str) -> tuple[Rule, ...]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise _wrong(where, "tables, each begun with a line [[trust]]", value)
    rules = tuple(_rule(table, f"{where}[{at}]") for at, table in enumerate(value[:LIST_ITEMS_MAX]))
    if len({rule.name for rule in rules}) < len(value):
        raise ConfigError(f"{where}: two rules have one name; `name` is what refusals call them")
    return rules


def _rule(table: Mapping[str, object], where: str) -> Rule:
    values: dict[str, object] = {}
    for key, value in table.items():
        if key in _READERS:
            raise ConfigError(f"{where}: '{key}' belongs above the first line [[trust]]")
        if key not in _RULE_READERS:
            near = difflib.get_close_matches(key, _RULE_READERS, n=1, cutoff=0.5)
            known = f"known keys: {', '.join(_RULE_READERS)}"
            hint = f"did you mean '{near[0]}'?" if near else known
            raise ConfigError(f"{where}: unknown key '{key}'; {hint}")
        values[key] = _RULE_READERS[key](value, f"{where}.{key}")
    for wanted, example in (("name", "two builders"), ("keys", ["cache.nixos.org-1"])):
        if not values.get(wanted):
            raise ConfigError(f"{where}: a rule needs {wanted}, for example {wanted} = {example!r}")
    if values.get("paths") == ():
        raise ConfigError(f"{where}: paths = [] fits nothing; leave it out to fit everything")
    rule = Rule(**values)  # type: ignore[arg-type]
    if rule.need < 1:
        raise ConfigError(f"{where}: need = 0 would admit what nobody signed; give at least 1")
    return rule


def _listeners(value: object, where: str) -> tuple[str, ...]:
    listeners = _texts(value, where)
    for listener in listeners:
        host, _, port = listener.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or int(port) > PORT_MAX:
            raise _wrong(where, "addresses written host:port", listener)
    return listeners


def _upstreams(value: object, where: str) -> tuple[UpstreamSettings, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > LIST_ITEMS_MAX:
        raise _wrong(where, f"a list of at most {LIST_ITEMS_MAX} URLs or tables", value)
    found: dict[str, UpstreamSettings] = {}
    for item in value:
        one = _upstream(item if isinstance(item, dict) else {"url": item}, where)
        found.setdefault(one.url, one)
    return tuple(found.values())


def _upstream(table: Mapping[str, object], where: str) -> UpstreamSettings:
    readers = {"url": _url, "priority": _number(PRIORITY_MAX), "keys": _keys}
    for key in table:
        if key not in readers:
            raise ConfigError(f"{where}: unknown key '{key}'; known keys: {', '.join(readers)}")
    if "url" not in table:
        raise ConfigError(f"{where}: a table without 'url'")
    read = {key: readers[key](value, f"{where}.{key}") for key, value in table.items()}
    return UpstreamSettings(**read)  # type: ignore[arg-type]


def _url(value: object, where: str) -> str:
    url = _text(value, where)
    if not url.startswith(("http://", "https://", "file://")):
        raise _wrong(where, "http://, https:// or file:// URLs", url)
    return url.rstrip("/")


def _path(value: object, where: str) -> Path:
    if not isinstance(value, Path):
        value = Path(_text(value, where))
    if value.parts[:1] == ("~",):
        value = value.expanduser()
    if not value.is_absolute() and not where.startswith("the command line"):
        raise _wrong(where, "an absolute path", str(value))
    return Path(os.path.abspath(value))


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def _number(limit: int, least: int = 0) -> Callable[[object, str], int]:
    def read(value: object, where: str) -> int:
        if type(value) is not int or not least <= value <= limit:
            raise _wrong(where, f"a whole number from {least} to {limit}", value)
        return value

    return read


def _choice(*choices: str) -> Callable[[object, str], str]:
    def read(value: object, where: str) -> str:
        if value not in choices:
            raise _wrong(where, " or ".join(f"'{choice}'" for choice in choices), value)
        return value

    return read


_READERS: dict[str, Callable[[object, str], object]] = {
    "store": _path,
    "http_host": _text,
    "http_port": _number(PORT_MAX),
    "listen": _listeners,
    "trusted_public_keys": _keys,
    "publish_keys": _keys,
    "trust": _rules,
    "denied_keys": _denied_keys,
    "denied_paths": _denied_paths,
    "conflicts": _choice("report", "refuse"),
    "peers": _texts,
    "seeds": _texts,
    "upstreams": _upstreams,
    "netrc_file": _path,
    "tokens_file": _path,
    "tls_roots": _path,
    "lan": _choice("off", "open"),
    "accept_uploads": _flag,
    "upload_spool_bytes": _number(UPLOAD_SPOOL_BYTES_MAX, least=1),
    "use_nix_conf": _flag,
    "block_codec": _choice("zstd", "raw"),
    "priority": _number(PRIORITY_MAX),
}
_RULE_READERS: dict[str, Callable[[object, str], object]] = {
    "name": _text,
    "keys": _texts,
    "need": _number(RULE_KEYS_MAX),
    "paths": _texts,
    "except_paths": _texts,
}
assert set(_RULE_READERS) == {field.name for field in fields(Rule)}
assert set(_READERS) == {field.name for field in fields(Config)} - {"role"}
