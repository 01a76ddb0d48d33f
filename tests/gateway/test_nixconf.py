"""nix.conf as Nix reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.nixconf import DEFAULT_KEYS, read
from tests.nix import Nix


def test_keys_includes_extras_and_comments(tmp_path: Path) -> None:
    (tmp_path / "nix.conf").write_text(
        "# trusted-public-keys = no:no\n"
        "trusted-public-keys = a:1 b:2 # c:3\n"
        "extra-trusted-public-keys = d:4\n"
        "include more.conf\n!include missing.conf\n"
        "substituters = https://x\nsandbox = true\nnonsense\n"
    )
    (tmp_path / "more.conf").write_text("extra-trusted-public-keys = e:5\n")
    found = read([tmp_path / "nix.conf", tmp_path / "none.conf"])
    assert found.trusted_public_keys == ("a:1", "b:2", "d:4", "e:5")
    assert found.substituters == ("https://x",)


def test_what_no_file_sets_is_as_nix_has_it(tmp_path: Path) -> None:
    assert read([]).trusted_public_keys == DEFAULT_KEYS
    (tmp_path / "nix.conf").write_text("extra-trusted-public-keys = a:1\n")
    assert read([tmp_path / "nix.conf"]).trusted_public_keys == (*DEFAULT_KEYS, "a:1")


def test_a_later_file_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("trusted-public-keys = a:1\n")
    second.write_text("trusted-public-keys = b:2\n")
    assert read([first, second]).trusted_public_keys == ("b:2",)


@pytest.mark.parametrize(
    ("text", "said"),
    [("include missing\n", "which is not there"), ("include nix.conf\n", "nested deeper")],
)
def test_bad_includes(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "nix.conf").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read([tmp_path / "nix.conf"])


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "nix.conf").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        read([tmp_path / "nix.conf"])


@pytest.mark.nix
@pytest.mark.parametrize("first", ["", "trusted-public-keys = a:1 b:2\n"])
def test_nix_reads_the_same(
    tmp_path: Path, nix: Nix, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    (tmp_path / "nix.conf").write_text(
        f"{first}extra-trusted-public-keys = c:3 # d:4\ninclude more\n"
    )
    (tmp_path / "more").write_text("extra-trusted-public-keys = e:5\n")
    monkeypatch.setenv("NIX_CONF_DIR", str(tmp_path))
    shown = nix.run("nix", "show-config").stdout
    line = next(line for line in shown.splitlines() if line.startswith("trusted-public-keys"))
    keys = read([tmp_path / "nix.conf"]).trusted_public_keys
    assert sorted(line.split()[2:]) == sorted(keys)
