"""`narswarm keys add`: a cache's public key, believed only where several places say the same.

A page may be anything that holds keys as `name:base64`: a cache's documentation, its `/public-key`,
a file from a colleague. It must come over HTTPS, from a file, or from this machine, and no two
pages from one place: a cache that confirms itself has confirmed nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote, urlsplit

import trio

from .access import is_loopback
from .errors import BadKey, UsageError
from .signing import PublicKey
from .upstream import HttpCache

PAGE_BYTES_MAX = 4 * 1024 * 1024
_KEY = re.compile(rb"(?<![A-Za-z0-9+/._-])([A-Za-z0-9._-]{1,128}):([A-Za-z0-9+/]{43}=)")


def keys_in(page: bytes) -> dict[str, str]:
    """All public keys of a page, `name:base64` by name. Raises BadKey where one name has two."""
    found: dict[str, str] = {}
    for name, base64 in _KEY.findall(page):
        text = f"{name.decode()}:{base64.decode()}"
        PublicKey.parse(text)
        if found.setdefault(name.decode(), text) != text:
            raise BadKey(f"it names two different keys {name.decode()}")
    return found


def check_places(urls: Sequence[str]) -> None:
    """Raises UsageError unless these are several places that cannot be forged on the way."""
    places = set()
    for url in urls:
        parts = urlsplit(url)
        local = parts.scheme == "file" or is_loopback(parts.hostname or "")
        if parts.scheme not in ("https", "http", "file") or not (local or parts.scheme == "https"):
            raise UsageError(f"{url}: give an https:// URL, or a file:// one; anybody on the way "
                             "could change a key over plain HTTP")  # fmt: skip
        places.add((parts.scheme, parts.path) if parts.scheme == "file" else parts.netloc.lower())
    if len(places) < 2:
        raise UsageError(
            "the key must come from two places: name another host, or a file, with --confirm"
        )


def agreed(pages: Mapping[str, bytes], name: str = "") -> list[str]:
    """The keys that every page gives (only `name`, where it is given). Raises BadKey where pages
    differ, or have none."""
    found: dict[str, dict[str, str]] = {}
    for url, page in pages.items():
        try:
            keys = keys_in(page)
        except BadKey as error:
            raise BadKey(f"{url}: {error}") from error
        found[url] = {one: key for one, key in keys.items() if not name or one == name}
        if not found[url]:
            wanted = f"a key named {name}" if name else "a key (name:base64)"
            raise BadKey(f"{url} does not hold {wanted}")
    first_url, first = next(iter(found.items()))
    for url, keys in found.items():
        if keys != first:
            said = "\n".join(
                f"  {place}: {', '.join(found[place].values())}" for place in (first_url, url)
            )
            hint = "" if name else "; if only one of several is meant, give its --name"
            raise BadKey(f"the places do not give the same keys{hint}:\n{said}")
    return sorted(first.values())


async def fetch(url: str, http: HttpCache) -> bytes:
    """A page. Raises UpstreamError or UsageError."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return await http.page(PAGE_BYTES_MAX)
    try:
        return (await trio.Path(unquote(parts.path)).read_bytes())[:PAGE_BYTES_MAX]
    except OSError as error:
        raise UsageError(f"cannot read {url}: {error.strerror}") from error
