"""What Prometheus sees of serving.

Design choices: names are stable and begin with `flts_serve_`; `inference_*` are older names, with
the buckets and outcomes that dashboards and scaling rules made for them ask for; labels are the
configuration's name, the route and the outcome, never a series, so nothing grows with the data;
the path of a request adds to a few numbers, and a thread hands them to Ray's metrics
(`ray_metrics.py`); latencies are counted in buckets, each handed on at once, so that the cost does
not grow with the rate; a gauge that nobody reports any more, as that of a challenger which was
dropped, is set to NaN, because Ray repeats the last value of each for as long as its process lives
and has no other way to take one back: Prometheus sees it no more.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from flts_ray.serve.observe import Made

BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
OLDER_BOUNDS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
OUTCOMES = {
    401: "unauthorized",
    403: "unauthorized",
    429: "overloaded",
    499: "gone",
    503: "unavailable",
    504: "expired",
}
OLDER_OUTCOMES = {
    "ok": "success",
    "invalid": "client_error",
    "unauthorized": "client_error",
    "error": "exception",
    "unavailable": "exception",
    "overloaded": "queue_full",
    "expired": "skipped",
    "gone": "skipped",
}
NOT_PROCESSED = ("queue_full", "skipped")
HISTOGRAMS = {
    "flts_serve_latency_seconds": "From a request's arrival to its answer",
    "inference_queue_wait_seconds": "From a request's way into the queue to the call of the model "
    "that it is in; those that never came so far are left out; a micro-batch of a bulk request "
    "counts as one",
    "inference_latency_seconds": "Duration of the call of the model that a request is in, without "
    "the wait before it; a call shared by several counts for each of them",
}
BOUNDS: Mapping[str, tuple[float, ...]] = {
    "flts_serve_latency_seconds": BOUNDS_S,
    "inference_queue_wait_seconds": OLDER_BOUNDS_S,
    "inference_latency_seconds": OLDER_BOUNDS_S,
}
COUNTERS = {
    "flts_serve_requests_total": "Answers by route and outcome",
    "flts_serve_seconds_total": "Time from arrival to answer of all these, added up exactly",
    "inference_jobs_processed_total": "Answers to requests for a forecast, whatever they say, "
    "except those with outcome queue_full or skipped",
    "inference_jobs_outcome_total": "Answers to requests for a forecast: success; client_error "
    "(any other 4xx); exception (500, 503); queue_full (429); skipped (504: its time was over; "
    "499: its caller had left)",
    "flts_serve_series_total": "Series forecast, by whose model did it",
    "flts_serve_degraded_total": "Series answered without the model",
    "flts_serve_batches_total": "Calls of the model",
    "flts_serve_batch_series_total": "Series in these calls",
    "flts_serve_log_rows_total": "Rows of the forecast log in the store",
    "flts_serve_log_lost_total": "Rows that did not fit into the buffer",
}
GAUGES = {
    "flts_serve_queue": "Requests that wait for the model of a replica",
    "flts_serve_log_waiting": "Rows in the buffer of the forecast log",
    "flts_serve_champion_version": "Version that a replica answers with",
    "flts_serve_champion_age_seconds": "Since that version was registered",
    "flts_serve_live_error": "Mean absolute error of judged forecasts, divided by the scale",
    "flts_serve_challenger": "1 while a replica holds a challenger, as canary or as shadow",
    "flts_serve_up": "1 for each replica; their sum is the number of replicas",
    "inference_model_ready": "1 once a replica holds a champion, 0 before",
    "inference_queue_len": "Requests that wait for the model of a replica, as flts_serve_queue",
    "inference_queue_oldest_wait_seconds": "For how long the first of them has waited, 0 without",
    "inference_queue_wait_latest_seconds": "Wait of the latest request that the model was called "
    "for",
    "inference_latency_latest_seconds": "Duration of the latest call of the model",
    "inference_workers_total": "1 for each replica: its model does one call at a time",
    "inference_active_workers": "1 for each replica that holds a champion",
    "inference_workers_busy": "1 while a call of the model runs, at the moment of reading",
    "inference_workers_idle": "Active workers that are not busy",
    "inference_worker_utilization": "Share of the time since the reading before in which a call of "
    "the model ran, 0 to 1",
}
LABELS: Mapping[str, tuple[str, ...]] = {
    "flts_serve_latency_seconds": ("route", "outcome"),
    "flts_serve_requests_total": ("route", "outcome"),
    "flts_serve_seconds_total": ("route", "outcome"),
    "flts_serve_series_total": ("role",),
    "flts_serve_live_error": ("role",),
    "inference_jobs_outcome_total": ("outcome",),
}
FORECAST_ROUTES = ("/v1/forecast", "/v1/forecast:batch", "/v1/timeseries/forecast", "/predict")


def outcome_of(status: int) -> str:
    """What an HTTP status means to whoever reads a graph."""
    if status in OUTCOMES:
        return OUTCOMES[status]
    return "ok" if status < 400 else "invalid" if status < 500 else "error"


@dataclass(frozen=True)
class Reading:
    """What a counter grew by, what a gauge stands at, or `times` observations of a histogram."""

    metric: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    times: int = 1


@dataclass
class _Bucket:
    count: int = 0
    total: float = 0.0


class Buckets:
    """Observations of a histogram without labels, added up bucket by bucket."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._bounds = BOUNDS[metric]
        self._kept = [_Bucket() for _ in range(len(self._bounds) + 1)]

    def add(self, value: float, times: int = 1) -> None:
        bucket = self._kept[bisect_left(self._bounds, value)]
        bucket.count += times
        bucket.total += value * times

    def readings(self) -> list[Reading]:
        """One for each bucket that has any; its value lies in the bucket and keeps the sum."""
        limits = (*self._bounds, math.inf)
        return [
            # The mean of equal values may lie a rounding error above them.
            Reading(self._metric, min(one.total / one.count, most), times=one.count)
            for one, most in zip(self._kept, limits, strict=True)
            if one.count
        ]


class Meter:
    """Adds up what it observes; `readings` gives what is new since it was last asked."""

    def __init__(self) -> None:
        self._latency: dict[tuple[str, str, int], _Bucket] = {}
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def request(self, route: str, status: int, seconds: float) -> None:
        key = (route, outcome_of(status), bisect_left(BOUNDS_S, seconds))
        with self._lock:
            bucket = self._latency.setdefault(key, _Bucket())
            bucket.count += 1
            bucket.total += seconds

    def forecast(self, made: Made) -> None:
        series = len(made.forecast.ids)
        with self._lock:
            self._add("flts_serve_series_total", made.role, series)
            if made.degraded:
                self._add("flts_serve_degraded_total", "", series)

    def _add(self, metric: str, label: str, by: int) -> None:
        self._counts[metric, label] = self._counts.get((metric, label), 0) + by

    def readings(self) -> list[Reading]:
        with self._lock:
            latency, self._latency = self._latency, {}
            counts, self._counts = self._counts, {}
        found = [
            Reading(metric, by, dict(zip(LABELS.get(metric, ()), (label,), strict=False)))
            for (metric, label), by in counts.items()
        ]
        for (route, outcome, _), bucket in latency.items():
            labels = {"route": route, "outcome": outcome}
            mean = bucket.total / bucket.count
            found.append(Reading("flts_serve_requests_total", bucket.count, labels))
            found.append(Reading("flts_serve_seconds_total", bucket.total, labels))
            found.append(Reading("flts_serve_latency_seconds", mean, labels, bucket.count))
            if route in FORECAST_ROUTES:
                found += _older(outcome, bucket.count)
        return found


def _older(outcome: str, count: int) -> Iterator[Reading]:
    """So many answers to requests for a forecast under their older names."""
    older = OLDER_OUTCOMES[outcome]
    yield Reading("inference_jobs_outcome_total", count, {"outcome": older})
    if older not in NOT_PROCESSED:
        yield Reading("inference_jobs_processed_total", count)


class Growth:
    """Turns totals that others keep into what they grew by."""

    def __init__(self) -> None:
        self._before: dict[str, float] = {}

    def since(self, metric: str, total: float) -> Reading:
        """A total below the last one began anew, as that of a new model does."""
        before = self._before.get(metric, 0.0)
        self._before[metric] = total
        return Reading(metric, total - before if total >= before else total)


class Ended:
    """Which gauges are reported no longer."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, frozenset[tuple[str, str]]], Reading] = {}

    def since(self, readings: Iterable[Reading]) -> list[Reading]:
        """NaN, once, for each gauge that was reported before and is not now."""
        now = {
            (one.metric, frozenset(one.labels.items())): replace(one, value=math.nan)
            for one in readings
            if one.metric in GAUGES
        }
        gone = [one for key, one in self._before.items() if key not in now]
        self._before = now
        return gone
