"""narinfo: the strict parser, the fingerprint that signatures cover, and the text that Nix gets.

Format: Nix's src/libstore/nar-info.cc. Only `1;StorePath;NarHash;NarSize;References` is signed, so
`format` writes nothing else that a peer or an upstream said. Where Nix would take the last of
several scalar lines, this refuses: two readers must not see two things.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from chunker.digest import NarHash, nix32_decode, nix32_encode
from chunker.record import SIGNATURES_MAX, PathRecord, is_store_path

from .errors import NarinfoError

NARINFO_BYTES_MAX = 1024 * 1024
SIGNATURES_ONLY_URL = "nar/signatures-only.nar"
"""Of a cache that `narswarm sign` wrote: it vouches for paths and has no NAR. Nix gets a 404 there
and goes to its next substituter; we do not even ask."""
_SCALARS = {
    "StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize", "References",
    "Deriver", "System", "CA",
}  # fmt: skip
_NEEDED = frozenset({"StorePath", "URL", "NarHash", "NarSize", "References"})
_SIGNATURE = re.compile(r"[^:\s]{1,128}:[A-Za-z0-9+/=]{1,128}")
_NAR = re.compile(r"nar/([0-9abcdfghijklmnpqrsvwxyz]{32})-([0-9abcdfghijklmnpqrsvwxyz]{52})\.nar")


@dataclass(frozen=True, slots=True)
class Narinfo:
    store_path: str
    url: str
    compression: str
    nar_hash: NarHash
    nar_size: int
    references: tuple[str, ...]
    """Full store paths, sorted, distinct."""
    signatures: tuple[str, ...]
    content_address: str
    deriver: str


def parse(data: bytes) -> Narinfo:
    """Raises NarinfoError, and nothing else, for any bytes that are not a usable narinfo."""
    if len(data) > NARINFO_BYTES_MAX:
        raise NarinfoError(f"a narinfo of {len(data)} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NarinfoError("a narinfo that is not UTF-8") from error
    if "\r" in text or "\0" in text:
        raise NarinfoError("a narinfo with CR or NUL")
    scalars, signatures = _lines(text)
    if not scalars.keys() >= _NEEDED:
        missing = _NEEDED - scalars.keys()
        raise NarinfoError(f"a narinfo without {', '.join(sorted(missing))}")
    if not is_store_path(scalars["StorePath"]):
        raise NarinfoError(f"{scalars['StorePath']!r:.120} is not a path in /nix/store")
    return Narinfo(
        scalars["StorePath"],
        scalars["URL"],
        scalars.get("Compression") or "bzip2",
        _nar_hash(scalars["NarHash"]),
        _nar_size(scalars["NarSize"]),
        _references(scalars["References"]),
        tuple(dict.fromkeys(signatures)) if len(signatures) > 1 else tuple(signatures),
        scalars.get("CA", ""),
        scalars.get("Deriver", ""),
    )


def _lines(text: str) -> tuple[dict[str, str], list[str]]:
    scalars: dict[str, str] = {}
    signatures: list[str] = []
    for line in text.split("\n"):
        if not line:
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise NarinfoError(f"the line {line!r:.80} is not KEY: VALUE")
        if value[:1] == " ":
            value = value[1:]
        if name == "Sig":
            if _SIGNATURE.fullmatch(value):
                signatures.append(value)
            if len(signatures) > SIGNATURES_MAX:
                raise NarinfoError(f"more than {SIGNATURES_MAX} signatures")
        elif name in _SCALARS:
            if name in scalars:
                raise NarinfoError(f"two lines of {name}")
            scalars[name] = value
    return scalars, signatures


def _nar_hash(text: str) -> NarHash:
    kind, _, digits = text.partition(":")
    try:
        if kind == "sha256" and len(digits) == 64:
            return NarHash(bytes.fromhex(digits))
        if kind == "sha256":
            return NarHash(nix32_decode(digits))
    except ValueError as error:
        raise NarinfoError(f"NarHash {text!r:.80}: {error}") from error
    raise NarinfoError(f"NarHash {text!r:.80} is not sha256")


def _nar_size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19) or int(text) == 0:
        raise NarinfoError(f"NarSize {text!r:.40} is not a positive number")
    return int(text)


def _references(text: str) -> tuple[str, ...]:
    paths = [f"/nix/store/{name}" for name in text.split()]
    if not all(map(is_store_path, paths)):
        path = next(path for path in paths if not is_store_path(path))
        raise NarinfoError(f"the reference {path!r:.120} is not a store path")
    if len(set(paths)) != len(paths):
        raise NarinfoError("a reference is named twice")
    return tuple(sorted(paths))


def fingerprint(
    store_path: str, nar_hash: NarHash, nar_size: int, references: tuple[str, ...]
) -> bytes:
    """What Nix signs (src/libstore/path-info.cc); `references` are full paths, sorted."""
    hashed = f"sha256:{nix32_encode(nar_hash)}"
    return f"1;{store_path};{hashed};{nar_size};{','.join(references)}".encode()


def nar_url(record: PathRecord) -> str:
    """Stable for ever: Nix caches it for 30 days and then asks for the NAR alone."""
    return _nar_url(record, nix32_encode(record.nar_hash))


def _nar_url(record: PathRecord, nar_hash: str) -> str:
    return f"nar/{record.store_hash}-{nar_hash}.nar"


def parse_nar_url(path: str) -> tuple[str, NarHash] | None:
    match = _NAR.fullmatch(path)
    if match is None:
        return None
    try:
        return match[1], NarHash(nix32_decode(match[2]))
    except ValueError:
        return None


def format(record: PathRecord, signatures: tuple[str, ...], url: str = "") -> bytes:
    """The served narinfo: a pure function of the signed fields, the verified signatures, and a
    content address that recomputes to the store path (`Admitted.record` has no other). `url`: if
    not that of this gateway."""
    names = " ".join([path[11:] for path in record.references])  # behind /nix/store/
    nar_hash = nix32_encode(record.nar_hash)
    lines = [
        f"StorePath: {record.store_path}",
        f"URL: {url or _nar_url(record, nar_hash)}",
        "Compression: none",
        f"NarHash: sha256:{nar_hash}",
        f"NarSize: {record.nar_size}",
        f"References: {names}",
        *(f"Sig: {signature}" for signature in signatures),
        *([f"CA: {record.content_address}"] if record.content_address else []),
    ]
    return ("\n".join(lines) + "\n").encode()
