"""The demonstration, as the README promises it: with Nix, and without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nix import Nix

SECONDS_MAX = 240


def demo(*words: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "demo", "--json", *words],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        timeout=SECONDS_MAX,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n") == 1
    result: dict[str, object] = json.loads(done.stdout)
    return result


def check(result: dict[str, object]) -> None:
    for name in ("ok", "survived_peer_loss", "refused_unsigned", "refused_untrusted"):
        assert result[name] is True
    for name in ("blocks_from_lan", "blocks_from_seed", "wire_bytes", "seconds"):
        assert result[name] > 0  # type: ignore[operator]
    assert result["paths"] >= 20 and result["nar_bytes"] >= 50_000_000  # type: ignore[operator]


def test_without_nix() -> None:
    result = demo("--no-nix")
    check(result)
    assert result["nix_version"] is None


@pytest.mark.nix
def test_with_nix(nix: Nix) -> None:
    result = demo()
    check(result)
    assert result["nix_version"] == nix.version()
