"""The small pages of one cache, its narinfos, many at once over few connections.

A handle is made once with all that is the same for every page of the cache, and only its URL
changes. A page that a redirect leads to has a handle of its own, made for where it is.

    ask -> under way, or waiting for a handle -> told: its status and body, or what went wrong
    a redirect -> the same question goes on at another place
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

import pycurl

from .errors import Stopping, UpstreamError
from .handles import PAGE_SECONDS_MAX, PAGES_AT_ONCE_MAX, Handle, Login
from .redirects import REDIRECTS, REDIRECTS_MAX, is_private_name, is_public, is_safe_redirect
from .scout import NOT_ASKED, STOPPED, Scout
from .transfers import STOPS, Transfers

Told = Callable[[int, bytes, Exception | None], None]
"""Called once, with the status and the body behind redirects, or with an UpstreamError; any other
exception is a mistake of ours."""


class Page:
    """A question for one page."""

    __slots__ = ("bytes_max", "handle", "public_only", "redirects", "told", "url")

    def __init__(self, url: str, bytes_max: int, told: Told) -> None:
        self.url, self.bytes_max, self.told = url, bytes_max, told
        self.handle: Handle | None = None
        self.redirects = 0
        self.public_only = False


class Pages:
    def __init__(self, login: Login, transfers: Transfers, scout: Scout | None = None) -> None:
        """`scout`: who asks when there is much to ask."""
        self._login = login
        self._transfers = transfers
        self._scout = scout
        self._place = 0 if scout is None else scout.add(login)
        self._away = 0
        """Questions that the scout has."""
        self._pattern: Handle | None = None
        self._idle: list[Handle] = []
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
        scout = self._scout
        if scout is not None:
            under_way = self._made - len(self._idle) + len(self._waiting) + self._away
            if scout.takes(under_way):
                self._away += 1
                scout.ask(self._place, url, partial(self._heard, page))
                return page
        self._ask_here(page)
        return page

    def _ask_here(self, page: Page) -> None:
        if self._idle or self._made < PAGES_AT_ONCE_MAX:
            self._start(page)
        else:
            self._waiting.append(page)

    def stop(self, page: Page) -> None:
        """Nobody wants it any more: `told` is not called."""
        page.told = _nobody
        if page.handle is None:
            if page in self._waiting:
                self._waiting.remove(page)
        elif self._transfers.stop(page.handle.curl):
            self._give_back(page)
            self._go_on()

    def _heard(self, page: Page, status: int, body: bytes) -> None:
        """From the scout."""
        self._away -= 1
        if status == 200 or status == 404:
            page.told(status, body, None)
        elif status == STOPPED:
            page.told(0, b"", Stopping(STOPS))
        elif status == 0:
            page.told(0, b"", UpstreamError(body.decode(errors="replace")))
        elif status != NOT_ASKED and status not in REDIRECTS:
            page.told(status, body, None)
        elif page.told is not _nobody:
            try:
                self._ask_here(page)
            except Exception as error:
                page.told(0, b"", error)

    def _start(self, page: Page) -> None:
        page.handle = self._idle.pop() if self._idle else self._make(page.url)
        try:
            page.handle.aim(page.url, page.bytes_max)
            self._transfers.start(page.handle.curl, partial(self._over, page))
        except BaseException:
            self._give_back(page)
            raise

    def _make(self, url: str) -> Handle:
        if self._pattern is None:
            self._pattern = Handle(self._login, url, PAGE_SECONDS_MAX)
        self._made += 1
        return self._pattern.another()

    def _over(self, page: Page, problem: str) -> None:
        handle, status, body, wrong = page.handle, 0, b"", None
        assert handle is not None
        try:
            status = _status(handle, problem)
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

    def _follow(self, page: Page, handle: Handle) -> None:
        """Raises UpstreamError."""
        location, public = _redirect(handle, page.url, public=page.public_only)
        if page.redirects == REDIRECTS_MAX:
            raise UpstreamError(f"{page.url}: more than {REDIRECTS_MAX} redirects")
        other = Handle(self._login, location, PAGE_SECONDS_MAX, public_only=public)
        self._give_back(page)
        page.url, page.public_only, page.handle = location, public, other
        page.redirects += 1
        other.aim(location, page.bytes_max)
        self._transfers.start(other.curl, partial(self._over, page))
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


def _status(handle: Handle, problem: str) -> int:
    """Raises UpstreamError for a transfer that ended with this problem."""
    if not problem:
        return handle.status()
    if handle.raised:
        raise handle.raised[0]
    if problem == STOPS:
        raise Stopping(problem)
    raise UpstreamError(f"{handle.url}: {problem}")


def _redirect(handle: Handle, url: str, *, public: bool) -> tuple[str, bool]:
    """Where to go on, and whether only to a public address. Raises UpstreamError."""
    location = handle.curl.getinfo(pycurl.REDIRECT_URL) or ""
    if not location or not is_safe_redirect(url, location):
        raise UpstreamError(f"{url} redirects to {location!r:.200}, which is not safe")
    if not public and handle.proxied:
        public = not is_private_name(url)
    elif not public:
        public = is_public(handle.curl.getinfo(pycurl.PRIMARY_IP) or "")
    return location, public
