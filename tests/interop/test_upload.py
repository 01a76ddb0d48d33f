"""`nix copy --to` a gateway seeds the swarm: another machine gets the closure from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from secrets import token_hex

import pytest

from gateway.program import Program
from gateway.uploads import NETRC_NAME
from tests.interop.conftest import Office

pytestmark = pytest.mark.nix


def url(program: Program) -> str:
    return program.ready[0].rpartition(" ")[2]


def test_nix_copy_seeds_the_swarm(office: Office) -> None:
    first = office.gateway(
        name="first", more=("--accept-uploads", *office.knows("second"))
    )  # fmt: skip
    copy = ("nix", "copy", "--to", url(first), office.closure.root)
    done = office.nix.run(*copy, home="uploader", check=False)
    assert done.returncode and "401" in done.stderr
    netrc = office.top / "first" / NETRC_NAME
    office.nix.run(*copy, "--option", "netrc-file", str(netrc), home="uploader")
    spool = office.top / "first" / "uploads"
    assert list(spool.iterdir()) == []
    second = office.gateway(first, name="second")
    office.substitute("client", url(second))
    office.verify("client")
    assert netrc.read_text().split()[-1] not in office.logs()


def test_what_a_content_addressed_derivation_became_is_told_with_the_paths(office: Office) -> None:
    """Nix asks for the realisation before it knows which path it wants."""
    gateway = office.gateway(more=("--accept-uploads",))
    netrc = office.top / "gateway" / NETRC_NAME
    # Copied, for a Nix in a chroot sees the temporary directory and not this repository.
    expression = shutil.copy(Path(__file__).parent / "addressed.nix", office.top)
    what = ("--file", str(expression), "--argstr", "seed", token_hex(8))
    settings = (
        "extra-experimental-features = ca-derivations\n"
        f"trusted-public-keys = {office.closure.public}\n"
    )
    signs = f"{settings}secret-key-files = {office.closure.secret}"
    office.nix.run(
        "nix", "copy", "--to", url(gateway), "--option", "netrc-file", str(netrc), *what, "",
        settings=signs,
    )  # fmt: skip
    uploads = gateway.status()["uploads"]
    assert isinstance(uploads, dict) and uploads["paths"] == 2 and uploads["realisations"]
    # It may build nothing: what it gets, it substituted.
    done = office.nix.run(
        "nix", "build", "--store", str(office.top / "root-client"), "--no-link", "--json", *what,
        home="client", settings=f"{settings}substituters = {url(gateway)}\nmax-jobs = 0",
    )  # fmt: skip
    (built,) = json.loads(done.stdout)
    made = office.nix.run("nix-store", "--query", "--requisites", built["outputs"]["out"]).stdout
    office.nix.run("nix-store", "--delete", *made.split(), check=False)
