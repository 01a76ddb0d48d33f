"""Answers as values: what a handler gives, and the head that goes before it on the wire. Pure."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus

from chunker.digest import Bytes

from .pump import Readable

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class Response:
    """`length` is what Content-Length says, also where HEAD sends no body. An iterator or what is
    read gives exactly that many bytes; an iterator is closed here in every case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | AsyncIterator[Bytes] | Readable
    length: int
    wire: bytes = b""
    """Head and body, of an answer that is given often (`prepared`)."""


@dataclass(frozen=True, slots=True)
class Unsatisfiable:
    """A range that begins at or after the end."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | Unsatisfiable | None:
    """[start, end) of one byte range (RFC 9110, 14.1.2); None: send the whole, which is also the
    answer to what is malformed or asks for several ranges."""
    match = None if header is None else _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        count = min(int(match[2]), size)
        return (size - count, size) if count else Unsatisfiable()
    start, end = int(match[1]), size
    if match[2]:
        if int(match[2]) < start:
            return None
        end = min(size, int(match[2]) + 1)
    return (start, end) if start < size else Unsatisfiable()


def short(status: int, text: str, *headers: tuple[str, str]) -> Response:
    """One line of text, for a person who looks at what went wrong."""
    body = f"{status} {text}\n".encode()
    return Response(status, (("Content-Type", "text/plain"), *headers), body, len(body))


def prepared(response: Response) -> Response:
    """With what leaves for it where the connection goes on."""
    assert isinstance(response.body, bytes)
    start = head(response.status, response.headers, response.length, last=False)
    return replace(response, wire=start + response.body)


def head(status: int, headers: Sequence[tuple[str, str]], length: int, *, last: bool) -> bytes:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    if status != 304:
        lines.append(f"Content-Length: {length}")
    lines += [f"{name}: {value}" for name, value in headers]
    if last:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
