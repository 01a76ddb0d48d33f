"""narinfos that real Nix signed, and every way to get one wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunker.digest import nix32_decode, nix32_encode
from gateway.errors import NarinfoError, NotTrusted
from gateway.narinfo import Narinfo, fingerprint, format, nar_url, parse, parse_nar_url
from gateway.policy import any_of
from gateway.seeding import record_of
from gateway.signing import KeyRing, PublicKey, SecretKey
from gateway.trust import Admitted, admit

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted((GOLDEN / "narinfos").iterdir())
KEYS = json.loads((GOLDEN / "keys.json").read_text())
PUBLIC = PublicKey.parse(KEYS["public"])
RING = KeyRing((PUBLIC,))
ROOT = next(file for file in FILES if "-root\n" in file.read_text()).read_bytes()


def admitted(data: bytes) -> Admitted:
    return admit(record_of(parse(data)), any_of(RING))


def served(data: bytes) -> bytes:
    known = admitted(data)
    return format(known.record, known.signatures)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_signatures_of_nix_hold_and_ours_are_the_same(file: Path) -> None:
    info = parse(file.read_bytes())
    text = fingerprint(info.store_path, info.nar_hash, info.nar_size, info.references)
    assert RING.verified(text, info.signatures) == info.signatures
    assert SecretKey.parse(KEYS["secret"].strip()).sign(text) == info.signatures[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_served_parses_to_the_same_signed_fields(file: Path) -> None:
    info, out = parse(file.read_bytes()), served(file.read_bytes())
    again = parse(out)
    assert again.compression == "none"
    for name in ("store_path", "nar_hash", "nar_size", "references", "signatures"):
        assert getattr(again, name) == getattr(info, name)
    assert b"\r" not in out and out.endswith(b"\n")
    assert parse_nar_url(again.url) == (info.store_path[11:43], info.nar_hash)


def lines(data: bytes = ROOT) -> list[str]:
    return data.decode().splitlines()


def joined(changed: list[str]) -> bytes:
    return ("\n".join(changed) + "\n").encode()


def replaced(name: str, value: str) -> bytes:
    return joined([f"{name}: {value}" if line.startswith(name) else line for line in lines()])


ROOT_INFO = parse(ROOT)
SIGNED_CHANGES = {
    "StorePath": ROOT_INFO.store_path.replace("-root", "-boot"),
    "NarHash": f"sha256:{nix32_encode(bytes(32))}",
    "NarSize": str(ROOT_INFO.nar_size + 8),
    "References": " ".join(path[11:] for path in ROOT_INFO.references[1:]),
}


@pytest.mark.parametrize("name", sorted(SIGNED_CHANGES))
def test_a_change_of_anything_signed_is_refused(name: str) -> None:
    with pytest.raises(NotTrusted):
        admitted(replaced(name, SIGNED_CHANGES[name]))


@pytest.mark.parametrize(
    "change",
    [
        replaced("URL", "http://169.254.169.254/latest/meta-data"),
        replaced("URL", "../../etc/passwd"),
        replaced("Compression", "bzip2"),
        replaced("FileHash", "sha256:0"),
        replaced("FileSize", "0"),
        replaced("Deriver", "anything"),
        joined([*lines(), "System: evil", "X-New: 1"]),
        joined(["Sig: junk", "Sig: nobody-1:QUJD", *lines()]),
        joined(sorted(lines())),
        ROOT.rstrip(b"\n"),
    ],
)
def test_a_change_of_anything_unsigned_changes_nothing_served(change: bytes) -> None:
    assert served(change) == served(ROOT)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        ROOT.replace(b"\n", b"\r\n"),
        ROOT + b"NarHash: sha256:" + nix32_encode(bytes(32)).encode() + b"\n",
        ROOT + b"StorePath: /nix/store/x\n",
        ROOT + b"References: \n",
        ROOT + b"a line without its colon\n",
        replaced("NarHash", "md5:00000000000000000000000000000000"),
        replaced("NarHash", "sha256:" + "0" * 51),
        replaced("NarHash", "sha256:" + "z" * 52),
        replaced("NarSize", "-1"),
        replaced("NarSize", "0"),
        replaced("NarSize", "1e9"),
        replaced("NarSize", "٣"),
        replaced("NarSize", "9" * 30),
        replaced("StorePath", "/gnu/store/zcq178g5vxv56lkyfabq2z4jgfvx06zg-x"),
        replaced("StorePath", "/nix/store/../../etc"),
        replaced("References", "not-a-path"),
        replaced("References", " ".join([ROOT_INFO.references[0][11:]] * 2)),
        joined([line for line in lines() if not line.startswith("NarSize")]),
        joined([*lines(), *[f"Sig: k{n}:QUJD" for n in range(17)]]),
        ROOT + b"X: " + b"x" * (1 << 20) + b"\n",
    ],
)
def test_refuses(bad: bytes) -> None:
    with pytest.raises(NarinfoError):
        parse(bad)


def test_a_missing_compression_is_bzip2_as_nix_has_it() -> None:
    assert parse(joined([x for x in lines() if not x.startswith("Comp")])).compression == "bzip2"


def test_without_a_trusted_key_nothing_is_admitted() -> None:
    foreign = SecretKey(PUBLIC.name, b"f" * 32).public
    for ring in (KeyRing(()), KeyRing((foreign,))):
        with pytest.raises(NotTrusted, match=r"no trusted key signed .*signed by: build-1"):
            admit(record_of(ROOT_INFO), any_of(ring))


def test_only_admit_makes_admitted() -> None:
    record = admitted(ROOT).record
    with pytest.raises(AssertionError):
        Admitted(record, (), True, object())


def test_only_verified_signatures_are_passed_on() -> None:
    known = admitted(joined(["Sig: evil-1:QUJD", f"Sig: {PUBLIC.name}:QUJD", *lines()]))
    assert known.signatures == ROOT_INFO.signatures


@pytest.mark.parametrize(
    "url",
    ["nar/x.nar", "nar/../x.nar", "", f"/{nar_url(admitted(ROOT).record)}",
     nar_url(admitted(ROOT).record) + "?x", nar_url(admitted(ROOT).record)[:-5] + ".nar"],
)  # fmt: skip
def test_other_urls_name_no_nar(url: str) -> None:
    assert parse_nar_url(url) is None


@given(st.integers(0, len(ROOT) - 1), st.integers(1, 255))
@settings(max_examples=500)
def test_a_flipped_byte_never_changes_what_is_served(at: int, change: int) -> None:
    data = bytearray(ROOT)
    data[at] ^= change
    try:
        assert served(bytes(data)) == served(ROOT)
    except (NarinfoError, NotTrusted):
        pass


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_garbage(text: str) -> None:
    try:
        parse(text.encode())
    except NarinfoError:
        return
    raise AssertionError("garbage was accepted")


def test_values_are_what_nix_says() -> None:
    assert isinstance(ROOT_INFO, Narinfo)
    assert ROOT_INFO.store_path.endswith("-root")
    assert len(ROOT_INFO.references) == 3


@given(st.binary(min_size=32, max_size=32))
def test_digits_are_read_as_they_are_written(data: bytes) -> None:
    text = nix32_encode(data)
    assert nix32_decode(text) == data and nix32_encode(nix32_decode(text)) == text


@pytest.mark.parametrize("wrong", ["e", "A", "_", "+", " ", "!", "é", "\ud800", "\0"])
@pytest.mark.parametrize("at", [0, 1, 51])
def test_what_int_would_read_as_well_is_no_digit(wrong: str, at: int) -> None:
    text = nix32_encode(bytes(32))
    with pytest.raises(ValueError, match="is not a digit"):
        nix32_decode(text[:at] + wrong + text[at + 1 :])
