"""Realisations: which store path a content-addressed derivation's output became, and who says so.

    realisations/sha256:HEX!OUT.doi    Nix to 2.34: {dependentRealisations, id, outPath, signatures}
                                       signed is the same without signatures
    build-trace-v2/NAME.drv/OUT.doi    from 2.35: {outPath, signatures: [{keyName, sig}]}
                                       signed is {key: {drvPath, outputName}, value: {outPath}}

JSON as Nix dumps it: keys sorted, no spaces (src/libstore/realisation.cc of 2.8, 2.34 and 2.35; the
tests hold vectors of Nix's own). As with narinfos nothing that an upstream said passes unsigned:
the answer is written anew from the signed fields and the signatures that a trusted key made. Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from chunker.record import SIGNATURES_MAX

from .errors import GatewayError
from .signing import KeyRing

REALISATION_BYTES_MAX = 256 * 1024
DEPENDENCIES_MAX = 1024
_NAME = r"[0-9A-Za-z+\-_?=][0-9A-Za-z+\-._?=]{0,210}"
_BASE_NAME = rf"[0-9abcdfghijklmnpqrsvwxyz]{{32}}-{_NAME}"
_ID = re.compile(rf"sha256:[0-9a-f]{{64}}!{_NAME}")
_OUT_PATH = re.compile(_BASE_NAME)
_BY_HASH = re.compile(rf"/realisations/(?P<id>sha256:[0-9a-f]{{64}}!{_NAME})\.doi")
_BY_DERIVATION = re.compile(rf"/build-trace-v2/(?P<drv>{_BASE_NAME}\.drv)/(?P<out>{_NAME})\.doi")


class RealisationError(GatewayError):
    """What an upstream gave is not the realisation that was asked for."""


@dataclass(frozen=True, slots=True)
class Key:
    """Which realisation: by `id`, or by derivation and output. `path` below a cache's URL."""

    path: str
    id: str = ""
    derivation: str = ""
    output: str = ""


def parse_target(target: str) -> Key | None:
    plain = unquote(target)
    if (match := _BY_HASH.fullmatch(plain)) is not None:
        return Key(plain[1:], id=match["id"])
    if (match := _BY_DERIVATION.fullmatch(plain)) is not None:
        return Key(plain[1:], derivation=match["drv"], output=match["out"])
    return None


def verified(key: Key, data: bytes, keys: KeyRing) -> bytes | None:
    """What to tell Nix; None where no trusted key signed it. Raises RealisationError."""
    fields = _fields(data)
    out_path = fields.get("outPath")
    if not isinstance(out_path, str) or not _OUT_PATH.fullmatch(out_path):
        raise RealisationError(f"{key.path}: {out_path!r:.120} is not a store path")
    signatures = keys.verified(fingerprint(key, out_path, fields), _signatures(fields))
    if not signatures:
        return None
    if key.id:
        told = {**_by_id(key, out_path, fields), "signatures": sorted(signatures)}
    else:
        told = {"outPath": out_path, "signatures": [_split(text) for text in sorted(signatures)]}
    return _dump(told)


def fingerprint(key: Key, out_path: str, fields: dict[str, Any]) -> bytes:
    """Raises RealisationError."""
    if key.id:
        return _dump(_by_id(key, out_path, fields))
    named = {"drvPath": key.derivation, "outputName": key.output}
    return _dump({"key": named, "value": {"outPath": out_path}})


def _by_id(key: Key, out_path: str, fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("id") != key.id:
        raise RealisationError(f"{key.path}: it is of {fields.get('id')!r:.120}")
    needs = fields.get("dependentRealisations", {})
    if not isinstance(needs, dict) or len(needs) > DEPENDENCIES_MAX:
        raise RealisationError(f"{key.path}: dependentRealisations is no object of that size")
    for name, path in needs.items():
        if not (_ID.fullmatch(name) and isinstance(path, str) and _OUT_PATH.fullmatch(path)):
            raise RealisationError(f"{key.path}: it depends on {name!r:.120}")
    return {"dependentRealisations": needs, "id": key.id, "outPath": out_path}


def _fields(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise RealisationError(f"a realisation that is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RealisationError("a realisation that is no object")
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers must not see two things."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


def _signatures(fields: dict[str, Any]) -> list[str]:
    """As `name:base64`; both of Nix's ways to write them."""
    listed = fields.get("signatures", [])
    if not isinstance(listed, list) or len(listed) > SIGNATURES_MAX:
        raise RealisationError(f"signatures are no list of at most {SIGNATURES_MAX}")
    found = []
    for entry in listed:
        if isinstance(entry, dict):
            entry = f"{entry.get('keyName')}:{entry.get('sig')}"
        if isinstance(entry, str):
            found.append(entry)
    return list(dict.fromkeys(found))


def _split(signature: str) -> dict[str, str]:
    name, _, encoded = signature.partition(":")
    return {"keyName": name, "sig": encoded}


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
