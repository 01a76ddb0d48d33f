"""Ordinary binary caches: narinfos and NARs over HTTP(S) or from a directory. Nothing is trusted.

libcurl runs in worker threads; bytes pass into trio with backpressure, decompressed and bounded by
the NarSize that was signed. What a cache needs (proxy, password, token, roots) is an `Access`'s
to say. A NAR's URL must lie at the cache's own authority: an absolute URL in a
narinfo is not signed by anybody. Redirects are followed by hand: at most five, never from https to
http, never from a public address to a private one.

`UpstreamError` says something about the upstream, None says something about the path.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urljoin, urlsplit

import pycurl
import trio

from .access import Access
from .asking import Answered, Stop, answer_to
from .decompress import Decoder, make_decoder
from .errors import NarinfoError, UpstreamError
from .handles import Login, guarded, refuse_private, set_limits
from .narinfo import NARINFO_BYTES_MAX, Narinfo, parse
from .pages import Pages
from .pauses import Pauses
from .redirects import (
    REDIRECTS,
    REDIRECTS_MAX,
    is_private_name,
    is_public,
    is_safe_redirect,
)
from .scout import Scout
from .transfers import Transfers

log = logging.getLogger(__name__)

NARINFO_SECONDS_MAX = 20
HANDLES_KEPT_MAX = 8
PIECES_AHEAD_MAX = 4
READ_BYTES = 1024 * 1024
PASSED_BYTES_MIN = 256 * 1024
"""A hop from libcurl's thread into trio costs 0.1 ms: pieces are gathered first."""
THREADS_MAX = 64
"""Of each cache; a download holds one while it lasts."""
MISSING = (401, 403, 404, 410)


Ask = Callable[[str, Answered[Narinfo | None]], Stop]
"""As `Upstream.narinfo`, without a task that waits. Raises UpstreamError."""


class Upstream(Protocol):
    url: str

    async def narinfo(self, store_hash: str) -> Narinfo | None:
        """None: this cache does not have it. Raises UpstreamError."""
        ...

    async def file(self, path: str, bytes_max: int) -> bytes | None:
        """Another file, by a path of our making; None: not there. Raises UpstreamError."""
        ...

    def nar(self, info: Narinfo) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The plain NAR in pieces, at most NarSize. Raises UpstreamError, also when iterated."""
        ...


def open_cache(
    url: str,
    access: Access | None = None,
    transfers: Transfers | None = None,
    scout: Scout | None = None,
) -> Upstream:
    """By scheme: file:// or http(s)://. `transfers` carry the narinfos of the latter, many at
    once, and `scout` more than many. Raises UpstreamError."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return FileCache(url, Path(unquote(parts.path)))
    if parts.scheme in ("http", "https") and parts.netloc:
        return HttpCache(url, access, transfers, scout)
    raise UpstreamError(f"{url!r} is not a binary cache: give an http://, https:// or file:// URL")


def _parsed(url: str, store_hash: str, data: bytes) -> Narinfo:
    try:
        info = parse(data)
    except NarinfoError as error:
        raise UpstreamError(f"{url}: {error}") from error
    if not info.store_path.startswith(f"/nix/store/{store_hash}-"):
        raise UpstreamError(f"{url} answered for {store_hash} with {info.store_path}")
    return info


class FileCache:
    """A directory as `nix copy --to file://...` writes it."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self._directory = directory

    def store_hashes(self) -> list[str]:
        """Everything this cache has. Raises UpstreamError."""
        if not self._directory.is_dir():
            raise UpstreamError(f"{self._directory} is not a directory")
        return sorted(path.stem for path in self._directory.glob("*.narinfo"))

    async def narinfo(self, store_hash: str) -> Narinfo | None:
        data = await self.file(f"{store_hash}.narinfo", NARINFO_BYTES_MAX)
        return None if data is None else _parsed(self.url, store_hash, data)

    async def file(self, path: str, bytes_max: int) -> bytes | None:
        try:
            async with await trio.open_file(self._directory / path, "rb") as file:
                data: bytes = await file.read(bytes_max + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UpstreamError(f"{self.url}: {error.strerror}") from error
        if len(data) > bytes_max:
            raise UpstreamError(f"{self.url}/{path} is longer than {bytes_max} bytes")
        return data

    @asynccontextmanager
    async def nar(self, info: Narinfo) -> AsyncIterator[AsyncIterator[bytes]]:
        async with aclosing(self._pieces(info)) as pieces:
            yield pieces

    async def _pieces(self, info: Narinfo) -> AsyncGenerator[bytes, None]:
        decoder = make_decoder(info.compression, info.nar_size)
        try:
            path = self._directory / unquote(info.url)
            if not path.resolve().is_relative_to(self._directory.resolve()):
                raise UpstreamError(f"{self.url} names a NAR outside itself: {info.url!r:.200}")
            async with await trio.open_file(path, "rb") as file:
                while data := await file.read(READ_BYTES):
                    for piece in decoder.feed(data):
                        yield piece
        except (OSError, ValueError, RuntimeError) as error:  # the last two: of `resolve`
            raise UpstreamError(f"{self.url}/{info.url!r:.200}: {error}") from error
        decoder.finish()


class HttpCache:
    """Handles are reused, and with them connections."""

    def __init__(
        self,
        url: str,
        access: Access | None = None,
        transfers: Transfers | None = None,
        scout: Scout | None = None,
    ) -> None:
        """`url` may hold a user and password; messages and `self.url` do not. Without `transfers`
        a narinfo is asked for in a thread."""
        self._login = Login.of(url, access or Access())
        self._origin = self._login.origin
        self.url = urlsplit(url.rstrip("/"))._replace(netloc=self._origin[1]).geturl()
        self.last_date = ""
        """The Date of the last answer to a thread, as it was written."""
        self._told = False
        self._idle: list[Any] = []
        self._threads = trio.CapacityLimiter(THREADS_MAX)
        self._pages = None if transfers is None else Pages(self._login, transfers, scout)

    def close(self) -> None:
        """End the connections that are kept."""
        while self._idle:
            self._idle.pop().close()
        if self._pages is not None:
            self._pages.close()

    async def narinfo(self, store_hash: str) -> Narinfo | None:
        if self._pages is not None:
            return await answer_to(partial(self._ask, self._pages, store_hash))
        data = await self._small(f"{self.url}/{store_hash}.narinfo", NARINFO_BYTES_MAX)
        return None if data is None else _parsed(self.url, store_hash, data)

    @property
    def by_call(self) -> Ask | None:
        return None if self._pages is None else partial(self._ask, self._pages)

    def _ask(self, pages: Pages, store_hash: str, answered: Answered[Narinfo | None]) -> Stop:
        url = f"{self.url}/{store_hash}.narinfo"

        def told(status: int, data: bytes, wrong: Exception | None) -> None:
            answer: Narinfo | Exception | None = wrong
            if wrong is None:
                try:
                    if status == 200:
                        answer = _parsed(self.url, store_hash, data)
                    elif status != 404:
                        self._missing(url, status)
                except Exception as error:
                    answer = error
            answered(answer)

        return partial(pages.stop, pages.ask(url, NARINFO_BYTES_MAX, told))

    async def file(self, path: str, bytes_max: int) -> bytes | None:
        return await self._small(f"{self.url}/{quote(path)}", bytes_max)

    async def page(self, bytes_max: int) -> bytes:
        """What is at the URL itself. Raises UpstreamError, also where there is nothing."""
        data = await self._small(self.url, bytes_max)
        if data is None:
            raise UpstreamError(f"{self.url} is not there")
        return data

    async def _small(self, url: str, bytes_max: int) -> bytes | None:
        return await trio.to_thread.run_sync(self._get_small, url, bytes_max, limiter=self._threads)

    @asynccontextmanager
    async def nar(self, info: Narinfo) -> AsyncIterator[AsyncIterator[bytes]]:
        url = self._same_authority(info.url)
        decoder = make_decoder(info.compression, info.nar_size)
        send, receive = trio.open_memory_channel[bytes](PIECES_AHEAD_MAX)
        raised: Exception | None = None
        async with trio.open_nursery() as nursery, receive:
            failure: list[UpstreamError] = []
            nursery.start_soon(self._download, url, decoder, send, failure)

            async def pieces() -> AsyncIterator[bytes]:
                async for piece in receive:
                    yield piece
                if failure:
                    raise failure[0]

            # Out of the nursery by hand: it would wrap what the reader raises into a group.
            try:
                yield pieces()
            except Exception as error:
                raised = error
            nursery.cancel_scope.cancel()
        if raised is not None:
            raise raised

    async def _download(
        self,
        url: str,
        decoder: Decoder,
        send: trio.MemorySendChannel[bytes],
        failure: list[UpstreamError],
    ) -> None:
        gathered, pauses = bytearray(), Pauses()

        def pass_on(data: bytes) -> None:
            for piece in decoder.feed(data):
                gathered.extend(piece)
                if len(gathered) >= PASSED_BYTES_MIN:
                    hand_over()
            if seconds := pauses.after(time.monotonic(), time.thread_time(), len(data)):
                time.sleep(seconds)

        def hand_over() -> None:
            trio.from_thread.run(send.send, bytes(gathered))
            gathered.clear()

        def work() -> None:
            if not self._get(url, pass_on, seconds_max=0):
                raise UpstreamError(f"{url} is not there")
            decoder.finish()
            hand_over()

        async with send:
            try:
                await trio.to_thread.run_sync(work, limiter=self._threads)
            except UpstreamError as error:
                failure.append(error)
            except trio.BrokenResourceError:
                pass  # the reader went away

    def _missing(self, url: str, status: int) -> None:
        """Raises UpstreamError where the status does not say that it is not there."""
        if status == 401 and not self._told:
            self._told = True
            log.warning("%s wants a password; name it in /etc/nix/netrc", self.url)
        if status not in MISSING:
            raise UpstreamError(f"{url} answered {status}")

    def _same_authority(self, url: str) -> str:
        try:
            found = urlsplit(urljoin(f"{self.url}/", url))
        except ValueError as error:
            raise UpstreamError(f"{self.url} names a NAR by {url!r:.200}: {error}") from error
        if self._origin != (found.scheme, found.netloc):
            raise UpstreamError(f"{self.url} names a NAR at another place: {url!r:.200}")
        if not (url.isascii() and url.isprintable()):
            raise UpstreamError(f"{self.url} names a NAR by {url!r:.200}, which is no URL")
        return found.geturl()

    # -- in worker threads ----------------------------------------------------------------------

    def _get_small(self, url: str, bytes_max: int) -> bytes | None:
        data = bytearray()

        def keep(piece: bytes) -> None:
            data.extend(piece)
            if len(data) > bytes_max:
                raise UpstreamError(f"{url} is longer than {bytes_max} bytes")

        return bytes(data) if self._get(url, keep, NARINFO_SECONDS_MAX) else None

    def _get(self, url: str, sink: Callable[[bytes], None], seconds_max: int) -> bool:
        """Body bytes of a 200 go to `sink`. False: not there. Raises UpstreamError, or whatever
        `sink` raised."""
        public = False
        for _ in range(REDIRECTS_MAX + 1):
            curl = self._idle.pop() if self._idle else pycurl.Curl()
            try:
                curl.reset()
                proxied = self._login.identify(curl, url)
                status, location, address, self.last_date = _perform(
                    curl, url, sink, seconds_max, public_only=public, proxied=proxied
                )
            except BaseException:
                curl.close()
                raise
            if len(self._idle) < HANDLES_KEPT_MAX:
                self._idle.append(curl)
            else:
                curl.close()
            if status == 200:
                return True
            if status not in REDIRECTS or not location:
                self._missing(url, status)
                return False
            if not is_safe_redirect(url, location):
                raise UpstreamError(f"{url} redirects to {location!r:.200}, which is not safe")
            # Behind a proxy the address is the proxy's: only a name can be judged there.
            public = public or (not is_private_name(url) if proxied else is_public(address))
            url = location
        raise UpstreamError(f"{url}: more than {REDIRECTS_MAX} redirects")


def _perform(
    curl: Any,
    url: str,
    sink: Callable[[bytes], None],
    seconds_max: int,
    *,
    public_only: bool,
    proxied: bool,
) -> tuple[int, str, str, str]:
    """(status, redirect target, address that answered, its Date)."""
    raised: list[BaseException] = []
    status, date = [0], [""]

    def header(line: bytes) -> None:
        if line[:5].lower() == b"date:":
            date[0] = line[5:].decode("latin-1").strip()
        if line.startswith(b"HTTP/"):
            words = line.split()
            status[0] = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0

    def write(data: bytes) -> int:
        if status[0] != 200:
            return len(data)
        return guarded(lambda: sink(data), raised, len(data), -1)

    def progress(*_: object) -> int:
        return guarded(trio.from_thread.check_cancelled, raised, 0, 1)

    curl.setopt(pycurl.URL, url)
    set_limits(curl, seconds_max)
    curl.setopt(pycurl.WRITEFUNCTION, write)
    curl.setopt(pycurl.NOPROGRESS, 0)
    curl.setopt(pycurl.XFERINFOFUNCTION, progress)
    curl.setopt(pycurl.HEADERFUNCTION, header)
    refuse_private(curl, url, raised, proxied=proxied, only=public_only)
    try:
        curl.perform()
    except pycurl.error as error:
        if raised:
            raise raised[0] from None
        raise UpstreamError(f"{url}: {error.args[1]}") from error
    redirect, address = curl.getinfo(pycurl.REDIRECT_URL), curl.getinfo(pycurl.PRIMARY_IP)
    return status[0], redirect or "", address or "", date[0]
