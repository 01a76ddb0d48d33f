"""A process beside this one that asks caches and verifies signatures while there is much to ask.

    none --BURST questions at one cache--> starting --it says it is there--> asking
    asking --a quiet minute--> none
    any --it dies, is silent, says nonsense--> none, and for REST_SECONDS none is started

One core asks, parses and verifies 10,000 paths a second, and the interpreter uses no second one. So
who has hundreds of questions under way gives them to a scout (gateway.scout_process, decision
10). It does what takes time and decides nothing: bodies are parsed here, redirects followed here,
and a signature is taken as verified only by a seal (gateway.seals). What it did not answer is asked
here again: without it, everything is as before and slower. A few questions are answered sooner
here.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import trio

from .errors import ScoutBroken
from .handles import Login
from .scout_frames import Frames, Question, answers, frame, settings
from .seals import SECRET_BYTES, Seals
from .signing import KeyRing

log = logging.getLogger(__name__)

BURST_QUESTIONS = 128
"""Under way at one cache: more than one Nix has and what is looked up ahead of it."""
ASKING_QUESTIONS_MIN = 48
"""Under way at one cache; fewer are asked here, which answers sooner."""
START_SECONDS_MAX = 10.0
SILENCE_SECONDS_MAX = 2.0
"""Of one that has questions: it says ten times as often that it is there."""
QUIET_SECONDS_MAX = 60.0
REST_SECONDS = 60.0
READ_BYTES = 32 * 1024
COMMAND = (sys.executable, "-S", "-P", "-m", "gateway.scout_process")
"""Without what a start may import beside our modules: it must be there soon."""

Heard = Callable[[int, bytes], None]
"""Called with status and body; a status of 0: none, and the body says why. A status below 0: it was
not asked."""
NOT_ASKED, STOPPED = -1, -2


class Scout:
    def __init__(
        self, seals: Seals, rings: Iterable[KeyRing], command: Sequence[str] = COMMAND
    ) -> None:
        """Signatures with a key of `rings` are verified, and then proven by `seals`. `command`
        starts the process."""
        self._command = command
        self._seals = seals
        self._keys = sorted({(k.name, k.key) for ring in rings for k in ring.keys.values()})
        self._logins: list[Login] = []
        self._asked: dict[int, Heard] = {}
        self._unsent: list[Question] = []
        self._number = 0
        self._is_ready = False
        self._wanted = trio.Event()
        self._more = trio.Event()
        self._rests_until = float("-inf")
        self._patience = trio.CancelScope()
        self._silent_at = float("-inf")

    @property
    def is_there(self) -> bool:
        """Whether one may be asked."""
        return self._is_ready

    def add(self, login: Login) -> int:
        """A cache, before any question; its number."""
        self._logins.append(login)
        return len(self._logins) - 1

    def takes(self, under_way: int) -> bool:
        """Whether to give it the next question at a cache that has so many."""
        if self._is_ready:
            return under_way >= ASKING_QUESTIONS_MIN
        if under_way >= BURST_QUESTIONS:
            self._wanted.set()
        return False

    def ask(self, cache: int, url: str, heard: Heard) -> None:
        """`heard` is called later, never before this returns. Only after `takes`."""
        assert self._is_ready
        self._number += 1
        if not self._asked:
            self._silent_at = trio.current_time() + SILENCE_SECONDS_MAX
            self._patience.deadline = self._silent_at
        self._asked[self._number] = heard
        if not self._unsent:
            self._more.set()
        self._unsent.append((self._number, cache, url))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Starts one when there is much to ask, until cancelled."""
        task_status.started()
        try:
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                if trio.current_time() >= self._rests_until:
                    await self._employ()
        finally:
            self._end(STOPPED)

    async def _employ(self) -> None:
        try:
            await self._with_process()
        except (OSError, ScoutBroken) as error:
            log.warning("the process that asks beside this one: %s; asked here instead", error)
            self._rests_until = trio.current_time() + REST_SECONDS
            self._end(NOT_ASKED)

    def _end(self, status: int) -> None:
        """What was not answered is told so."""
        self._is_ready = False
        self._unsent.clear()
        asked, self._asked = self._asked, {}
        for heard in asked.values():
            try:
                heard(status, b"")
            except Exception:  # as above
                log.exception("what follows an answer failed")

    async def _with_process(self) -> None:
        """Until it is no longer needed. Raises OSError, ScoutBroken."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = await trio.lowlevel.open_process(
                    self._command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(_path())},
                )
            try:
                await self._converse(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
            finally:
                self._is_ready = False
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()

    async def _converse(self, line: trio.SocketStream) -> None:
        secret = secrets.token_bytes(SECRET_BYTES)
        self._seals.begin(secret)
        raised: Exception | None = None
        async with trio.open_nursery() as nursery:
            try:
                await line.send_all(settings(secret, self._keys, self._logins))
                nursery.start_soon(self._send, line)
                await self._receive(line)
            except (trio.BrokenResourceError, ScoutBroken) as error:
                raised = error
            nursery.cancel_scope.cancel()
        if raised is not None:
            raise ScoutBroken(str(raised)) from raised

    async def _send(self, line: trio.SocketStream) -> None:
        while True:
            await self._more.wait()
            self._more = trio.Event()
            unsent, self._unsent = self._unsent, []
            try:
                await line.send_all(frame(unsent))
            except trio.BrokenResourceError:
                return  # who receives finds out as well

    async def _receive(self, line: trio.SocketStream) -> None:
        """Returns after a quiet minute. Raises ScoutBroken."""
        frames = Frames()
        while True:
            with trio.move_on_after(self._seconds()) as self._patience:
                data = await line.receive_some(READ_BYTES)
            if self._patience.cancelled_caught:
                if self._asked and trio.current_time() < self._silent_at:
                    continue  # it was asked just when the quiet minute was over
                if not self._is_ready or self._asked:
                    raise ScoutBroken("it is silent")
                self._is_ready = False  # now: while its end is awaited, others would ask it
                return
            if not data:
                raise ScoutBroken("it ended")
            for value in frames.feed(data):
                self._hear(value)

    def _seconds(self) -> float:
        if not self._is_ready:
            return START_SECONDS_MAX
        return SILENCE_SECONDS_MAX if self._asked else QUIET_SECONDS_MAX

    def _hear(self, value: object) -> None:
        told = answers(value)
        self._is_ready = True
        for number, status, body, seals in told:
            heard = self._asked.pop(number, None)
            if heard is None or status < 0:
                raise ScoutBroken("it answers what was not asked")
            if seals:
                self._seals.add(seals)
            try:
                heard(status, body)
            except Exception:  # ours; it must not end all the others
                log.exception("what follows an answer failed")


def _path() -> list[str]:
    """Where the modules of this process came from, however it was installed."""
    return [str(Path(__file__).parents[1]), *filter(None, sys.path)]
