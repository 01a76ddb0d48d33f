"""Keys: Nix's own format, modes, and clear errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import BadKey
from gateway.signing import (
    KeyRing,
    PublicKey,
    SecretKey,
    generate,
    read_secret_key,
    write_secret_key,
)
from tests.nix import Nix


def test_a_key_file_is_ours_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    file, key = tmp_path / "ci.key", generate("ci-1")
    write_secret_key(file, key)
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_secret_key(file) == key
    with pytest.raises(BadKey, match="File exists"):
        write_secret_key(file, generate("ci-1"))
    assert read_secret_key(file) == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o666])
def test_a_key_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "ci.key"
    write_secret_key(file, generate("ci-1"))
    file.chmod(mode)
    with pytest.raises(BadKey, match="run: chmod 600"):
        read_secret_key(file)


def test_keys_are_not_kept_in_the_nix_store() -> None:
    with pytest.raises(BadKey, match="everybody can read"):
        write_secret_key(Path("/nix/store/key"), generate("ci-1"))


@pytest.mark.parametrize(
    "text",
    ["", "name", "name:", ":AAAA", "name:!!!", "name:AAAA", "n" * 200 + ":AAAA", "name:AAAA\nx"],
)
def test_bad_keys(text: str, tmp_path: Path) -> None:
    with pytest.raises(BadKey):
        PublicKey.parse(text)
    with pytest.raises(BadKey) as caught:
        SecretKey.parse(text)
    assert "AAAA" not in str(caught.value)


def test_a_public_key_is_not_a_secret_one(tmp_path: Path) -> None:
    with pytest.raises(BadKey, match="public half"):
        SecretKey.parse(generate("x").public.text)
    with pytest.raises(BadKey, match="cannot read"):
        read_secret_key(tmp_path / "missing")


@pytest.mark.parametrize("name", ["", "a:b", "a b", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(BadKey):
        generate(name)


def test_two_keys_of_one_name_are_refused() -> None:
    first, second = generate("same").public, generate("same").public
    KeyRing((first, first))
    with pytest.raises(BadKey, match="two different keys are named 'same'"):
        KeyRing((first, second))


def test_secrets_are_not_shown() -> None:
    key = generate("x")
    assert key.seed.hex() not in repr(key) and repr(key.seed) not in repr(key)


def test_a_signature_is_bound_to_its_text_and_key() -> None:
    key = generate("x")
    ring, signature = KeyRing((key.public,)), key.sign(b"text")
    assert ring.verified(b"text", [signature, "x:AAAA", "y:QUJD", "no colon"]) == (signature,)
    assert ring.verified(b"other", [signature]) == ()
    assert KeyRing((generate("x").public,)).verified(b"text", [signature]) == ()


@pytest.mark.nix
def test_nix_reads_our_keys_and_we_read_its(tmp_path: Path, nix: Nix) -> None:
    file = tmp_path / "ours.key"
    key = generate("ours-1")
    write_secret_key(file, key)
    public = nix.run("nix", "key", "convert-secret-to-public", text=file.read_text()).stdout
    assert public.strip() == key.public.text
    theirs, text = nix.generate_key("theirs-1")
    assert read_secret_key(theirs).public.text == text
