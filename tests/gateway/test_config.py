"""Configuration: layers, defaults per role, and refusals that say what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gateway.config import Config, Role, UpstreamSettings, load_config
from gateway.errors import ConfigError
from gateway.policy import Rule


def load(tmp_path: Path, role: Role = "gateway", text: str = "", **overrides: object) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load_config(role, overrides, path, environ={"HOME": "/home/u"}, root=False)


def refusal(tmp_path: Path, text: str, **overrides: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "gateway", text, **overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults_trust_and_publish_nothing(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.trusted_public_keys == config.publish_keys == ()
    assert (config.http_host, config.http_port, config.priority) == ("127.0.0.1", 8555, 20)
    assert config.lan == "off"
    assert config.store == Path("/home/u/.local/state/narswarm/gateway")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.http_port = 1  # type: ignore[misc]


def test_uploads_have_a_spool_that_holds_something(tmp_path: Path) -> None:
    assert load(tmp_path).upload_spool_bytes == 16 * 1024**3 and not load(tmp_path).accept_uploads
    assert load(tmp_path, text="upload_spool_bytes = 5").upload_spool_bytes == 5
    assert "a whole number from 1" in refusal(tmp_path, "upload_spool_bytes = 0")


def test_listening_follows_the_role_and_who_is_known(tmp_path: Path) -> None:
    assert load(tmp_path, "peer").listen == load(tmp_path, "seed").listen == ("0.0.0.0:4555",)
    assert load(tmp_path).listen == ("127.0.0.1:0",)
    assert load(tmp_path, peers=["12D3KooWabc"]).listen == ("0.0.0.0:4555",)
    assert load(tmp_path, lan="open").listen == ("0.0.0.0:4555",)
    assert load(tmp_path, peers=["x"], listen=["[::]:7"]).listen == ("[::]:7",)


def test_the_store_of_root_and_of_xdg() -> None:
    def store(root: bool, **environ: str) -> Path:
        missing = Path("/nonexistent/config.toml")
        return load_config("seed", environ=environ, system_file=missing, root=root).store

    assert store(True) == Path("/var/lib/narswarm/seed")
    assert store(False, XDG_STATE_HOME="/s") == Path("/s/narswarm/seed")
    assert store(False, XDG_STATE_HOME="relative", HOME="/h") == Path(
        "/h/.local/state/narswarm/seed"
    )


def test_layers_win_key_by_key(tmp_path: Path) -> None:
    system = tmp_path / "system.toml"
    system.write_text("http_port = 1\npriority = 1\nlan = 'open'\n")
    user = tmp_path / "xdg" / "narswarm" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text("http_port = 2\npriority = 2\n")
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    config = load_config(
        "gateway", {"http_port": 3, "peers": None}, environ=environ, system_file=system, root=False
    )
    assert (config.http_port, config.priority, config.lan) == (3, 2, "open")


def test_a_named_file_stands_alone(tmp_path: Path) -> None:
    system = tmp_path / "system.toml"
    system.write_text("priority = 1\n")
    named = tmp_path / "named.toml"
    named.write_text("upstreams = ['https://c.example/', 'https://c.example']\n")
    config = load_config("peer", {}, named, environ={}, system_file=system, root=True)
    assert config.priority == 20
    assert config.upstreams == (UpstreamSettings("https://c.example"),)


def test_upstreams_with_a_priority_and_keys_of_their_own(tmp_path: Path) -> None:
    tables = "[[upstreams]]\nurl = 'https://a/'\n[[upstreams]]\nurl = 'https://b'\npriority = 9\n"
    config = load(tmp_path, text=tables + "keys = ['b-1:AAAA']\n")
    assert config.upstreams == (
        UpstreamSettings("https://a"), UpstreamSettings("https://b", 9, ("b-1:AAAA",))
    )  # fmt: skip
    mixed = "upstreams = ['https://a', {url = 'https://b', priority = 1}]"
    assert load(tmp_path, text=mixed).upstreams[1] == UpstreamSettings("https://b", 1)
    assert "unknown key 'uri'" in refusal(tmp_path, "upstreams = [{uri = 'https://a'}]")
    assert "without 'url'" in refusal(tmp_path, "upstreams = [{priority = 1}]")


def test_an_unknown_key_gets_a_suggestion(tmp_path: Path) -> None:
    message = refusal(tmp_path, "peer = []\n")
    assert "did you mean 'peers'?" in message and "config.toml" in message
    assert "did you mean 'trusted_public_keys'?" in refusal(tmp_path, "trusted-public-keys=[]\n")
    assert "known keys" in refusal(tmp_path, "zzz = 1\n")
    assert "did you mean 'http_port'?" in refusal(tmp_path, "", http_prot=1)
    assert "the command" in refusal(tmp_path, "role = 'peer'\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("http_port = '80'", "a whole number from 0 to 65535"),
        ("http_port = true", "a whole number"),
        ("http_port = 70000", "a whole number"),
        ("peers = 'x'", "a list of texts"),
        ("peers = [1]", "a non-empty text"),
        ("lan = 'on'", "'off' or 'open'"),
        ("lan = []", "'off' or 'open'"),
        ("use_nix_conf = 1", "true or false"),
        ("store = 'relative'", "an absolute path"),
        ("listen = ['4555']", "host:port"),
        ("upstreams = ['c.example']", "URLs"),
        ("publish_keys = ['nokey']", "name:base64"),
        ("block_codec = 'xz'", "'zstd' or 'raw'"),
    ],
)
def test_a_wrong_value_names_type_key_and_file(tmp_path: Path, line: str, expected: str) -> None:
    message = refusal(tmp_path, line)
    assert expected in message
    assert "config.toml" in message and line.split(" ")[0] in message


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    assert "not TOML" in refusal(tmp_path, "= 1")
    (tmp_path / "latin").write_bytes(b"lan = '\xff'")
    for name, message in (("latin", "not TOML"), ("absent", "cannot be read")):
        with pytest.raises(ConfigError, match=message):
            load_config("peer", {}, tmp_path / name, environ={}, root=False)


RULES = """
denied_keys = ["old-1", "bad-1:AAAA"]
denied_paths = ["xz-5.6.[01]*"]
conflicts = "refuse"

[[trust]]
name = "builders"
keys = ["a-1", "b-1"]
need = 2

[[trust]]
name = "project"
keys = ["p-1"]
paths = ["project-*"]
except_paths = ["project-nix"]
"""


def test_a_trust_policy(tmp_path: Path) -> None:
    config = load(tmp_path, text=RULES)
    assert config.trust == (
        Rule("builders", ("a-1", "b-1"), need=2),
        Rule("project", ("p-1",), paths=("project-*",), except_paths=("project-nix",)),
    )
    assert config.denied_keys == ("old-1", "bad-1:AAAA")
    assert (config.denied_paths, config.conflicts) == (("xz-5.6.[01]*",), "refuse")
    assert (load(tmp_path).trust, load(tmp_path).conflicts) == ((), "report")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trust = 1", "tables, each begun with a line [[trust]]"),
        ("[trust]\nname = 'x'", "tables, each begun with a line [[trust]]"),
        ("[[trust]]\nname = 'x'", "a rule needs keys, for example"),
        ("[[trust]]\nkeys = ['a']", "a rule needs name, for example"),
        ("[[trust]]\nname = 'x'\nkeys = []", "a rule needs keys"),
        ("[[trust]]\nname = 'x'\nkey = ['a']", "trust[0]: unknown key 'key'; did you mean 'keys'?"),
        ("[[trust]]\nname = 'x'\nkeys = ['a']\nlan = 'off'", "'lan' belongs above the first line"),
        ("[[trust]]\nname = 'x'\nkeys = ['a']\nneed = 0", "admit what nobody signed"),
        ("[[trust]]\nname = 'x'\nkeys = ['a']\nneed = '2'", "trust[0].need: expected a whole"),
        ("[[trust]]\nname = 'x'\nkeys = ['a']\npaths = []", "paths = [] fits nothing"),
        ("[[trust]]\nname = 'x'\nkeys = ['a']\n" * 2, "two rules have one name"),
        ("denied_paths = ['/nix/store/xz']", "denied_paths: '/nix/store/xz' is no store path"),
        ("denied_keys = ['a b']", "names of keys, or public keys"),
        ("conflicts = 'ignore'", "'report' or 'refuse'"),
    ],
)
def test_a_wrong_trust_policy_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)
