"""Where an upstream may send us on to: never from https to http, to no other scheme, never from a
public address to a private one. Pure.

Behind a proxy the address of the other end is the proxy's: only a name can be judged there.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

REDIRECTS_MAX = 5
REDIRECTS = (301, 302, 303, 307, 308)


def is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def is_safe_redirect(url: str, location: str) -> bool:
    try:
        target = urlsplit(location)
        return target.scheme in ("https", urlsplit(url).scheme) and target.port != 0
    except ValueError:
        return False


def is_private_name(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
