"""How upstreams are reached: proxies, passwords, tokens, and whose certificates count.

| what              | from where: the first that says something                                    |
|-------------------|------------------------------------------------------------------------------|
| proxies           | `http_proxy`, `https_proxy`, `all_proxy`, less `no_proxy`                    |
| user and password | the URL; `netrc_file`; nix.conf's `netrc-file`; /etc/nix/netrc               |
| bearer tokens     | `tokens_file`: lines of `HOST[:PORT] TOKEN`, readable by its owner alone     |
| certificate roots | `tls_roots`; NIX_SSL_CERT_FILE; SSL_CERT_FILE; nix.conf's `ssl-cert-file`;   |
|                   | where distributions keep theirs                                              |

A secret goes only to the host (for tokens: and port) it is named with, also across redirects, and a
token never over plain HTTP to another machine.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from .errors import ConfigError, UpstreamError

NETRC = Path("/etc/nix/netrc")
TLS_ROOTS = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/ssl/certs/ca-bundle.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/cert.pem"),
)
FILE_BYTES_MAX = 1024 * 1024
_TOKEN = re.compile(r"[!-~]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Access:
    """`tokens` by `host:port`; `netrc` and `tls_roots` are files, None where there is none."""

    netrc: Path | None = None
    tls_roots: Path | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)

    def token(self, url: str) -> str | None:
        """Raises UpstreamError rather than send a token in the clear."""
        parts = urlsplit(url)
        token = self.tokens.get(f"{parts.hostname}:{parts.port or _DEFAULT_PORTS[parts.scheme]}")
        if token is not None and parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            raise UpstreamError(f"{url} needs a token, which goes over https only; not asked")
        return token


def proxy_for(url: str) -> str:
    """The proxy that the environment names for this URL; empty for none."""
    if not any(name[-6:].lower() == "_proxy" for name in os.environ):
        return ""
    import urllib.request  # which takes as long to import as all the rest of a scout

    parts = urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    found = proxies.get(parts.scheme) or proxies.get("all", "")
    authority = parts.netloc.rpartition("@")[2]
    if not found or urllib.request.proxy_bypass(authority):
        return ""
    return found


def find_access(
    *,
    netrc: Path | None = None,
    tls_roots: Path | None = None,
    tokens: Path | None = None,
    nix_netrc: str = "",
    nix_tls_roots: str = "",
    environ: Mapping[str, str] | None = None,
) -> Access:
    """What is configured (the first three, which must be readable), else what this machine has.
    Raises ConfigError."""
    environ = os.environ if environ is None else environ
    for path in (netrc, tls_roots, tokens):
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(f"{path} cannot be read; check its path and permissions")
    usual_netrc = (Path(nix_netrc) if nix_netrc else NETRC, NETRC)
    named = (environ.get("NIX_SSL_CERT_FILE"), environ.get("SSL_CERT_FILE"), nix_tls_roots)
    usual_roots = (*(Path(name) for name in named if name), *TLS_ROOTS)
    return Access(
        netrc or next(filter(_readable, usual_netrc), None),
        tls_roots or next(filter(_readable, usual_roots), None),
        read_tokens(tokens) if tokens is not None else {},
    )


def read_tokens(path: Path) -> dict[str, str]:
    """Tokens by `host:port` (443 where the line names none). Raises ConfigError."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} holds tokens and others may read it; chmod 600 {path}")
        text = path.read_bytes()[:FILE_BYTES_MAX].decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the tokens of {path}: {error}") from error
    tokens: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or "/" in words[0] or not _TOKEN.fullmatch(words[1]):
            raise ConfigError(f"{path}, line {number}: expected HOST[:PORT] TOKEN")
        host, colon, port = words[0].lower().rpartition(":")
        if not colon or words[0].endswith("]"):
            host, port = words[0].lower(), "443"
        if not (port.isascii() and port.isdigit()):
            raise ConfigError(f"{path}, line {number}: {port!r} is no port")
        tokens[f"{host.strip('[]')}:{port}"] = words[1]
    return tokens


def _readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
