"""ETags: an answer that the asker holds already is 304 and nothing more (RFC 9110, 13.1.2). Pure.

A NAR's tag is its NarHash, which is signed; every small answer's is a digest of its bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from chunker.digest import NarHash, nix32_encode

from .requests import Request
from .responses import Response


def nar_tag(nar_hash: NarHash) -> str:
    return f'"{nix32_encode(nar_hash)}"'


def holds(headers: Mapping[str, str], tag: str) -> bool:
    """Whether If-None-Match names `tag`; compared weakly, as it must be."""
    named = [
        part.strip().removeprefix("W/") for part in headers.get("if-none-match", "").split(",")
    ]
    return "*" in named or tag in named


def not_modified(tag: str) -> Response:
    return Response(304, (("ETag", tag),), b"", 0)


def range_of(headers: Mapping[str, str], tag: str) -> str | None:
    """The Range header, unless If-Range says that it is of something else."""
    return headers.get("range") if headers.get("if-range", tag) == tag else None


def tagged(response: Response) -> Response:
    """A small 200 with its tag."""
    if response.status != 200 or not isinstance(response.body, bytes):
        return response
    tag = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
    return replace(response, headers=(*response.headers, ("ETag", tag)))


def unless_held(request: Request, response: Response) -> Response:
    """304 to who names the tag of a small 200."""
    tag = dict(response.headers).get("ETag") if "if-none-match" in request.headers else None
    return not_modified(tag) if tag is not None and holds(request.headers, tag) else response
