"""HTTP/1.1 requests: feed bytes, get requests, pieces of their bodies, and at most one refusal.

    bytes --httptools--> Request, Request, body bytes, ..., Refusal (then nothing more)

A machine: the same bytes give the same requests, however they are split. What a client can make
long has a cap here. Only PUT may carry a body, of a length that it says beforehand. A second Host
is refused: the Host decides who may ask (gateway.server).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httptools

HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
TARGET_BYTES_MAX = 4096
PIPELINED_REQUESTS_MAX = 64
"""In one piece that is fed; what is behind them is refused."""
BODY_BYTES_MAX = 1 << 62


@dataclass(frozen=True, slots=True)
class Request:
    """`headers` have lower-case names; of several lines with one name the last counts. `length`:
    how many bytes of body follow."""

    method: str
    target: str
    headers: Mapping[str, str]
    keep_alive: bool = True
    length: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """The last event: nothing behind it can be understood. `status` is what to answer."""

    status: int


Event = Request | bytes | Refusal


class RequestReader:
    def __init__(self) -> None:
        self.idle = True
        """Between requests: nothing of the next one has come."""
        self._events: list[Event] = []
        self._requests = 0
        self._refusal = 0
        self._over = False
        self._unparsed = 0
        self._forget()
        self._parser: Any = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> list[Event]:
        """What is complete with these bytes."""
        if self._over:
            return []
        self._requests = 0
        if not self.idle and not self._left:
            self._unparsed += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refusal = self._refusal or 400
        if self._unparsed > 2 * HEAD_BYTES_MAX:
            self._refusal = self._refusal or 431
        events, self._events = self._events, []
        if self._refusal:
            self._over = True
            events.append(Refusal(self._refusal))
        return events

    def _forget(self) -> None:
        self._target, self._headers, self._head_bytes = b"", dict[str, str](), 0
        self._header_count = self._left = 0

    # -- called by httptools while it is fed -----------------------------------------------------

    def on_message_begin(self) -> None:
        self._forget()
        self.idle = False

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > TARGET_BYTES_MAX:
            self._refuse(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        self._header_count += 1
        if self._header_count > HEADERS_MAX or self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(431)
        key = name.decode("latin-1").lower()
        if key == "host" and key in self._headers:
            self._refuse(400)
        self._headers[key] = value.decode("latin-1").strip(" \t")

    def on_headers_complete(self) -> None:
        if self._requests >= PIPELINED_REQUESTS_MAX:
            self._refuse(429)
        method = self._parser.get_method().decode("latin-1")
        self._left = self._body_bytes(method)
        self._unparsed = 0
        self._requests += 1
        self._events.append(
            Request(
                method,
                self._target.decode("latin-1"),
                self._headers,
                self._parser.should_keep_alive(),
                self._left,
            )
        )

    def on_body(self, part: bytes) -> None:
        self._left -= len(part)
        self._events.append(part)

    def on_message_complete(self) -> None:
        self.idle = True

    def _body_bytes(self, method: str) -> int:
        if "transfer-encoding" in self._headers:
            self._refuse(411)
        if (text := self._headers.get("content-length")) is None:
            return 0
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            self._refuse(400)
        if int(text) > (BODY_BYTES_MAX if method == "PUT" else 0):
            self._refuse(413)
        return int(text)

    def _refuse(self, status: int) -> None:
        self._refusal = self._refusal or status
        raise ValueError(f"refused with {status}")
