"""What must hold for any bytes at all: each target raises AssertionError, or returns.

A parser answers with its own values or its own error; anything else is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType

import gateway.narinfo
import gateway.requests
from gateway.errors import NarinfoError
from gateway.narinfo import Narinfo, format, parse, parse_nar_url
from gateway.requests import Event, Refusal, Request, RequestReader
from gateway.seeding import record_of

CORPUS = Path(__file__).parent / "corpus"
INPUT_BYTES_MAX = 8 * 1024


@dataclass(frozen=True)
class Target:
    """`try_one(data, chance)`; `module` is the code whose lines count as reached; `words` are
    what a mutation may put in."""

    name: str
    try_one: Callable[[bytes, Random], None]
    module: ModuleType
    words: tuple[bytes, ...]

    def corpus(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((CORPUS / self.name).glob("*.bin"))}


def try_requests(data: bytes, chance: Random) -> None:
    """The same requests however the bytes are split, nothing behind a refusal, bodies of the
    length that was said."""
    whole = _joined(_fed([data]))
    split = _joined(_fed(_split(data, chance)))
    assert [_meaning(event) for event in split] == [_meaning(event) for event in whole], "split"
    left = 0
    for number, event in enumerate(whole):
        if isinstance(event, bytes):
            left -= len(event)
            assert left >= 0, "more body than was said"
            continue
        if isinstance(event, Refusal):
            assert 400 <= event.status < 500 and number == len(whole) - 1
            continue
        assert left == 0, "a request inside a body"
        left = event.length
        assert event.length == 0 or event.method == "PUT", "a body that nobody takes"
        assert "transfer-encoding" not in event.headers
        _check_head(event, data)


def _meaning(event: Event) -> object:
    """Of two faults in one line the parser may see either first, so a refusal's status is free."""
    return "refused" if isinstance(event, Refusal) else event


def _check_head(request: Request, data: bytes) -> None:
    assert len(request.target) <= gateway.requests.TARGET_BYTES_MAX
    assert len(request.headers) <= gateway.requests.HEADERS_MAX
    for text in (request.target, *request.headers, *request.headers.values()):
        assert not {"\r", "\n", "\0"} & set(text), "a line within a line"
    host = request.headers.get("host")
    assert host is None or host.encode("latin-1") in data


def _fed(parts: list[bytes]) -> list[Event]:
    reader, events = RequestReader(), list[Event]()
    for part in parts:
        if events and isinstance(events[-1], Refusal):
            assert reader.feed(part) == [], "something behind a refusal"
        events += reader.feed(part)
    return events


def _split(data: bytes, chance: Random) -> list[bytes]:
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 6)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _joined(events: list[Event]) -> list[Event]:
    """Pieces of one body as one."""
    out: list[Event] = []
    for event in events:
        if isinstance(event, bytes) and out and isinstance(out[-1], bytes):
            out[-1] += event
        elif event != b"":
            out.append(event)
    return out


def try_narinfo(data: bytes, chance: Random) -> None:
    """A NarinfoError, or fields from which we write a narinfo that says the same."""
    try:
        info = parse(data)
    except NarinfoError:
        return
    assert isinstance(info, Narinfo) and info.nar_size > 0
    served = parse(format(record_of(info), info.signatures))
    signed = ("store_path", "nar_hash", "nar_size", "references", "signatures")
    for field in signed:
        assert getattr(served, field) == getattr(info, field), field
    assert parse_nar_url(served.url) is not None and served.compression == "none"


TARGETS = {
    "requests": Target(
        "requests",
        try_requests,
        gateway.requests,
        (b"\r\n", b"\r\n\r\n", b"GET ", b"PUT ", b"HEAD ", b" HTTP/1.1", b" HTTP/1.0", b"Host: a",
         b"Content-Length: ", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Origin: x",
         b"Expect: 100-continue", b"Connection: close", b"Connection: Upgrade", b"Upgrade: h2c",
         b"\0", b"\n", b"\r", b" ", b"\t", b":", b"0\r\n\r\n", b"18446744073709551616", b"-1",
         b"\xff"),
    ),
    "narinfo": Target(
        "narinfo",
        try_narinfo,
        gateway.narinfo,
        (b"StorePath: /nix/store/", b"URL: ", b"Compression: ", b"NarHash: sha256:", b"NarSize: ",
         b"References: ", b"Sig: a:b=", b"CA: ", b"Deriver: ", b"FileHash: ", b"FileSize: ",
         b"System: ", b"\n", b"\r", b"\0", b": ", b":", b" ", b"\xc2\x85", b"\xe2\x80\xa8",
         b"\xef\xbb\xbf", b"\xd9\xa1", b"\x1c", b"\x0b", b"0", b"-1", b"9" * 20, b"\xff"),
    ),
}  # fmt: skip
