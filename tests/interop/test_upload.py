"""`nix copy --to` a gateway seeds the swarm: another machine gets the closure from there."""

from __future__ import annotations

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
