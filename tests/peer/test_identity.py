"""Identities on disk, PeerIds and addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.errors import IdentityError
from peer.identity import Address, Identity, load_or_create, parse_address, parse_peer_id

PEER = Identity(bytes(range(32))).peer_id


def test_made_once_and_kept_for_its_owner_alone(tmp_path: Path) -> None:
    first = load_or_create(tmp_path / "identity")
    assert load_or_create(tmp_path / "identity") == first
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]
    assert load_or_create(tmp_path / "other") != first


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_one_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    load_or_create(tmp_path / "identity")
    (tmp_path / "identity").chmod(mode)
    with pytest.raises(IdentityError, match="run: chmod 600"):
        load_or_create(tmp_path / "identity")


def test_never_in_the_nix_store() -> None:
    with pytest.raises(IdentityError, match="everybody can read"):
        load_or_create(Path("/nix/store/identity"))


def test_the_peer_id_is_libp2ps() -> None:
    """Vector: the Ed25519 key with the seed 0..31, made with py-libp2p 0.8.1."""
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    pair = create_new_key_pair(bytes(range(32)))
    assert str(ID.from_pubkey(pair.public_key)) == PEER


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (f"/ip4/10.0.0.1/tcp/4555/p2p/{PEER}", "10.0.0.1", 4555),
        (f"/ip6/fd00::1/tcp/1/p2p/{PEER}", "fd00::1", 1),
        (f"/dns/cache.example/tcp/65535/p2p/{PEER}", "cache.example", 65535),
        (PEER, None, None),
    ],
)
def test_addresses(text: str, host: str | None, port: int | None) -> None:
    assert parse_address(text) == Address(PEER, host, port)
    assert parse_address(text).text == text


@pytest.mark.parametrize(
    "text",
    ["", "x", "12D3KooW", PEER[:-1], PEER + "1", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
     f"/ip4/1.2.3.4/udp/1/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/0/p2p/{PEER}",
     f"/ip4/1.2.3.4/tcp/65536/p2p/{PEER}", f"/ip4/1.2.3.4/tcp/x/p2p/{PEER}",
     f"/ip4//tcp/1/p2p/{PEER}", "/ip4/1.2.3.4/tcp/1", f"/tcp/1/p2p/{PEER}"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(IdentityError):
        parse_address(text)


def test_secrets_are_not_shown() -> None:
    assert bytes(range(32)).hex() not in repr(Identity(bytes(range(32))))
    with pytest.raises(IdentityError):
        parse_peer_id("not a peer")
