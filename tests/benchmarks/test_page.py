"""The page and the plot are made of results, and of nothing else."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from pathlib import Path

from benchmarks import __main__ as main
from benchmarks import page

ROW = {
    "peers": 2, "seconds_median": 20.0, "seconds_max": 21.0, "fluid_seconds": 20.0,
    "direct_seconds_max": 40.0, "origin_copies": 1.0,
}  # fmt: skip


def result(**more: object) -> str:
    return json.dumps({"date": "2026-01-02", "commit": "abc", "cores": 2, "python": "3", **more})


def test_the_newest_result_of_each_name_counts(tmp_path: Path) -> None:
    for date, value in (("2026-01-02", 2), ("2026-01-01", 1)):
        (tmp_path / f"{date}-core.json").write_text(result(figures={"cut_hash_mb_s": value}))
    (tmp_path / "2026-01-01-swarm-liar.json").write_text(
        result(command="python -m benchmarks swarm --scenario liar", figures={"origin_copies": 1.0})
    )
    text = page.text(page.newest(tmp_path), main.MEANING)
    assert "| cut_hash_mb_s | 2 |" in text and "| cut_hash_mb_s | 1 |" not in text
    assert "## `python -m benchmarks swarm --scenario liar`" in text


def test_a_series_is_a_table_and_a_plot() -> None:
    rows = [ROW, {**ROW, "peers": 16, "direct_seconds_max": 330.0}]
    series = {"figures": {"rows": rows}, **json.loads(result())}
    text = page.text({page.GROWTH: series}, main.MEANING)
    assert "| peers | 2 | 16 |" in text and f"]({page.PLOT_NAME})" in text
    drawn = xml.fromstring(page.plot(series))
    assert len(drawn.findall("{*}polyline")) == 6


def test_every_result_that_is_kept_can_be_shown() -> None:
    assert page.text(page.newest(main.RESULTS), main.MEANING)
