"""Where bytes came from, also while some are still to come."""

from __future__ import annotations

import pytest

from chunker.digest import ManifestId
from chunker.store import MemoryStore
from gateway.filling import Filling
from gateway.report import Report, UpstreamRates, served_report
from gateway.substituter import Served
from peer.traffic import Traffic
from tests.peer.office import make_path

RECORD, NAR = make_path("path", 1000)
WANTED = ManifestId(b"m" * 32)


def sources(report: Report) -> list[int]:
    found = report["sources"]
    assert isinstance(found, dict)
    return [found[key] for key in ("store", "peers", "upstreams")]


def test_what_is_promised_and_not_here_yet_did_not_come_from_the_store() -> None:
    traffic, upstream = Traffic(), UpstreamRates()
    served = Served(nar_bytes=2 * len(NAR))
    traffic.begin(0, WANTED, RECORD, missing_bytes=len(NAR) - 100)
    assert sources(served_report(served, 0, traffic, upstream)) == [len(NAR) + 100, 0, 0]
    traffic.end(WANTED)
    filling = Filling(MemoryStore(), RECORD, ())
    for now, filling.bytes_received in enumerate((0, 300)):
        upstream.look(now, [filling])
    assert sources(served_report(served, 0, traffic, upstream)) == [len(NAR), 0, 300]
    upstream.look(2, [])
    assert sources(served_report(served, len(NAR), traffic, upstream)) == [len(NAR), 0, len(NAR)]


def test_a_nar_from_an_upstream_has_a_rate_and_an_end() -> None:
    upstream, filling = UpstreamRates(), Filling(MemoryStore(), RECORD, ())
    for now, filling.bytes_received in enumerate(range(0, 500, 100)):
        upstream.look(now, [filling])
    (shown,) = upstream.report(4.0)
    assert shown["done_bytes"] == 400 and shown["bytes_per_second"] == 100
    assert shown["seconds_left"] == pytest.approx((len(NAR) - 400) / 100, abs=0.1)
    assert shown["sources"] == {"upstreams": 400}
