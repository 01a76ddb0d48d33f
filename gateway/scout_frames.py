"""What a gateway and its scout tell each other over their socket. Pure.

    length (4 bytes, big-endian), msgpack
    to the scout    first [secret, [[name, key], ...], [cache, ...]]
                    then [[number, cache, URL], ...]
    from the scout  [[number, status, body, [seal, ...]], ...]; empty: it is there and works

A status of 0 says that there was none, and the body why. Both ends are this program, but a process
may break: what is not of this form raises ScoutBroken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

from .access import Access
from .errors import ScoutBroken
from .handles import Login
from .seals import SEAL_BYTES

FRAME_BYTES_MAX = 16 * 1024 * 1024
SEALS_EACH_MAX = 256
LENGTH_BYTES = 4

Question = tuple[int, int, str]
"""Its number, the number of the cache, the URL."""
Answer = tuple[int, int, bytes, list[bytes]]
"""The number of the question, status, body, seals of those of its signatures that hold."""
Keys = list[tuple[str, bytes]]


def frame(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return len(packed).to_bytes(LENGTH_BYTES, "big") + packed


class Frames:
    """feed bytes in any split, get what was framed. Raises ScoutBroken."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[object]:
        self._bytes += data
        while len(self._bytes) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._bytes[:LENGTH_BYTES], "big")
            if end > FRAME_BYTES_MAX:
                raise ScoutBroken(f"a frame of {end} bytes")
            if len(self._bytes) < end:
                return
            packed = bytes(self._bytes[LENGTH_BYTES:end])
            del self._bytes[:end]
            try:
                yield msgpack.unpackb(packed, raw=False, use_list=True)
            except Exception as error:
                raise ScoutBroken(f"a frame that is no msgpack: {error}") from error


def settings(secret: bytes, keys: Keys, logins: list[Login]) -> bytes:
    return frame([secret, keys, [_packed(login) for login in logins]])


def read_settings(value: Any) -> tuple[bytes, Keys, list[Login]]:
    """What `settings` framed; from the process that started us, which is believed."""
    secret, keys, logins = value
    return secret, [(name, key) for name, key in keys], [_login(*login) for login in logins]


def answers(value: object) -> list[Answer]:
    """Raises ScoutBroken."""
    if type(value) is not list:
        raise ScoutBroken("no list of answers")
    for one in value:
        if not (
            type(one) is list
            and len(one) == 4
            and type(one[0]) is int
            and type(one[1]) is int
            and type(one[2]) is bytes
            and type(one[3]) is list
            and (not one[3] or _are_seals(one[3]))
        ):
            raise ScoutBroken("what it says is no answer")
    return value


def _are_seals(seals: list[object]) -> bool:
    if len(seals) > SEALS_EACH_MAX:
        return False
    return all([type(one) is bytes and len(one) == SEAL_BYTES for one in seals])


def _packed(login: Login) -> list[object]:
    access = login.access
    files = [None if file is None else str(file) for file in (access.netrc, access.tls_roots)]
    return [list(login.origin), list(login.user), *files, dict(access.tokens)]


def _login(
    origin: list[str],
    user: list[str],
    netrc: str | None,
    roots: str | None,
    tokens: dict[str, str],
) -> Login:
    files = [None if file is None else Path(file) for file in (netrc, roots)]
    return Login((origin[0], origin[1]), (user[0], user[1]), Access(files[0], files[1], tokens))
