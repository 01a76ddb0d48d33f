"""The small pages of one cache, its narinfos, many at once over few connections.

A handle is made once with all that is the same for every page of the cache, and only its URL
changes. A page that a redirect leads to has a handle of its own, made for where it is.

    ask -> under way, or waiting for a handle -> told: its status and body, or what went wrong
    a redirect -> the same question goes on at another place
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pycurl

from .errors import Stopping, UpstreamError
from .handles import Login, refuse_private, set_limits
from .redirects import REDIRECTS, REDIRECTS_MAX, is_private_name, is_public, is_safe_redirect
from .transfers import STOPS, Done, Transfers

PAGE_SECONDS_MAX = 6
"""Longer than anybody waits for a narinfo (`substituter.LOOKUP_SECONDS_MAX`): what is still open
then counts as a failure of the cache."""
PAGES_AT_ONCE_MAX = 256

Told = Callable[[int, bytes, Exception | None], None]
"""Called once, with the status and the body behind redirects, or with an UpstreamError; any other
exception is a mistake of ours."""


class Page:
    """A question for one page."""

    __slots__ = ("bytes_max", "handle", "public_only", "redirects", "told", "url")

    def __init__(self, url: str, bytes_max: int, told: Told) -> None:
        self.url, self.bytes_max, self.told = url, bytes_max, told
        self.handle: _Handle | None = None
        self.redirects = 0
        self.public_only = False


class _Handle:
    """A libcurl handle and what it receives."""

    def __init__(self, login: Login, url: str, *, public_only: bool = False) -> None:
        self.curl: Any = pycurl.Curl()
        self.body = bytearray()
        self.raised: list[BaseException] = []
        self._page = _NO_PAGE
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

    def start(self, transfers: Transfers, page: Page, done: Done) -> None:
        """Raises Stopping. At its end `done` is called with what libcurl found wrong."""
        self.body.clear()
        if self.raised:
            self.raised.clear()
        self._page = page
        self.curl.setopt(pycurl.URL, page.url)
        transfers.start(self.curl, done)

    def status(self, problem: str) -> int:
        """Raises UpstreamError for a transfer that ended with this problem."""
        if not problem:
            return int(self.curl.getinfo(pycurl.RESPONSE_CODE))
        if self.raised:
            raise self.raised[0]
        if problem == STOPS:
            raise Stopping(problem)
        raise UpstreamError(f"{self._page.url}: {problem}")

    def _write(self, data: bytes) -> int:
        if len(self.body) + len(data) > self._page.bytes_max:
            self.raised.append(
                UpstreamError(f"{self._page.url} is longer than {self._page.bytes_max} bytes")
            )
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
        self._waiting: deque[Page] = deque()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().curl.close()
        if self._pattern is not None:
            self._pattern.curl.close()
            self._pattern = None

    def ask(self, url: str, bytes_max: int, told: Told) -> Page:
        """`told` is called later, never before this returns. Raises UpstreamError."""
        page = Page(url, bytes_max, told)
        if self._idle or self._made < PAGES_AT_ONCE_MAX:
            self._start(page)
        else:
            self._waiting.append(page)
        return page

    def stop(self, page: Page) -> None:
        """Nobody wants it any more: `told` is not called."""
        page.told = _nobody
        if page.handle is None:
            if page in self._waiting:
                self._waiting.remove(page)
        elif self._transfers.stop(page.handle.curl):
            self._give_back(page)
            self._go_on()

    def _start(self, page: Page) -> None:
        page.handle = self._idle.pop() if self._idle else self._make(page.url)
        try:
            page.handle.start(self._transfers, page, partial(self._over, page))
        except BaseException:
            self._give_back(page)
            raise

    def _make(self, url: str) -> _Handle:
        if self._pattern is None:
            self._pattern = _Handle(self._login, url)
        self._made += 1
        return self._pattern.another()

    def _over(self, page: Page, problem: str) -> None:
        handle, status, body, wrong = page.handle, 0, b"", None
        assert handle is not None
        try:
            status = handle.status(problem)
            if status in REDIRECTS and page.told is not _nobody:
                return self._follow(page, handle)
            body = bytes(handle.body)
        except Exception as error:
            wrong = error
        self._give_back(page)
        try:
            page.told(status, body, wrong)
        finally:
            if self._waiting:
                self._go_on()

    def _follow(self, page: Page, handle: _Handle) -> None:
        """Raises UpstreamError."""
        location, public = _redirect(handle, page.url, public=page.public_only)
        if page.redirects == REDIRECTS_MAX:
            raise UpstreamError(f"{page.url}: more than {REDIRECTS_MAX} redirects")
        other = _Handle(self._login, location, public_only=public)
        self._give_back(page)
        page.url, page.public_only, page.handle = location, public, other
        page.redirects += 1
        other.start(self._transfers, page, partial(self._over, page))
        self._go_on()

    def _give_back(self, page: Page) -> None:
        handle, page.handle = page.handle, None
        assert handle is not None
        if page.redirects:
            handle.curl.close()  # made for where the redirect led
        else:
            self._idle.append(handle)

    def _go_on(self) -> None:
        while self._waiting and (self._idle or self._made < PAGES_AT_ONCE_MAX):
            page = self._waiting.popleft()
            try:
                self._start(page)
            except Exception as error:
                page.told(0, b"", error)


def _nobody(status: int, body: bytes, wrong: Exception | None) -> None:
    pass


_NO_PAGE = Page("", 0, _nobody)


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
