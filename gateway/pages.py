"""The small pages of one cache, its narinfos, many at once over few connections.

A handle is made once with all that is the same for every page of the cache, and only its URL
changes. A page that a redirect leads to has a handle of its own, made for where it is.
"""

from __future__ import annotations

import copy
from typing import Any

import pycurl
import trio

from .errors import UpstreamError
from .handles import Login, refuse_private, set_limits
from .redirects import REDIRECTS, REDIRECTS_MAX, is_private_name, is_public, is_safe_redirect
from .transfers import Transfers

PAGE_SECONDS_MAX = 6
"""Longer than anybody waits for a narinfo (`substituter.LOOKUP_SECONDS_MAX`): what is still open
then counts as a failure of the cache."""
PAGES_AT_ONCE_MAX = 256


class _Handle:
    """A libcurl handle and what it receives."""

    def __init__(self, login: Login, url: str, *, public_only: bool = False) -> None:
        self.curl: Any = pycurl.Curl()
        self.body = bytearray()
        self.raised: list[BaseException] = []
        self._url, self._bytes_max = url, 0
        set_limits(self.curl, PAGE_SECONDS_MAX)
        self.curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        self.curl.setopt(pycurl.PIPEWAIT, 1)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._write)
        self.proxied = login.identify(self.curl, url)
        if public_only:
            refuse_private(self.curl, url, self.raised, proxied=self.proxied, only=True)

    def another(self) -> _Handle:
        """With the same settings: looking up proxies and all the rest takes 0.1 ms."""
        other = copy.copy(self)
        other.curl, other.body, other.raised = self.curl.duphandle(), bytearray(), []
        other.curl.setopt(pycurl.WRITEFUNCTION, other._write)
        return other

    async def get(self, transfers: Transfers, url: str, bytes_max: int) -> int:
        """The status; the page is in `body`. Raises UpstreamError."""
        self.body.clear()
        self.raised.clear()
        self._url, self._bytes_max = url, bytes_max
        self.curl.setopt(pycurl.URL, url)
        try:
            await transfers.perform(self.curl)
        except pycurl.error as error:
            if self.raised:
                raise self.raised[0] from None
            raise UpstreamError(f"{url}: {error.args[1]}") from error
        return int(self.curl.getinfo(pycurl.RESPONSE_CODE))

    def _write(self, data: bytes) -> int:
        if len(self.body) + len(data) > self._bytes_max:
            self.raised.append(UpstreamError(f"{self._url} is longer than {self._bytes_max} bytes"))
            return -1
        self.body += data
        return len(data)


class Pages:
    def __init__(self, login: Login, transfers: Transfers) -> None:
        self._login = login
        self._transfers = transfers
        self._pattern: _Handle | None = None
        self._idle: list[_Handle] = []
        self._made = 0
        self._queue = trio.lowlevel.ParkingLot()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().curl.close()
        if self._pattern is not None:
            self._pattern.curl.close()
            self._pattern = None

    async def get(self, url: str, bytes_max: int) -> tuple[int, bytes]:
        """Status and body, behind redirects. Raises UpstreamError."""
        while not self._idle and self._made >= PAGES_AT_ONCE_MAX:
            await self._queue.park()
        handle = self._idle.pop() if self._idle else self._make(url)
        try:
            status = await handle.get(self._transfers, url, bytes_max)
            if status not in REDIRECTS:
                return status, bytes(handle.body)
            location, public = _redirect(handle, url, public=False)
        finally:
            self._idle.append(handle)
            self._queue.unpark()
        return await self._follow(location, bytes_max, public)

    def _make(self, url: str) -> _Handle:
        self._made += 1
        if self._pattern is None:
            self._pattern = _Handle(self._login, url)
        return self._pattern.another()

    async def _follow(self, url: str, bytes_max: int, public: bool) -> tuple[int, bytes]:
        for _ in range(REDIRECTS_MAX):
            handle = _Handle(self._login, url, public_only=public)
            try:
                status = await handle.get(self._transfers, url, bytes_max)
                if status not in REDIRECTS:
                    return status, bytes(handle.body)
                url, public = _redirect(handle, url, public=public)
            finally:
                handle.curl.close()
        raise UpstreamError(f"{url}: more than {REDIRECTS_MAX} redirects")


def _redirect(handle: _Handle, url: str, *, public: bool) -> tuple[str, bool]:
    """Where to go on, and whether only to a public address. Raises UpstreamError."""
    location = handle.curl.getinfo(pycurl.REDIRECT_URL) or ""
    if not location or not is_safe_redirect(url, location):
        raise UpstreamError(f"{url} redirects to {location!r:.200}, which is not safe")
    if not public and handle.proxied:
        public = not is_private_name(url)
    elif not public:
        public = is_public(handle.curl.getinfo(pycurl.PRIMARY_IP) or "")
    return location, public
