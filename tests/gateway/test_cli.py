"""The command line as a person meets it: help, exit codes, messages that say what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chunker.block import Block
from chunker.errors import StoreFull
from chunker.packs import PackStore
from gateway import cli
from gateway.narinfo import parse
from gateway.program import Program
from gateway.signing import generate, write_secret_key
from tests.gateway.test_narinfo import ROOT
from tests.gateway.test_upstream import INFO, Server, server
from tests.golden.samples import sample_bytes

__all__ = ["server"]
COMMANDS = [
    "gateway", "peer", "seed", "demo", "keys", "status", "peers", "verify", "use", "doctor", "pool",
    "sign", "explain",
]  # fmt: skip
SECONDS_MAX = 60


def run(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *words],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "XDG_STATE_HOME": str(home / "state")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"example: narswarm {command}" in capsys.readouterr().out


KEY = "x-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["gateway", "--peer", "nonsense"], 2, "is not a peer"),
        (["gateway", "--peer", "/ip4/1.2.3.4/tcp/1/p2p/x"], 2, "is not a peer"),
        (["gateway", "--trusted-public-key", "nonsense"], 2, "name:base64"),
        (["gateway", "--trusted-public-key", "x:AAAA"], 2, "has 3 bytes, not 32"),
        (["gateway", "--http-port", "70000"], 2, "0 to 65535"),
        (["gateway", "--upstream", "ftp://x"], 2, "https:// or file://"),
        (["gateway", "--listen", "here"], 2, "host:port"),
        (["gateway", "--config", "/nonexistent"], 2, "cannot be read"),
        (["peer", "--http-port", "1"], 2, "unrecognized"),
        (["seed", "/etc/passwd"], 2, "neither a store path"),
        (["seed", "--sign-key", "/nonexistent", "x"], 2, "cannot read the key"),
        (["seed", "file:///nonexistent", "/nix/store/x"], 2, "'/nix/store/x' is not a store path"),
        (["seed", "file:///nonexistent", "--exit"], 1, "is not a directory"),
        (["seed", "https://127.0.0.1:1"], 1, "cannot be listed; name the store paths"),
        (["status"], 2, "there is no store"),
        (["explain", "0" * 32], 2, "there is no store"),
        (["explain", "nonsense"], 2, "neither a store path nor a link to one"),
        (["sign", "--key-file", "none", "--to", "d", "nonsense"], 2, "cannot read the key"),
        (["verify"], 3, "there is no store"),
        (["keys", "generate", "a:b", "/tmp/never"], 2, "cannot name a key"),
        (["nonsense"], 2, "invalid choice"),
        ([], 2, "required"),
    ],
)
def test_bad_use_is_one_clear_line(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    done = run(*words, home=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1 or "usage:" in done.stderr


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "ci.key"
    made = run("keys", "generate", "ci-1", str(file), home=tmp_path)
    shown = run("keys", "public", str(file), home=tmp_path)
    assert made.returncode == shown.returncode == 0
    assert made.stdout == shown.stdout and made.stdout.startswith("ci-1:")
    again = run("keys", "generate", "ci-1", str(file), home=tmp_path)
    assert again.returncode == 2 and "File exists" in again.stderr
    first = run("keys", "peer-id", home=tmp_path).stdout
    assert first.startswith("12D3KooW") and run("keys", "peer-id", home=tmp_path).stdout == first
    assert run("keys", "peer-id", "--role", "peer", home=tmp_path).stdout != first


@pytest.mark.parametrize("damage", ["short", "mode", "garbage"])
def test_a_damaged_identity_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    run("keys", "peer-id", home=tmp_path)
    file = next(tmp_path.rglob("identity"))
    if damage == "mode":
        file.chmod(0o644)
    else:
        data = file.read_bytes()
        file.write_bytes(data[:-9] if damage == "short" else data[:-9] + b"not hex!\n")
    before = file.read_bytes()
    done = run("keys", "peer-id", home=tmp_path)
    assert done.returncode == 2 and str(file) in done.stderr
    assert "chmod 600" in done.stderr or "move it away" in done.stderr
    assert file.read_bytes() == before


def test_commands_without_network_do_not_import_libp2p(tmp_path: Path) -> None:
    write_secret_key(tmp_path / "k", generate("k"))
    PackStore.open(tmp_path / "store").close()
    for words in (
        ["keys", "public", str(tmp_path / "k")],
        ["keys", "peer-id"],
        ["verify", "--store", str(tmp_path / "store")],
        ["status", "--store", str(tmp_path / "store")],
    ):
        program = (
            "import sys; from gateway.cli import main; code = main(sys.argv[1:]);"
            "sys.exit(9 if 'libp2p' in sys.modules else code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=Path(__file__).parents[2],
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            check=False,
        )
        assert done.returncode in ((2,) if words[0] == "status" else (0,)), words


def test_verify_names_rotten_blocks_and_changes_nothing(tmp_path: Path) -> None:
    store = PackStore.open(tmp_path / "store")
    blocks = [Block.of(sample_bytes(9000, str(number))) for number in range(3)]
    store.put(blocks)
    store.close()
    good = run("verify", "--store", str(tmp_path / "store"), home=tmp_path)
    assert (good.returncode, good.stdout) == (0, "3 blocks, 0 rotten\n")
    pack = tmp_path / "store" / "packs" / "0001.pack"
    data = bytearray(pack.read_bytes())
    data[12_000] ^= 1
    pack.write_bytes(data)
    bad = run("verify", "--store", str(tmp_path / "store"), home=tmp_path)
    assert bad.returncode == 1 and "rotten block" in bad.stdout and "1 rotten" in bad.stdout
    assert pack.read_bytes() == data


def test_a_running_process_says_what_it_does_and_stops_cleanly(tmp_path: Path) -> None:
    key = generate("x-1").public.text
    program = Program.start(
        ["gateway", "--no-nix-conf", "--trusted-public-key", key, "--accept-uploads"],
        tmp_path / "store",
    )
    try:
        done = run("status", "--store", str(tmp_path / "store"), "--json", home=tmp_path)
        status = json.loads(done.stdout)
        assert status["role"] == "gateway" and status["http"] == program.url
        assert status["swarm_bytes"] == status["duplicate_bytes"] == 0
        assert status["sources"] == {"store": 0, "peers": 0, "upstreams": 0}
        assert status["closures"] == {"walks": 0, "incomplete": 0}
        assert status["uploads"]["paths"] == status["uploads"]["spooled_bytes"] == 0
        peers = run("peers", "--store", str(tmp_path / "store"), "--json", home=tmp_path)
        assert json.loads(peers.stdout) == {"peers": []}
        peers = run("peers", "--store", str(tmp_path / "store"), home=tmp_path)
        assert "no peers yet" in peers.stdout
        text = run("status", "--store", str(tmp_path / "store"), home=tmp_path)
        assert program.url in text.stdout and "no peers yet" in text.stdout
        assert f"listens on {program.address}\n" in text.stdout
        assert "0 paths were put here" in text.stdout
        second = run("gateway", "--store", str(tmp_path / "store"), home=tmp_path)
        assert second.returncode == 3
        assert f"in use by process {program.process.pid}" in second.stderr
        port = program.url.rsplit(":", 1)[1]
        other = run(
            "gateway", "--store", str(tmp_path / "other"), "--http-port", port,
            "--no-nix-conf", home=tmp_path,
        )  # fmt: skip
        assert other.returncode == 2 and "choose another port" in other.stderr
        taken = program.address.split("/")[4]
        third = run(
            "peer",
            "--store",
            str(tmp_path / "third"),
            "--listen",
            f"127.0.0.1:{taken}",
            home=tmp_path,
        )
        assert third.returncode == 2 and "choose another address with --listen" in third.stderr
        assert len(third.stderr.splitlines()) == 1
    finally:
        assert program.stop() == 0
    assert "Traceback" not in program.log.read_text()
    assert not (tmp_path / "store" / "control.sock").exists()


def test_a_seed_can_be_stopped_while_it_fills(tmp_path: Path, server: Server) -> None:
    server.pages[f"/{INFO.store_path[11:43]}.narinfo"] = (200, {}, ROOT)
    url = f"/{parse(ROOT).url}"
    server.pages[url] = (200, {"Content-Length": "440", "X-Test": "stall"}, b"x")
    seed = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "seed", server.url, INFO.store_path, "--exit",
         "--store", str(tmp_path / "store"), "--listen", "127.0.0.1:0"],
        stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert server.asked.acquire(timeout=SECONDS_MAX) and server.asked.acquire(timeout=SECONDS_MAX)
    seed.terminate()
    _, said = seed.communicate(timeout=SECONDS_MAX)
    assert seed.returncode == 1
    assert said == "narswarm: stopped before everything was offered; start it again to go on\n"


@pytest.mark.parametrize("grouped", [True, False])
def test_an_error_of_the_bytes_below_is_one_clear_line(
    grouped: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    async def fail(*_: object) -> None:
        error = StoreFull("no room left for the store")
        raise ExceptionGroup("tasks", [ExceptionGroup("more", [error])]) if grouped else error

    monkeypatch.setattr("gateway.run._run", fail)
    assert cli.main(["peer", "--store", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "narswarm: no room left for the store\n"


def test_no_secret_is_ever_logged(tmp_path: Path) -> None:
    key = generate("secret-1")
    write_secret_key(tmp_path / "k", key)
    program = Program.start(["-v", "seed", "--sign-key", str(tmp_path / "k")], tmp_path / "store")
    program.stop()
    said = program.log.read_text() + "\n".join(program.ready)
    secret = (tmp_path / "k").read_text().partition(":")[2]
    assert secret not in said and key.seed.hex() not in said
    assert (tmp_path / "store" / "identity").read_text().split("\n")[1] not in said
