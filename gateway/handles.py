"""What is set on every libcurl handle, however it is driven: who we are at a place, through whom we
go, whose certificates count, how long is waited. A secret goes to no other place than its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import pycurl

from .access import Access, proxy_for
from .errors import UpstreamError
from .redirects import is_private_name, is_public

CONNECT_SECONDS_MAX = 5
STALL_SECONDS_MAX = 20
STALL_BYTES_PER_SECOND = 1024
CURL_BUFFER_BYTES = 256 * 1024
PAGE_SECONDS_MAX = 6
"""Longer than anybody waits for a narinfo (`substituter.LOOKUP_SECONDS_MAX`): what is still open
then counts as a failure of the cache."""
PAGES_AT_ONCE_MAX = 256
"""Of each cache."""
HOST_CONNECTIONS_MAX = 8
"""Of HTTP/1.1, which carries one question at a time; HTTP/2 makes as many as its streams need."""
STREAMS_MAX = 256
CONNECTIONS_KEPT_MAX = 64


@dataclass(frozen=True)
class Login:
    """Who we are at one cache: what its URL said, and what the machine's files say."""

    origin: tuple[str, str]
    """Scheme and host:port of the cache."""
    user: tuple[str, str]
    access: Access

    @classmethod
    def of(cls, url: str, access: Access) -> Login:
        parts = urlsplit(url)
        user = unquote(parts.username or ""), unquote(parts.password or "")
        return cls((parts.scheme, parts.netloc.rpartition("@")[2]), user, access)

    def identify(self, curl: Any, url: str) -> bool:
        """Set who we are at `url`, and through whom we go; whether that is a proxy. Raises
        UpstreamError rather than send a token in the clear."""
        proxy = proxy_for(url)
        curl.setopt(pycurl.PROXY, proxy)
        if self.access.tls_roots is not None:
            curl.setopt(pycurl.CAINFO, str(self.access.tls_roots))
        if self.access.netrc is not None:
            curl.setopt(pycurl.NETRC, pycurl.NETRC_OPTIONAL)
            curl.setopt(pycurl.NETRC_FILE, str(self.access.netrc))
        parts = urlsplit(url)
        if any(self.user) and self.origin == (parts.scheme, parts.netloc):
            curl.setopt(pycurl.USERNAME, self.user[0])
            curl.setopt(pycurl.PASSWORD, self.user[1])
        token = self.access.token(url)
        if token is not None:
            curl.setopt(pycurl.HTTPHEADER, [f"Authorization: Bearer {token}"])
        return bool(proxy)


class Handle:
    """For small pages of one place, one after the other, and what the last brought."""

    def __init__(
        self, login: Login, url: str, seconds_max: int, *, public_only: bool = False
    ) -> None:
        """Made with all that is the same for every page. Raises UpstreamError."""
        self.curl: Any = pycurl.Curl()
        self.body = bytearray()
        self.raised: list[BaseException] = []
        self.url, self._bytes_max = "", 0
        set_limits(self.curl, seconds_max)
        self.curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        self.curl.setopt(pycurl.PIPEWAIT, 1)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._write)
        self.proxied = login.identify(self.curl, url)
        if public_only:
            refuse_private(self.curl, url, self.raised, proxied=self.proxied, only=True)

    def another(self) -> Handle:
        """With the same settings: looking up proxies and all the rest takes 0.1 ms."""
        other = copy.copy(self)
        other.curl, other.body, other.raised = self.curl.duphandle(), bytearray(), []
        other.curl.setopt(pycurl.WRITEFUNCTION, other._write)
        return other

    def aim(self, url: str, bytes_max: int) -> None:
        """The page that is next."""
        self.body.clear()
        if self.raised:
            self.raised.clear()
        self.url, self._bytes_max = url, bytes_max
        self.curl.setopt(pycurl.URL, url)

    def status(self) -> int:
        return int(self.curl.getinfo(pycurl.RESPONSE_CODE))

    def _write(self, data: bytes) -> int:
        if len(self.body) + len(data) > self._bytes_max:
            self.raised.append(UpstreamError(f"{self.url} is longer than {self._bytes_max} bytes"))
            return -1
        self.body += data
        return len(data)


def new_multi() -> Any:
    """What drives many handles at once over few connections."""
    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
    multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, HOST_CONNECTIONS_MAX)
    multi.setopt(pycurl.M_MAX_CONCURRENT_STREAMS, STREAMS_MAX)
    multi.setopt(pycurl.M_MAXCONNECTS, CONNECTIONS_KEPT_MAX)
    return multi


def set_limits(curl: Any, seconds_max: int) -> None:
    """`seconds_max` for the whole; 0: as long as bytes come."""
    curl.setopt(pycurl.NOSIGNAL, 1)
    curl.setopt(pycurl.BUFFERSIZE, CURL_BUFFER_BYTES)
    curl.setopt(pycurl.USERAGENT, "narswarm")
    curl.setopt(pycurl.ACCEPT_ENCODING, "")  # some caches keep narinfos with a Content-Encoding
    curl.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    curl.setopt(pycurl.CONNECTTIMEOUT, CONNECT_SECONDS_MAX)
    curl.setopt(pycurl.LOW_SPEED_LIMIT, STALL_BYTES_PER_SECOND)
    curl.setopt(pycurl.LOW_SPEED_TIME, STALL_SECONDS_MAX)
    curl.setopt(pycurl.TIMEOUT, seconds_max)


def refuse_private(
    curl: Any, url: str, raised: list[BaseException], *, proxied: bool, only: bool
) -> None:
    """With `only`, no request is sent to a private address: libcurl stops, and why is in
    `raised`."""

    def connected(address: str, *_: object) -> int:
        if only and (is_private_name(url) if proxied else not is_public(address)):
            raised.append(UpstreamError(f"{url} is at a private address; not followed"))
            return int(pycurl.PREREQFUNC_ABORT)
        return int(pycurl.PREREQFUNC_OK)

    curl.setopt(pycurl.PREREQFUNCTION, connected)


def guarded(act: Callable[[], None], raised: list[BaseException], good: int, bad: int) -> int:
    """An exception must not pass through libcurl: keep it and tell libcurl to stop."""
    try:
        act()
    except BaseException as error:
        raised.append(error)
        return bad
    return good
