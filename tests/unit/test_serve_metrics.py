"""What is counted of serving, and under which names."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.serve.histograms import Histograms
from flts_ray.serve.metrics import (
    BOUNDS,
    BOUNDS_S,
    COUNTERS,
    GAUGES,
    HISTOGRAMS,
    LABELS,
    OLDER_BOUNDS_S,
    OLDER_OUTCOMES,
    Buckets,
    Ended,
    Growth,
    Meter,
    Reading,
    outcome_of,
)
from tests.unit.test_forecast_log import made

OLDER_NAMES = {
    "inference_queue_len", "inference_queue_oldest_wait_seconds", "inference_queue_wait_seconds",
    "inference_queue_wait_latest_seconds", "inference_latency_seconds",
    "inference_latency_latest_seconds", "inference_active_workers", "inference_workers_total",
    "inference_workers_busy", "inference_workers_idle", "inference_worker_utilization",
    "inference_jobs_processed_total", "inference_jobs_outcome_total", "inference_model_ready",
}  # fmt: skip
ROUTES = ("/v1/forecast", "/healthz", "other")


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "ok"), (422, "invalid"), (413, "invalid"), (401, "unauthorized"),
        (429, "overloaded"), (499, "gone"), (503, "unavailable"), (504, "expired"), (500, "error"),
    ],
)  # fmt: skip
def test_outcomes(status: int, outcome: str) -> None:
    assert outcome_of(status) == outcome


@given(
    st.lists(
        st.tuples(
            st.sampled_from(ROUTES), st.sampled_from((200, 422, 500)), st.floats(0, 100)
        )
    )
)  # fmt: skip
def test_count_and_sum_are_exact(answers: list[tuple[str, int, float]]) -> None:
    meter = Meter()
    for route, status, seconds in answers:
        meter.request(route, status, seconds)
    found: dict[str, float] = defaultdict(float)
    times: dict[str, int] = defaultdict(int)
    for one in meter.readings():
        found[one.metric] += one.value * one.times
        times[one.metric] += one.times
    spent = [one for _, _, one in answers]
    asked = [status for route, status, _ in answers if route == "/v1/forecast"]
    assert found["flts_serve_requests_total"] == len(answers)
    assert times["flts_serve_latency_seconds"] == len(answers)
    assert found["flts_serve_latency_seconds"] == pytest.approx(sum(spent))
    assert found["flts_serve_seconds_total"] == pytest.approx(sum(spent))
    assert found["inference_jobs_processed_total"] == len(asked)
    assert found["inference_jobs_outcome_total"] == len(asked)
    assert meter.readings() == []


def test_the_older_outcomes_of_requests_for_a_forecast() -> None:
    meter = Meter()
    statuses = (200, 200, 401, 403, 405, 413, 422, 429, 499, 500, 503, 504)
    for route in ("/predict", "/v1/forecast", "/v1/forecast:batch", "/v1/timeseries/forecast"):
        for status in statuses:
            meter.request(route, status, 0.01)
    for status in statuses:
        meter.request("/v1/model", status, 0.01)
    found: dict[str, float] = defaultdict(float)
    for one in meter.readings():
        if one.metric.startswith("inference_"):
            found["".join([one.metric, *one.labels.values()])] += one.value
    assert found == {
        "inference_jobs_processed_total": 4 * 9,
        "inference_jobs_outcome_totalsuccess": 4 * 2,
        "inference_jobs_outcome_totalclient_error": 4 * 5,
        "inference_jobs_outcome_totalqueue_full": 4,
        "inference_jobs_outcome_totalskipped": 4 * 2,
        "inference_jobs_outcome_totalexception": 4 * 2,
    }
    assert set(OLDER_OUTCOMES.values()) == {
        "success", "client_error", "exception", "queue_full", "skipped",
    }  # fmt: skip
    assert set(OLDER_OUTCOMES) == {outcome_of(status) for status in range(100, 600)}


@given(
    st.lists(
        st.tuples(
            st.floats(0, 100) | st.sampled_from((0.1, *OLDER_BOUNDS_S)), st.integers(1, 9)
        )
    )
)  # fmt: skip
def test_buckets_keep_count_and_sum_of_what_lies_in_them(seen: list[tuple[float, int]]) -> None:
    name = "inference_latency_seconds"
    buckets, one_by_one, at_once = Buckets(name), Histograms(BOUNDS), Histograms(BOUNDS)
    for value, times in seen:
        buckets.add(value, times)
    made = buckets.readings()
    assert len(made) <= len(OLDER_BOUNDS_S) + 1
    shown = at_once.since(made)
    wanted = one_by_one.since([Reading(name, value, times=times) for value, times in seen])
    for one, other in zip(shown, wanted, strict=True):
        assert (one.metric, one.labels) == (other.metric, other.labels)
        assert one.value == pytest.approx(other.value)


@pytest.mark.parametrize("name", ["inference_queue_wait_seconds", "inference_latency_seconds"])
def test_the_older_histograms_have_the_older_buckets(name: str) -> None:
    shown = Histograms(BOUNDS).since([Reading(name, 0.2)])
    found = {one.labels["le"]: one.value for one in shown if "le" in one.labels}
    assert found == {
        "0.01": 0, "0.05": 0, "0.1": 0, "0.25": 1, "0.5": 1, "1.0": 1, "2.0": 1, "5.0": 1,
        "10.0": 1, "30.0": 1, "+Inf": 1,
    }  # fmt: skip


def test_a_bucket_is_handed_on_within_its_bounds() -> None:
    meter = Meter()
    for seconds in (0.0011, 0.0024, 0.3):
        meter.request("/v1/forecast", 200, seconds)
    seen = {
        one.times: one.value
        for one in meter.readings()
        if one.metric == "flts_serve_latency_seconds"
    }
    assert BOUNDS_S[0] < seen[2] <= BOUNDS_S[1]
    assert seen[1] == 0.3


def test_series_are_counted_by_role_and_never_named() -> None:
    meter = Meter()
    meter.forecast(made(1))
    meter.forecast(made(2, ("a",)))
    (reading,) = meter.readings()
    assert (reading.metric, reading.value) == ("flts_serve_series_total", 3)
    assert reading.labels == {"role": "champion"}
    assert {label for labels in LABELS.values() for label in labels} == {"route", "outcome", "role"}


def test_every_name_is_a_metric_of_one_kind() -> None:
    names = [*COUNTERS, *GAUGES, *HISTOGRAMS]
    assert len(set(names)) == len(names)
    assert set(LABELS) <= set(names)
    assert set(BOUNDS) == set(HISTOGRAMS)
    assert {name for name in names if name.startswith("inference_")} == OLDER_NAMES
    assert all(name.startswith(("flts_serve_", "inference_")) for name in names)
    assert all(name.endswith("_total") for name in COUNTERS)


def test_a_total_that_begins_anew_counts_from_nothing() -> None:
    growth = Growth()
    grown = [growth.since("x", total).value for total in (3, 3, 10, 2, 5)]
    assert grown == [3, 0, 7, 2, 3]


def test_a_gauge_that_nobody_reports_any_more_ends_once() -> None:
    def error(role: str) -> Reading:
        return Reading("flts_serve_live_error", 0.5, {"role": role})

    ended, both = Ended(), [error("champion"), error("challenger"), Reading("flts_serve_up", 1.0)]
    assert ended.since([*both, Reading("flts_serve_requests_total", 2.0)]) == []
    assert ended.since(both) == []
    (gone,) = ended.since([both[0], both[2]])
    assert (gone.metric, gone.labels) == ("flts_serve_live_error", {"role": "challenger"})
    assert math.isnan(gone.value)
    assert ended.since([both[0], both[2]]) == []
    assert ended.since(both) == []
    assert len(ended.since([])) == 3


@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 100)), max_size=20)))
def test_a_histogram_is_what_prometheus_makes_of_all_observations(
    rounds: list[list[tuple[str, float]]],
) -> None:
    histograms, shown = Histograms({"x": BOUNDS_S}), {}
    for observed in rounds:
        told = [Reading("x", value, {"route": route}) for route, value in observed]
        for one in histograms.since([*told, Reading("flts_serve_queue", 3)]):
            shown[one.metric, one.labels["route"], one.labels.get("le")] = one.value
    for route in "ab":
        values = [value for observed in rounds for name, value in observed if name == route]
        if not values:
            assert not any(key[1] == route for key in shown)
            continue
        assert shown["x_count", route, None] == shown["x_bucket", route, "+Inf"] == len(values)
        assert shown["x_sum", route, None] == pytest.approx(sum(values))
        for bound in BOUNDS_S:
            below = sum(value <= bound for value in values)
            assert shown["x_bucket", route, str(bound)] == below


def test_only_histograms_that_were_observed_are_shown_again() -> None:
    histograms = Histograms({"x": (1.0, 2.0), "y": (1.0,)})
    assert len(histograms.since([Reading("x", 0.5, times=3), Reading("y", 2.0)])) == 9
    again = histograms.since([Reading("y", 0.5)])
    assert {(one.metric, one.labels.get("le")): one.value for one in again} == {
        ("y_bucket", "1.0"): 1, ("y_bucket", "+Inf"): 2, ("y_count", None): 2, ("y_sum", None): 2.5,
    }  # fmt: skip
