from __future__ import annotations

from typing import Any

from flts_ray.ingest.metrics import COUNTERS, GAUGES, Reading, readings


def status(lags: dict[str, int | None], **totals: int) -> dict[str, Any]:
    counts = {count: 0 for count, _ in COUNTERS.values()} | totals
    parts = {p: {"lag": lag, "buffered_bytes": 10} for p, lag in lags.items()}
    return {"partitions": parts, "totals": counts}


def test_the_first_status_counts_as_a_whole_and_later_ones_by_what_grew() -> None:
    first = status({"0": 7}, rows=100, bad_rows=2)
    assert set(readings(None, first)) == {
        Reading("flts_ingest_lag", 7, "0"),
        Reading("flts_ingest_buffered_bytes", 10),
        Reading("flts_ingest_rows_total", 100),
        Reading("flts_ingest_bad_rows_total", 2),
    }
    second = status({"0": 0}, rows=150, bad_rows=2)
    assert set(readings(first, second)) == {
        Reading("flts_ingest_lag", 0, "0"),
        Reading("flts_ingest_buffered_bytes", 10),
        Reading("flts_ingest_rows_total", 50),
    }


def test_a_partition_that_was_given_away_reads_nothing_and_an_unknown_lag_is_not_told() -> None:
    before, now = status({"0": 7, "1": 5}), status({"1": None})
    assert [one for one in readings(before, now) if one.metric == "flts_ingest_lag"] == [
        Reading("flts_ingest_lag", 0, "0")
    ]


def test_a_counter_never_falls() -> None:
    found = readings(status({}, rows=100), status({}, rows=10))
    assert [one.metric for one in found] == ["flts_ingest_buffered_bytes"]


def test_names_are_stable() -> None:
    assert all(name.startswith("flts_ingest_") for name in (*GAUGES, *COUNTERS))
    assert all(name.endswith("_total") for name in COUNTERS)
    assert {
        "flts_ingest_rows_total", "flts_ingest_bytes_total", "flts_ingest_segments_total",
        "flts_ingest_bad_rows_total", "flts_ingest_dlq_total", "flts_ingest_rebalances_total",
        "flts_ingest_commit_failures_total", "flts_ingest_lost_total",
    } <= set(COUNTERS)  # fmt: skip
