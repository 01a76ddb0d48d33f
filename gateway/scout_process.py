"""python -m gateway.scout_process, with a socket as its stdin: asks caches and verifies signatures,
so that the gateway that started it need not (gateway.scout, decision 10).

    questions -> libcurl, many at once -> status, body, seals of the signatures that hold

It follows no redirect and judges nothing. It ends when its socket does. Without trio, for it must
be there soon: it has one thing to do, and one loop does it.
"""

from __future__ import annotations

import gc
import select
import signal
import socket
import time
from collections import deque
from typing import Any

import pycurl

from chunker.record import SIGNATURES_MAX, STORE_DIRECTORY

from .errors import UpstreamError
from .handles import PAGE_SECONDS_MAX, PAGES_AT_ONCE_MAX, Handle, Login, new_multi
from .narinfo import NARINFO_BYTES_MAX
from .scout_frames import Answer, Frames, Keys, Question, frame, read_settings
from .seals import seal
from .signing import KeyRing, PublicKey

HEARTBEAT_SECONDS = 0.2
"""Whoever waits hears so often that we are there, whatever caches do."""
YOUNG_OBJECTS_MAX = 20_000
"""As in the gateway (gateway.run)."""
MANY_QUESTIONS = 32
BREATH_SECONDS = 0.0005
"""Where so many are under way and nothing else is to be done, several answers are waited for: to
wake for each costs ten times what it takes to read."""
BODIES_AT_ONCE_MAX = 8
"""Verified; then caches have their turn, and who waits is told. More, and all wait by turns."""
READ_BYTES = 256 * 1024
ANSWERS_BYTES_MAX = 1024 * 1024
"""Then they are sent, though more have come."""
_EVENTS = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}

Page = tuple[int, int, bytes]
"""The number of the question, status, body; a status of 0 and why there is none."""


class Verifier:
    def __init__(self, secret: bytes, keys: Keys) -> None:
        self._secret = secret
        self._rings: dict[str, list[tuple[bytes, KeyRing]]] = {}
        for name, key in keys:
            ring = KeyRing((PublicKey(name, key),))
            self._rings.setdefault(name, []).append((key, ring))

    def seals(self, body: bytes) -> list[bytes]:
        """Of its signatures that hold; none for what is no narinfo."""
        text, signatures = signed_text(body)
        return [
            seal(self._secret, key, signature, text)
            for signature in signatures[:SIGNATURES_MAX]
            for key, ring in self._rings.get(signature.partition(":")[0], ())
            if ring.holds(text, signature)
        ]


def signed_text(body: bytes) -> tuple[bytes, list[str]]:
    """The fingerprint of a narinfo as caches write it, and its signatures, unchecked: whoever gets
    the body parses it strictly, and takes no seal of another fingerprint."""
    signatures: list[str] = []
    fields: dict[str, str] = {}
    for line in body.decode("utf-8", "replace").split("\n"):
        name, _, value = line.partition(": ")
        if name == "Sig":
            signatures.append(value)
        else:
            fields[name] = value
    path, digest, size = map(fields.get, ("StorePath", "NarHash", "NarSize"))
    references = ",".join(
        [f"{STORE_DIRECTORY}/{name}" for name in sorted(fields.get("References", "").split())]
    )
    return f"1;{path};{digest};{size};{references}".encode(), signatures


class Cache:
    """The handles for one cache, and what waits for one."""

    def __init__(self, login: Login) -> None:
        self.waiting: deque[Question] = deque()
        self._login = login
        self._pattern: Handle | None = None
        self._idle: list[Handle] = []
        self._made = 0

    def free(self, url: str) -> Handle | None:
        """Raises UpstreamError."""
        if self._idle:
            return self._idle.pop()
        if self._made == PAGES_AT_ONCE_MAX:
            return None
        if self._pattern is None:
            self._pattern = Handle(self._login, url, PAGE_SECONDS_MAX)
        self._made += 1
        return self._pattern.another()

    def give_back(self, handle: Handle) -> None:
        self._idle.append(handle)


class Scout:
    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._frames = Frames()
        self._poll = select.epoll()
        self._poll.register(line, select.EPOLLIN)
        self._multi = new_multi()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._socket)
        self._watched: set[int] = set()
        self._under_way: dict[Any, tuple[int, Cache, Handle]] = {}
        self._caches: list[Cache] = []
        self._verifier: Verifier | None = None
        self._bodies: deque[tuple[int, bytes]] = deque()
        self._answers: list[Answer] = []
        self._said = time.monotonic()

    def run(self) -> None:
        """Until the socket ends."""
        while True:
            if len(self._under_way) >= MANY_QUESTIONS and not self._bodies:
                time.sleep(BREATH_SECONDS)
            ready = self._poll.poll(self._patience())
            for file, events in ready:
                if file == self._line.fileno():
                    if not self._listen():
                        return
                elif file in self._watched:
                    self._multi.socket_action(file, _selected(events))
            if not ready or self._multi.timeout() == 0:
                self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
            while self._collect():
                for cache in self._caches:
                    self._start(cache)
                self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
            self._verify()
            late = self._under_way and time.monotonic() > self._said + HEARTBEAT_SECONDS
            if self._answers or late:
                answers, self._answers = self._answers, []
                self._line.sendall(frame(answers))
                self._said = time.monotonic()

    def _patience(self) -> float:
        """Seconds until something is to be done, whatever sockets do."""
        if self._bodies:
            return 0.0
        libcurl = float(self._multi.timeout()) / 1000
        beat = HEARTBEAT_SECONDS if self._under_way else -1
        return min(libcurl, beat) if libcurl >= 0 and beat >= 0 else max(libcurl, beat)

    def _listen(self) -> bool:
        data = self._line.recv(READ_BYTES)
        for value in self._frames.feed(data):
            if self._verifier is None:
                secret, keys, logins = read_settings(value)
                self._verifier = Verifier(secret, keys)
                self._caches = [Cache(login) for login in logins]
                self._line.sendall(frame([]))
                continue
            assert isinstance(value, list)
            for number, cache, url in value:
                self._caches[cache].waiting.append((number, cache, url))
        for cache in self._caches:
            self._start(cache)
        return bool(data)

    def _start(self, cache: Cache) -> None:
        while cache.waiting:
            number, _, url = cache.waiting[0]
            try:
                handle = cache.free(url)
            except UpstreamError as error:
                self._answers.append((number, 0, str(error).encode(), []))
                cache.waiting.popleft()
                continue
            if handle is None:
                return
            cache.waiting.popleft()
            handle.aim(url, NARINFO_BYTES_MAX)
            self._under_way[handle.curl] = number, cache, handle
            self._multi.add_handle(handle.curl)

    def _collect(self) -> bool:
        """What has come; whether there is any."""
        finished: list[Page] = []
        more = True
        while more:
            more, good, bad = self._multi.info_read()
            finished += [self._over(curl, "") for curl in good]
            finished += [self._over(curl, problem) for curl, _, problem in bad]
        for number, status, body in finished:
            if status == 200:
                self._bodies.append((number, body))
            else:
                self._answers.append((number, status, b"" if status else body, []))
        return bool(finished)

    def _over(self, curl: Any, problem: str) -> Page:
        self._multi.remove_handle(curl)
        number, cache, handle = self._under_way.pop(curl)
        cache.give_back(handle)
        if problem:
            why = str(handle.raised[0]) if handle.raised else f"{handle.url}: {problem}"
            return number, 0, why.encode()
        return number, handle.status(), bytes(handle.body)

    def _verify(self) -> None:
        """A few at a time: caches and who waits have something to do meanwhile."""
        size = 0
        for _ in range(min(len(self._bodies), BODIES_AT_ONCE_MAX)):
            number, body = self._bodies.popleft()
            assert self._verifier is not None
            self._answers.append((number, 200, body, self._verifier.seals(body)))
            size += len(body)
            if size > ANSWERS_BYTES_MAX:
                return

    def _socket(self, what: int, file: int, *_: object) -> None:
        if what == pycurl.POLL_REMOVE:
            if file in self._watched:
                self._watched.discard(file)
                self._poll.unregister(file)
        elif file in self._watched:
            self._poll.modify(file, _EVENTS[what])
        else:
            self._watched.add(file)
            self._poll.register(file, _EVENTS[what])


def _selected(events: int) -> int:
    bits = 0
    if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
        bits |= pycurl.CSELECT_IN
    if events & select.EPOLLOUT:
        bits |= pycurl.CSELECT_OUT
    return bits


def main() -> None:
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: whoever started us decides
    try:
        Scout(socket.socket(fileno=0)).run()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it went away


if __name__ == "__main__":
    main()
