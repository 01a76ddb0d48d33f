"""What a person sees, on narrow and wide terminals."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import pytest
from rich.console import Console

from gateway.errors import UsageError
from gateway.watching import Page, duration, peers_page, rate, size, status_page, watch

PEER = "12D3KooWGL4e4mkHHYvWUxUNWvr9hdRGEFJCyNAybVcTxRjNB99J"


def peer(**changes: object) -> dict[str, object]:
    return {
        "peer_id": PEER, "role": "gateway", "pool": "", "connected": True, "only_asks_us": False,
        "host": "10.0.0.2", "link": "lan", "blocks_received": 7, "bytes_received": 81_000_000,
        "bytes_sent": 1_500, "received_per_second": 40_000_000, "sent_per_second": 0,
        "blocks_owed": 64, "banned": False, "dialled_in_seconds": None, **changes,
    }  # fmt: skip


def transfer(**changes: object) -> dict[str, object]:
    return {
        "store_path": f"/nix/store/{'a' * 32}-chromium-120.0.6099.109-unwrapped",
        "nar_bytes": 400_000_000, "done_bytes": 180_000_000, "bytes_per_second": 40_000_000,
        "seconds_left": 5.5, "sources": {PEER: 150, PEER[::-1]: 50}, **changes,
    }  # fmt: skip


ANSWER: dict[str, object] = {
    "role": "gateway", "peer_id": PEER, "addresses": [f"/ip4/10.0.0.1/tcp/4555/p2p/{PEER}"],
    "http": "http://127.0.0.1:8555", "paths": 812, "blocks": 34567, "stored_bytes": 4_500_000_000,
    "swarm_bytes": 987_654_321, "duplicate_bytes": 123_456, "received_per_second": 43_200_000,
    "sent_per_second": 0, "bans": 1, "served": {"nar_bytes": 5_000_000_000},
    "sources": {"store": 3_000_000_000, "peers": 1_800_000_000, "upstreams": 200_000_000},
    "peers": [peer()],
    "conflicts": [],
    "transfers": [transfer(), transfer(sources={"upstreams": 5}, seconds_left=None)],
}  # fmt: skip


def drawn(
    page: Callable[[Mapping[str, object], int], Page], answer: Mapping[str, object], width: int
) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(page(answer, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_status_tells_where_bytes_came_from_and_what_is_under_way(width: int) -> None:
    text = drawn(status_page, ANSWER, width)
    assert "gave Nix 5.0 GB: 3.0 GB were here, 1.8 GB from peers, 200.0 MB from upstreams" in text
    assert "987.7 MB, 123.5 kB of it of no use" in text
    assert "64 blocks in flight, 1 banned, 43.2 MB/s in" in text
    line = next(line for line in text.splitlines() if "chromium" in line)
    assert "180.0 MB of 400.0 MB  40.0 MB/s" in line and line.rstrip().endswith("6 s")
    assert ("75 %" in line) == (width == 160) and ("2 peers" in line) == (width == 80)
    assert next(line for line in text.splitlines() if "waits" in line).count("upstream") == 1


def test_status_tells_what_was_withheld_and_what_was_put() -> None:
    assert "withheld" not in drawn(status_page, ANSWER, 160)
    assert "put here" not in drawn(status_page, ANSWER, 160)
    more = {
        "closures": {"walks": 120, "incomplete": 3},
        "uploads": {
            "paths": 9,
            "nar_bytes": 2_000_000,
            "realisations": 2,
            "logs": 0,
            "refused": 4,
            "spooled_bytes": 1_500,
        },
    }
    text = drawn(status_page, ANSWER | more, 160)
    assert "looked 120 times" in text and "3 narinfos withheld because it cannot" in text
    assert (
        "9 paths were put here, 2.0 MB of them new, 2 realisations, 4 requests refused, 1.5 kB wait"
        in text
    )
    quiet = {
        "closures": {"walks": 1, "incomplete": 0},
        "uploads": dict.fromkeys(more["uploads"], 0),
    }
    text = drawn(status_page, ANSWER | quiet, 160)
    assert "looked once" in text and "no narinfos withheld" in text
    assert "0 paths were put here, 0 B of them new\n" in text


@pytest.mark.parametrize("width", [80, 160])
def test_no_number_of_the_peers_is_cut(width: int) -> None:
    rows = [
        peer(pool="office-berlin"),
        peer(connected=False, only_asks_us=True, sent_per_second=1_234_567),
        peer(connected=False, dialled_in_seconds=12.0),
        peer(connected=False, banned=True),
    ]
    text = drawn(peers_page, {"peers": rows}, width)
    assert len(text.splitlines()) == 1 + len(rows)
    assert all(len(line) <= width for line in text.splitlines())
    for word in ("connected", "asks us", "again in 12 s", "banned", "40.0 MB/s", "1.2 MB/s"):
        assert word in text, word
    assert (PEER in text) == (width == 160) and PEER[-11:] in text
    assert text.splitlines()[0].split()[-1] == "owed"


def test_nobody_yet() -> None:
    assert "no peers yet" in drawn(peers_page, {"peers": []}, 80)
    assert "no peers yet" in drawn(status_page, {**ANSWER, "peers": [], "transfers": []}, 80)


def test_watching_goes_on_when_the_process_is_gone_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.watching.REFRESH_SECONDS", 0)
    answers = iter([ANSWER, UsageError("no narswarm is running"), ANSWER, KeyboardInterrupt()])

    def ask() -> Mapping[str, object]:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    watch(ask, peers_page)
    shown = capsys.readouterr().out
    assert next(answers, None) is None and "connected" in shown


def test_numbers_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 2_500_000, 10**10)] == [
        "0 B", "999 B", "1.0 kB", "2.5 MB", "10.0 GB"
    ]  # fmt: skip
    assert rate(0) == "" and rate(1500) == "1.5 kB/s"
    assert [duration(s) for s in (5.6, 180, 7200)] == ["6 s", "3 min", "2 h"]


@pytest.mark.parametrize("width", [80, 160])
def test_status_shows_who_disagrees(width: int) -> None:
    contents = [
        {"nar_hash": f"sha256:{digit * 52}", "keys": [key]}
        for digit, key in (("1", "a-1"), ("2", "b-1"))
    ]
    conflict = {"store_path": f"/nix/store/{'a' * 32}-hello", "contents": contents}
    text = drawn(status_page, ANSWER | {"conflicts": [conflict]}, width).replace("\n", " ")
    assert "ALARM" in text and "a-1 signed sha256:1" in text and "b-1 signed sha256:2" in text
    assert "and 2 older ones" in drawn(status_page, ANSWER | {"conflicts": [conflict] * 7}, width)
    assert "ALARM" not in drawn(status_page, ANSWER, width)
