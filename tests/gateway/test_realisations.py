"""Realisations: Nix's own vectors, and nothing unsigned that passes."""

from __future__ import annotations

import json

import pytest

from gateway.realisations import Key, RealisationError, parse_target, verified
from gateway.signing import KeyRing, PublicKey, SecretKey

KEY = SecretKey("office-1", b"k" * 32)
RING = KeyRing((KEY.public,))
HASH = "g1w7hy3qg1w7hy3qg1w7hy3qg1w7hy3q"
OUT = f"{HASH}-foo"
ID = "sha256:" + "0a" * 32 + "!out"
# From src/libstore-tests/data/realisation of Nix 2.35: the key, and what it signed.
NIX_KEY = PublicKey.parse("test-key:rAWTx0noOtf7tqHO5iDnsH7gGNVdQYl99oaJk2gydic=")
NIX_TARGET = f"/build-trace-v2/{HASH}-bar.drv/foo.doi"
NIX_SIGNED = {
    OUT: "WsjxK4/EI74COtzMDI+VCjQU9O4FydK0+YeY1CE5hUevogd+T+CPvNXza7oog3GTMS+ZlBwsC2S3ppwusKnJDg==",
    f"{OUT}.drv":
        "ZE30UrOh26/EYvUaczjJtz6c4WcRYke6IEhDNN5TiFRF6Uu+H8lHofponlhfZxDDrCUlfstS/vtv3Xm2F6M/AA==",
}  # fmt: skip


def key_of(target: str) -> Key:
    key = parse_target(target)
    assert key is not None
    return key


def by_id(**changes: object) -> dict[str, object]:
    return {"dependentRealisations": {}, "id": ID, "outPath": OUT, "signatures": [], **changes}


def signed_by_id(**changes: object) -> dict[str, object]:
    fields = by_id(**changes)
    named = {key: fields[key] for key in ("dependentRealisations", "id", "outPath")}
    text = json.dumps(named, separators=(",", ":"), sort_keys=True).encode()
    return {**fields, "signatures": [KEY.sign(text), "other-1:AAAA"]}


@pytest.mark.parametrize("out_path", NIX_SIGNED)
@pytest.mark.parametrize("structured", [True, False])
def test_what_nix_signed_is_told_as_nix_writes_it(out_path: str, structured: bool) -> None:
    as_object = {"keyName": "test-key", "sig": NIX_SIGNED[out_path]}
    junk = {"keyName": "asdf", "sig": "A" * 86 + "=="}
    signature: object = as_object if structured else f"test-key:{NIX_SIGNED[out_path]}"
    data = json.dumps({"outPath": out_path, "signatures": [junk, signature], "more": 1}).encode()
    told = verified(key_of(NIX_TARGET), data, KeyRing((NIX_KEY,)))
    assert told is not None
    assert json.loads(told) == {"outPath": out_path, "signatures": [as_object]}


def test_another_out_path_or_output_is_not_signed() -> None:
    data = {"outPath": f"{HASH}-evil", "signatures": [f"test-key:{NIX_SIGNED[OUT]}"]}
    ring = KeyRing((NIX_KEY,))
    assert verified(key_of(NIX_TARGET), json.dumps(data).encode(), ring) is None
    data["outPath"] = OUT
    assert verified(key_of(NIX_TARGET), json.dumps(data).encode(), ring) is not None
    for target in (NIX_TARGET.replace("foo.doi", "dev.doi"), NIX_TARGET.replace("bar", "baz")):
        assert verified(key_of(target), json.dumps(data).encode(), ring) is None


def test_the_older_form_passes_with_what_is_signed_alone() -> None:
    needs = {"sha256:" + "0b" * 32 + "!dev": f"{HASH}-dev"}
    fields = signed_by_id(dependentRealisations=needs, more="unsigned")
    told = verified(key_of(f"/realisations/{ID}.doi"), json.dumps(fields).encode(), RING)
    assert told is not None
    expected = by_id(dependentRealisations=needs, signatures=fields["signatures"][:1])  # type: ignore[index]
    assert json.loads(told) == expected
    assert told.startswith(b'{"dependentRealisations":{"sha256:')


def test_unsigned_is_nothing() -> None:
    key = key_of(f"/realisations/{ID}.doi")
    assert verified(key, json.dumps(by_id()).encode(), RING) is None
    changed = {**signed_by_id(), "outPath": f"{HASH}-evil"}
    assert verified(key, json.dumps(changed).encode(), RING) is None
    needs = {"sha256:" + "0c" * 32 + "!out": f"{HASH}-evil"}
    changed = {**signed_by_id(), "dependentRealisations": needs}
    assert verified(key, json.dumps(changed).encode(), RING) is None


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"\xff", b"[" * 100_000, b"{}",
        json.dumps(signed_by_id(id=ID.replace("0a", "0b"))).encode(),
        json.dumps(signed_by_id(outPath="../x")).encode(),
        json.dumps(signed_by_id(dependentRealisations={"x": OUT})).encode(),
        json.dumps(by_id(signatures={})).encode(),
        json.dumps(by_id(signatures=["a:b"] * 100)).encode(),
        b'{"outPath": "a", "outPath": "b"}',
    ],
)  # fmt: skip
def test_nonsense_is_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(RealisationError):
        verified(key_of(f"/realisations/{ID}.doi"), data, RING)


@pytest.mark.parametrize(
    ("target", "known"),
    [
        (f"/realisations/{ID}.doi", True),
        (f"/realisations/{ID}.doi".replace("!", "%21").replace(":", "%3A"), True),
        (NIX_TARGET, True),
        ("/realisations/x.doi", False),
        (f"/realisations/..%2F{ID}.doi", False),
        (f"/build-trace-v2/{HASH}-bar/foo.doi", False),
        (f"/build-trace-v2/{HASH}-bar.drv/../foo.doi", False),
        (f"/build-trace-v2/{HASH}-bar.drv/..doi", False),
    ],
)
def test_targets(target: str, known: bool) -> None:
    assert (parse_target(target) is not None) == known
