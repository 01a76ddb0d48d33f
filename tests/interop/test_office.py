"""A real Nix gets a closure built by nix-build through gateway, LAN peer and seed."""

from __future__ import annotations

from tests.interop.conftest import Office


def blocks_by_role(status: dict[str, object]) -> dict[str, int]:
    found: dict[str, int] = {}
    peers = status["peers"]
    assert isinstance(peers, list)
    for peer in peers:
        found[peer["role"]] = found.get(peer["role"], 0) + peer["blocks_received"]
    return found


def test_substitution_and_copy_through_lan_peer_and_seed(office: Office) -> None:
    seed = office.seed("seed", "lan", "gateway")
    lan = office.start("lan", "peer", "--seed", seed.address, *office.knows("first", "gateway"))
    first = office.gateway(lan, name="first")
    office.substitute("first", first.url)
    office.verify("first")
    from_seed = blocks_by_role(lan.status())["seed"]
    assert from_seed > 100

    # The second machine of the office: the seed is not asked again.
    second = office.gateway(lan, name="gateway")
    assert office.copy("second", second.url)
    office.verify("second")
    assert blocks_by_role(second.status())["peer"] > 100
    assert blocks_by_role(lan.status())["seed"] == from_seed


def test_what_is_held_survives_restarts_of_everything(office: Office) -> None:
    seed = office.seed("seed", "gateway")
    gateway = office.gateway(seed)
    office.substitute("before", gateway.url)
    assert gateway.stop() == 0 and seed.stop() == 0
    alone = office.start("gateway", "gateway")
    office.substitute("after", alone.url)
    office.verify("after")
    assert alone.status()["wire_bytes"] == 0


def test_gateway_restarted_between_narinfo_and_nar(office: Office) -> None:
    """Nix caches a narinfo for 30 days and asks a later gateway for the NAR alone."""
    seed = office.seed("seed", "gateway")
    gateway = office.gateway(seed)
    port = gateway.url.rsplit(":", 1)[1]
    office.nix.run(
        "nix", "path-info", "--store", gateway.url, "--recursive", office.closure.root,
        home=f"{office.top.name}-cached",
    )  # fmt: skip
    assert gateway.stop() == 0
    again = office.gateway(seed, more=("--http-port", port))
    office.substitute("cached", again.url)
    office.verify("cached")
