"""A real Nix behind a gateway that wants two builders to agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.conftest import Office

pytestmark = pytest.mark.nix

RULE = """
[[trust]]
name = "both builders"
keys = ["build-1", "second-1"]
need = 2
"""
ROOT = Path(__file__).parents[2]


def narswarm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_two_builders_and_one_nar(office: Office) -> None:
    """One cache has the NARs and the first signature, `narswarm sign` publishes the second."""
    key, public = office.nix.generate_key("second-1")
    signatures = office.top / "signatures"
    root = office.closure.root
    done = narswarm("sign", "--key-file", str(key), "--to", str(signatures), "-r", root)
    assert done.returncode == 0, done.stderr
    assert f"{len(office.closure.infos)} signed by second-1" in done.stdout
    config = office.top / "config.toml"
    config.write_text(RULE)
    with_nars = ("--upstream", f"file://{office.closure.cache}")
    words = ("--config", str(config), "--trusted-public-key", public, *with_nars)
    both = office.gateway(more=(*words, "--upstream", f"file://{signatures}"))
    office.substitute("client", both.url)
    told = office.nix.run(
        "nix", "path-info", "--json", "--store", str(office.top / "root-client"), root
    )
    found = json.loads(told.stdout)
    (info,) = found if isinstance(found, list) else found.values()
    assert {one.partition(":")[0] for one in info["signatures"]} == {"build-1", "second-1"}
    store = ("explain", "--store", str(office.top / "gateway"))
    explained = narswarm(*store, root)
    assert explained.returncode == 0 and "admitted by both builders" in explained.stdout

    one = office.gateway(name="one", more=words)
    assert "404" in narinfo(one.url, root)
    explained = narswarm("explain", "--store", str(office.top / "one"), "--json", root)
    assert explained.returncode == 1
    assert "missing: second-1" in str(json.loads(explained.stdout)["contents"][0]["reasons"])
    one.stop()
    explained = narswarm("explain", "--store", str(office.top / "one"), root)
    assert explained.returncode == 2 and "no narswarm is running" in explained.stderr


def test_a_second_signature_on_what_a_running_seed_holds(office: Office) -> None:
    """Its store is locked, and a web server is not needed."""
    key, public = office.nix.generate_key("second-1")
    root = office.closure.root
    config = office.top / "config.toml"
    config.write_text(RULE)
    seed = office.seed("seed", "gateway")
    gateway = office.gateway(seed, more=("--config", str(config), "--trusted-public-key", public))
    # Not of the root: what it needs would be looked up ahead, and remembered for half a minute.
    leaf = next(path for path, info in office.closure.infos.items() if not info["references"])
    assert "404" in narinfo(gateway.url, leaf)
    signing = ("sign", "--key-file", str(key), "--role", "seed", "--store", str(seed.store))
    done = narswarm(*signing, "-r", root)
    assert done.returncode == 0, done.stderr
    signed = f"{len(office.closure.infos)} signed by second-1 at the seed, 0 not held there"
    assert signed in done.stdout
    office.substitute("client", gateway.url)
    assert {"build-1", "second-1"} == {
        line.split()[1].partition(":")[0]
        for line in narinfo(gateway.url, root).splitlines()
        if line.startswith("Sig: ")
    }
    seed.stop()
    done = narswarm(*signing, root)
    assert done.returncode == 2 and "no narswarm is running" in done.stderr


def narinfo(url: str, path: str) -> str:
    return subprocess.run(
        ["curl", "-s", f"{url}/{path[11:43]}.narinfo"], capture_output=True, text=True, check=True
    ).stdout
