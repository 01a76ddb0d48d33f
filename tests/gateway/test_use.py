"""`narswarm use`, `keys add`, `doctor`: what they write and refuse, and what Nix does then."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import use
from gateway.errors import BadKey, ConfigError, UsageError
from gateway.key_sources import agreed, check_places, keys_in
from gateway.nixconf import NixSettings, files, read
from gateway.program import Program
from gateway.setup import with_keys
from gateway.signing import generate
from tests.gateway.test_upstream import Server, server
from tests.nix import Nix

__all__ = ["server"]
URL = "http://127.0.0.1:8555"
KEY = generate("office-1").public.text
OTHER = generate("other-1").public.text
ROOT = Path(__file__).parents[2]
SECONDS_MAX = 60
NOBODY = 65534


AS_NOBODY = (
    "-c",
    f"""
import os, sys
import gateway.cli, gateway.setup  # while root can read this Python, which may be its alone
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
sys.exit(gateway.cli.main())
""",
)


def run(
    *words: str, home: Path, start: tuple[str, ...] = ("-m", "gateway.cli"), **more: object
) -> subprocess.CompletedProcess[str]:
    environ = {
        "HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(home / "state"), "NIX_CONF_DIR": str(home / "system"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *start, *words], env=environ, cwd=home,
        capture_output=True, text=True, timeout=SECONDS_MAX, check=False, **more,
    )  # type: ignore[call-overload,no-any-return]  # fmt: skip


# -- what is written -----------------------------------------------------------------------------

TEXTS = ["", "a = b\n", "a = b", "a = b\n\n\n# end\n", "\n"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_block_goes_in_again_and_out(text: str) -> None:
    once = use.with_block(text, ["extra-substituters = x"])
    assert use.BEGIN in once and once.startswith(text.rstrip("\n"))
    assert use.with_block(once, ["extra-substituters = x"]) == once
    changed = use.with_block(once, ["extra-substituters = y"])
    assert "= x" not in changed and changed.count(use.BEGIN) == 1
    assert use.without_block(changed).split() == text.split()
    assert use.without_block(text) == text


def test_what_is_behind_the_block_stays_behind_it() -> None:
    text = use.with_block("first = 1\n", ["x = y"]) + "last = 2\n"
    assert use.with_block(text, ["x = z"]).endswith(f"x = z\n{use.END}\nlast = 2\n")
    assert use.without_block(text) == "first = 1\nlast = 2\n"


def test_a_block_without_an_end_is_not_guessed_at() -> None:
    with pytest.raises(UsageError, match="has no end"):
        use.with_block(f"{use.BEGIN}\nsubstituters = a\n", [])


def test_only_what_is_missing_is_written() -> None:
    assert use.settings_for(URL, [KEY], NixSettings((KEY,), (URL,))) == []
    assert use.settings_for(URL, [KEY, OTHER], NixSettings((KEY,), ())) == [
        f"extra-substituters = {URL}", f"extra-trusted-public-keys = {OTHER}"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        (NixSettings(), False),
        (NixSettings(trusted_users=("root", "me")), True),
        (NixSettings(trusted_users=("@wheel",)), True),
        (NixSettings(trusted_users=("@others",)), False),
        (NixSettings(trusted_users=("*",)), True),
        (NixSettings((KEY,), trusted_substituters=(URL,)), True),
        (NixSettings((OTHER,), trusted_substituters=(URL,)), False),
        (NixSettings((KEY,), trusted_substituters=("http://other",)), False),
    ],
)
def test_who_may_choose_a_substituter(settings: NixSettings, may: bool) -> None:
    assert use.may_choose(settings, URL, [KEY], "me", ["users", "wheel"]) is may


def test_which_files_nix_reads() -> None:
    home = {"HOME": "/h"}
    assert files(home) == [
        Path("/etc/nix/nix.conf"), Path("/etc/xdg/nix/nix.conf"), Path("/h/.config/nix/nix.conf")
    ]  # fmt: skip
    named = {**home, "NIX_CONF_DIR": "/s", "NIX_USER_CONF_FILES": "/a:/b"}
    assert files(named) == [Path("/s/nix.conf"), Path("/b"), Path("/a")]


# -- the command ---------------------------------------------------------------------------------


def test_shown_asked_written_and_undone(tmp_path: Path) -> None:
    conf = tmp_path / ".config" / "nix" / "nix.conf"
    words = ["use", URL, "--user", "--trusted-public-key", KEY]
    declined = run(*words, home=tmp_path)
    assert declined.returncode == 2 and "--yes" in declined.stderr
    assert f"+extra-substituters = {URL}" in declined.stdout and not conf.exists()
    conf.parent.mkdir(parents=True)
    conf.write_text("max-jobs = 3\n")
    conf.chmod(0o640)
    done = run(*words, "--yes", home=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = read([conf])
    assert settings.substituters == (URL,) and KEY in settings.trusted_public_keys
    assert conf.stat().st_mode & 0o777 == 0o640
    again = run(*words, "--yes", home=tmp_path)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    (tmp_path / "config.toml").write_text("http_port = 0\n")  # where a gateway is does not matter
    undone = run("use", "--undo", "--user", "--yes", "--config", "config.toml", home=tmp_path)
    assert undone.returncode == 0 and conf.read_text() == "max-jobs = 3\n"
    nothing = run("use", "--undo", "--user", "--yes", home=tmp_path)
    assert nothing.returncode == 0 and "nothing to do" in nothing.stdout


def test_the_answer_counts(tmp_path: Path) -> None:
    """On a terminal it asks, and anything but yes means no."""
    for answer, expected in (("n", False), ("", False), ("y", True)):
        home = tmp_path / f"home{answer}"
        home.mkdir()
        keyboard, terminal = os.openpty()
        os.write(keyboard, f"{answer}\n".encode())
        done = run("use", URL, "--user", home=home, stdin=terminal)
        os.close(terminal)
        os.close(keyboard)
        assert (home / ".config/nix/nix.conf").exists() is expected, done.stdout
        assert done.returncode == (0 if expected else 1)


def test_what_nix_made_is_not_touched(tmp_path: Path) -> None:
    conf = tmp_path / "system" / "nix.conf"
    conf.parent.mkdir()
    conf.symlink_to("/nix/store/00000000000000000000000000000000-etc/nix.conf")
    done = run("use", URL, "--system", "--yes", "--trusted-public-key", KEY, home=tmp_path)
    assert done.returncode == 1
    assert f'nix.settings.extra-substituters = [ "{URL}" ];' in done.stdout and KEY in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_an_untrusted_user_is_told_what_to_do(request: pytest.FixtureRequest, nix: Nix) -> None:
    """And a real daemon does ignore them, until the advice is taken."""
    # Not below tmp_path, which is root's own, and made so again by every other run of the tests.
    top = Path(tempfile.mkdtemp(prefix="narswarm-nobody-"))
    request.addfinalizer(lambda: shutil.rmtree(top))
    home, system = top / "home", top / "home" / "system"
    system.mkdir(parents=True)
    for directory in (top, home, system):
        directory.chmod(0o755)
    os.chown(home, NOBODY, NOBODY)
    base = "experimental-features = nix-command\nbuild-users-group =\nsubstituters =\n"
    conf = system / "nix.conf"
    conf.write_text(base)
    settings = read([conf])
    assert not use.may_choose(settings, URL, [KEY], "nobody", ["nogroup"])
    advice = use.untrusted_advice("nobody", URL, [KEY], conf)
    assert "sudo narswarm use" in advice
    refused = run("use", URL, "--yes", home=home, start=AS_NOBODY)
    assert refused.returncode == 2 and "ignoring untrusted substituter" in refused.stderr
    assert not (home / ".config").exists()
    assert _daemon_heeds(nix, conf, home) is False
    lines = [line.strip() for line in advice.splitlines() if "extra-trusted-" in line]
    conf.write_text(base + "\n".join(lines) + "\n")
    assert use.may_choose(read([conf]), URL, [KEY], "nobody", ["nogroup"])
    assert _daemon_heeds(nix, conf, home) is True
    done = run("use", URL, "--yes", home=home, start=AS_NOBODY)
    assert done.returncode == 0 and read([home / ".config/nix/nix.conf"]).substituters == (URL,)


def _daemon_heeds(nix: Nix, conf: Path, home: Path) -> bool:
    """Whether a daemon with this nix.conf takes URL from the user nobody."""
    path = home.parent / "socket"
    environ = {
        "PATH": os.environ["PATH"], "HOME": str(home), "NIX_CONF_DIR": str(conf.parent),
        "NIX_DAEMON_SOCKET_PATH": str(path),
    }  # fmt: skip
    # "local", or where /nix/var is not made yet the daemon takes itself for its store.
    daemon = subprocess.Popen(
        ["nix-daemon"], env={**environ, "HOME": str(nix.top), "NIX_REMOTE": "local"},
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        for _ in range(200):
            if path.exists() or daemon.poll() is not None:
                break
            threading.Event().wait(0.05)
        assert path.exists()
        done = subprocess.run(
            ["nix-store", "--realise", "--dry-run", f"/nix/store/{'0' * 32}-nothing",
             "--option", "extra-substituters", URL],
            env={**environ, "NIX_REMOTE": "daemon"}, user=NOBODY, group=NOBODY, extra_groups=[],
            capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
        )  # fmt: skip
    finally:
        daemon.terminate()
        daemon.communicate()
        path.unlink(missing_ok=True)
    assert "restricted" in done.stderr or "untrusted" in done.stderr or URL in done.stderr, done
    return "ignoring untrusted substituter" not in done.stderr


# -- keys from several places --------------------------------------------------------------------


def test_keys_are_found_in_any_page() -> None:
    page = f"<p>trusted-public-keys = {KEY}</p>\n{OTHER} {KEY}\nx:AAAA office-2:{'A' * 86}=="
    assert keys_in(page.encode()) == {"office-1": KEY, "other-1": OTHER}
    with pytest.raises(BadKey, match="two different keys office-1"):
        keys_in(f"{KEY} {generate('office-1').public.text}".encode())


def test_places_must_be_several_and_safe(tmp_path: Path) -> None:
    check_places(["https://a/key", "https://b/key"])
    check_places(["https://a/key", f"file://{tmp_path}/key"])
    for urls in (["https://a/1", "https://A/2"], ["file:///x", "file:///x"]):
        with pytest.raises(UsageError, match="two places"):
            check_places(urls)
    for url in ("http://b/key", "ftp://b/key", "key.txt"):
        with pytest.raises(UsageError, match="https"):
            check_places(["https://a/key", url])


def test_places_must_agree() -> None:
    one, both, none = KEY.encode(), f"{OTHER}\n{KEY}".encode(), b"nothing"
    forged = generate("office-1").public.text.encode()
    assert agreed({"a": one, "b": b"the key is " + one}) == [KEY]
    assert agreed({"a": both, "b": both}) == sorted([KEY, OTHER])
    assert agreed({"a": both, "b": one}, "office-1") == [KEY]
    for pages in ({"a": one, "b": forged}, {"a": one, "b": both}):
        with pytest.raises(BadKey, match="do not give the same keys"):
            agreed(pages)
    for pages in ({"a": one, "b": none}, {"a": none, "b": none}):
        with pytest.raises(BadKey, match="does not hold a key"):
            agreed(pages)


def test_keys_go_into_our_configuration_and_leave_the_rest_alone() -> None:
    text = '# ours\nlan = "open"  # the office\n'
    once = with_keys(text, [KEY], "config.toml")
    assert once.startswith(text) and KEY in once
    assert with_keys(once, [KEY], "config.toml") == once
    assert OTHER in with_keys(once, [OTHER], "config.toml")
    with pytest.raises(BadKey, match="trusts another key named office-1"):
        with_keys(once, [generate("office-1").public.text], "config.toml")
    with pytest.raises(ConfigError, match="not TOML"):
        with_keys("= nonsense", [KEY], "config.toml")
    with pytest.raises(ConfigError, match="expected a list"):
        with_keys("trusted_public_keys = 1\n", [KEY], "config.toml")


def test_a_key_from_two_places_is_added_and_a_forged_one_is_not(
    tmp_path: Path, server: Server
) -> None:
    config, note = tmp_path / "config.toml", tmp_path / "note.txt"
    config.write_text("")
    server.pages["/public-key"] = (200, {}, f"{KEY}\n".encode())
    words = ["keys", "add", "--from", f"{server.url}/public-key", "--confirm", f"file://{note}",
             "--config", str(config)]  # fmt: skip
    note.write_text(generate("office-1").public.text)
    refused = run(*words, "--yes", home=tmp_path)
    assert refused.returncode == 2 and "do not give the same keys" in refused.stderr
    assert config.read_text() == ""
    note.write_text(f"Our cache's key is {KEY}.\n")
    unasked = run(*words, home=tmp_path)
    assert unasked.returncode == 2 and config.read_text() == ""
    done = run(*words, "--yes", home=tmp_path)
    assert done.returncode == 0 and KEY in config.read_text(), done.stderr
    assert "nothing to do" in run(*words, "--yes", home=tmp_path).stdout
    server.pages.clear()
    gone = run(*words, "--yes", home=tmp_path)
    assert gone.returncode == 1 and "is not there" in gone.stderr


# -- doctor --------------------------------------------------------------------------------------


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Program]:
    program = Program.start(
        ["gateway", "--no-nix-conf", "--trusted-public-key", KEY], tmp_path / "store",
        environment={"HOME": str(tmp_path)},
    )  # fmt: skip
    yield program
    program.stop()


def findings(home: Path, config: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    (home / "config.toml").write_text(config)
    done = run("doctor", "--json", "--config", "config.toml", home=home)
    assert done.stdout, done.stderr
    found: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(done.stdout):
        found.setdefault(finding["what"], []).append(finding)
    return done.returncode, found


def states(found: list[dict[str, str]]) -> list[str]:
    return [finding["state"] for finding in found]


@pytest.mark.nix
def test_the_doctor_sees_whether_nix_asks(tmp_path: Path, gateway: Program, nix: Nix) -> None:
    config = f'store = "{gateway.store}"\ntrusted_public_keys = ["{KEY}"]\nlan = "off"\n'
    code, found = findings(tmp_path, config)
    assert code == 1
    assert found["Nix"][0]["state"] == "bad" and "does not ask" in found["Nix"][0]["said"]
    assert states(found["keys"]) == ["good", "bad"]  # Nix does not trust ours
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "nix.conf").write_text("build-users-group =\nsubstituters =\n")
    done = run("use", "--user", "--yes", "--config", "config.toml", home=tmp_path)
    assert done.returncode == 0 and gateway.url in done.stdout, done.stderr
    code, found = findings(tmp_path, config)
    assert code == 0, found
    assert states(found["Nix"]) == ["good"] and states(found["keys"]) == ["good"]
    assert {state for many in found.values() for state in states(many)} == {"good"}
    assert set(found) == {"store", "gateway", "ports", "keys", "clock", "mDNS", "Nix"}


def test_the_doctor_finds_what_is_wrong(tmp_path: Path, server: Server) -> None:
    """No gateway, a taken port, a clock that is off, an upstream that is not there, two keys of
    one name."""
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    server.pages["/x"] = (200, {}, b"")
    base = (
        f'store = "{tmp_path}/none"\nhttp_port = {port}\nlisten = ["127.0.0.1:0"]\n'
        f'upstreams = ["{server.url}", "http://127.0.0.1:1"]\n'
    )
    code, found = findings(tmp_path, base)
    assert code == 1
    assert (
        found["gateway"][0]["state"] == "bad"
        and "narswarm gateway" in found["gateway"][0]["advice"]
    )
    assert states(found["ports"]) == ["bad"] and "in use" in found["ports"][0]["said"]
    assert states(found["upstream"]) == ["good", "bad"]
    assert states(found["clock"]) == ["good"]
    assert states(found["store"]) == ["good"]
    taken.close()
    keys = f'["{KEY}", "{generate("office-1").public.text}"]'
    code, found = findings(tmp_path, f"{base}trusted_public_keys = {keys}\n")
    assert states(found["keys"]) == ["bad"] and "two different keys" in found["keys"][0]["said"]
    assert states(found["ports"]) == ["good"]


def test_the_doctor_compares_clocks(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.gateway.test_upstream import Handler

    monkeypatch.setattr(
        Handler, "date_time_string", lambda self, *_: "Tue, 03 Nov 2026 10:00:00 GMT"
    )
    _, found = findings(tmp_path, f'store = "{tmp_path}/none"\nupstreams = ["{server.url}"]\n')
    assert states(found["clock"]) == ["bad"] and "beside" in found["clock"][0]["said"]


def test_the_doctor_finds_a_damaged_store(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "index.sqlite").write_bytes(b"garbage" * 100)
    _, found = findings(tmp_path, f'store = "{store}"\n')
    assert states(found["store"]) == ["bad"] and found["store"][0]["advice"]


async def test_what_is_announced_here_is_heard_here() -> None:
    from peer.lan import hears_itself

    assert await hears_itself()
