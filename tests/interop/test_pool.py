"""An office made by `narswarm pool`: real processes, no PeerId or address in any configuration."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from gateway.program import Program
from tests.interop.conftest import Office

SECONDS_MAX = 60.0
POLL_SECONDS = 0.1


def pool(office: Office, name: str, *words: str, code: int = 0) -> str:
    """`narswarm pool WORDS` with the store of `name`; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "pool", *words, "--store", str(office.top / name)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=SECONDS_MAX,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def states(office: Office, name: str) -> dict[str, str]:
    """State by PeerId, as `pool members` says."""
    (listed,) = json.loads(pool(office, name, "members", "--json"))["pools"]
    return {member["peer_id"]: member["state"] for member in listed["members"]}


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)


def online(program: Program) -> list[str]:
    pools = program.status()["pools"]
    assert isinstance(pools, list)
    return [peer for pool in pools for peer in pool["online"]]


def is_served(gateway: Program, store_path: str) -> bool:
    try:
        url = f"{gateway.url}/{store_path[11:43]}.narinfo"
        return bool(urllib.request.urlopen(url, timeout=SECONDS_MAX).status == 200)
    except urllib.error.HTTPError:
        return False


def test_an_office_is_made_used_and_left(office: Office) -> None:
    pool(office, "first", "create", "office", "--public-key", office.closure.public)
    first = office.seed("first")
    code = pool(office, "first", "invite").split()[-1]

    # The second machine comes in before its gateway runs, the third while its does.
    assert "now in pool office" in pool(office, "second", "join", code)
    second = office.start("second", "gateway")
    second_id, first_id = office.peer_id("second"), office.peer_id("first")
    eventually(lambda: first_id in online(second))
    third = office.start("third", "gateway")
    pool(office, "third", "join", pool(office, "first", "invite").split()[-1])
    eventually(lambda: {first_id, second_id} <= set(online(third)))
    eventually(lambda: office.peer_id("third") in online(second))

    # A code is good once, and a changed one for nothing.
    assert "not accepted" in pool(office, "stranger", "join", code, code=1)
    assert "cut or changed" in pool(office, "stranger", "join", code[:-1], code=2)

    # A stranger that knows the address and is told nothing else gets nothing.
    stranger = office.start("stranger", "gateway", "--peer", first.address)
    assert not office.copy("stranger", stranger.url, check=False)
    assert stranger.status()["wire_bytes"] == 0
    assert online(stranger) == [] and office.peer_id("stranger") not in online(first)

    assert office.copy("second", second.url)
    office.verify("second")

    pool(office, "first", "revoke", second_id)
    eventually(lambda: second_id not in online(first) and second_id not in online(third))
    eventually(lambda: states(office, "third")[second_id] == "revoked")
    eventually(lambda: online(second) == [])
    received = second.status()["wire_bytes"]
    assert office.copy("third", third.url)
    assert second.status()["wire_bytes"] == received


def test_what_is_revoked_stays_out_over_restarts(office: Office) -> None:
    pool(office, "first", "create", "office", "--public-key", office.closure.public)
    first = office.seed("first")
    pool(office, "second", "join", pool(office, "first", "invite").split()[-1])
    left_over = pool(office, "first", "invite").split()[-1]
    assert "1 join codes" in pool(office, "first", "revoke", office.peer_id("second"))
    assert first.stop() == 0
    port = first.address.split("/")[4]
    first = office.start(
        "first", "seed", office.closure.root, "--closure", "--sign-key", str(office.closure.secret),
        "--listen", f"127.0.0.1:{port}",
    )  # fmt: skip
    second = office.start("second", "gateway")
    assert "not accepted" in pool(office, "second", "join", left_over, code=1)
    assert not office.copy("second", second.url, check=False)
    assert online(first) == online(second) == []

    # Invited anew, it is in again.
    pool(office, "second", "join", pool(office, "first", "invite").split()[-1])
    eventually(lambda: office.peer_id("first") in online(second))
    assert office.copy("again", second.url)  # Nix remembers an hour that it was not there


def test_leaving_ends_it_here_at_once(office: Office) -> None:
    pool(office, "first", "create", "office", "--public-key", office.closure.public)
    first = office.seed("first")
    pool(office, "second", "join", pool(office, "first", "invite").split()[-1])
    second = office.start("second", "gateway")
    eventually(lambda: office.peer_id("first") in online(second))
    pool(office, "second", "leave", "office")
    eventually(lambda: online(first) == [] and second.status()["pools"] == [])
    assert "in no pool" in pool(office, "second", "members")


def test_a_configured_peer_that_is_connected_joins(office: Office) -> None:
    """The command comes with the identity of a process that has a connection to the inviter."""
    pool(office, "first", "create", "office", "--public-key", office.closure.public)
    first = office.seed("first", "second")
    second = office.gateway(first, name="second")
    pool(office, "second", "join", pool(office, "first", "invite").split()[-1])
    eventually(lambda: office.peer_id("first") in online(second))
    assert office.copy("second", second.url)


def test_a_seed_that_joined_before_it_ran_is_found(office: Office) -> None:
    """Nobody was told where it listens: it introduces itself."""
    pool(office, "first", "create", "office", "--public-key", office.closure.public)
    first = office.start("first", "gateway")
    pool(office, "ci", "join", pool(office, "first", "invite").split()[-1], "--role", "seed")
    office.seed("ci")
    eventually(lambda: office.peer_id("ci") in online(first))
    first.await_peers(1)
    # They met while the seed still took paths in: it tells of the last ones a moment later.
    eventually(lambda: is_served(first, office.closure.root))
    assert office.copy("first", first.url)
