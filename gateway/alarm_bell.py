"""The shell around `alarms`: Unix time, the log, and `alarms.json` beside the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable
from pathlib import Path

from chunker.record import PathRecord

from . import alarms
from .alarms import Alarms
from .errors import UsageError
from .files import read_text, replace_text

log = logging.getLogger(__name__)

FILE_NAME = "alarms.json"


class AlarmBell:
    def __init__(
        self,
        directory: Path,
        trusted: Container[str],
        clock_seconds: Callable[[], float],
        *,
        refuses: bool,
    ) -> None:
        """`trusted`: names of the keys whose word counts; a conflict with another key is over."""
        self._file = directory / FILE_NAME
        self._clock_seconds = clock_seconds
        self._alarms = Alarms(self._read(trusted), refuses=refuses)

    def saw(self, record: PathRecord, signatures: Iterable[str]) -> None:
        """To be called with every record of which `signatures` count."""
        keys = (signature.partition(":")[0] for signature in signatures)
        conflict = self._alarms.saw(self._clock_seconds(), record, keys)
        if conflict is None:
            return
        log.error("ALARM: %s: %s", conflict.store_path, conflict.text)
        try:
            replace_text(self._file, alarms.encode(self._alarms.conflicts.values()))
        except UsageError as error:
            log.error("an alarm would be forgotten by a restart: %s", error)

    def disputed(self, store_path: str) -> str:
        return self._alarms.disputed(store_path)

    def report(self) -> list[dict[str, object]]:
        return [alarms.report(conflict) for conflict in self._alarms.conflicts.values()]

    def _read(self, trusted: Container[str]) -> list[alarms.Conflict]:
        try:
            return alarms.decode(read_text(self._file) or "[]", trusted)
        except (UsageError, ValueError) as error:
            log.error("%s is passed over: %s", self._file, error)
            return []
