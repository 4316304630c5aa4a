"""What Prometheus sees of serving.

Design choices: names are stable and begin with `flts_serve_`; `inference_*` are the same numbers
under older names; labels are the configuration's name, the route and the outcome, never a series,
so nothing grows with the data; the path of a request adds to a few numbers, and a thread hands
them to Ray's metrics (`ray_metrics.py`); latencies are counted in buckets, each handed on at once,
so that the cost does not grow with the rate; a gauge that nobody reports any more, as that of a
challenger which was dropped, is set to NaN, because Ray repeats the last value of each for as long
as its process lives and has no other way to take one back: Prometheus sees it no more.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flts_ray.serve.observe import Made

BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
OUTCOMES = {
    401: "unauthorized",
    403: "unauthorized",
    429: "overloaded",
    503: "unavailable",
    504: "expired",
}
HISTOGRAMS = {
    "flts_serve_latency_seconds": "From a request's arrival to its answer",
    "inference_latency_seconds": "The same of forecasts alone, under its older name",
}
COUNTERS = {
    "flts_serve_requests_total": "Answers by route and outcome",
    "flts_serve_seconds_total": "Time from arrival to answer of all these, added up exactly",
    "inference_requests_total": "Answers to requests for a forecast, under its older name",
    "inference_errors_total": "Those of them that are server errors, under its older name",
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
}
LABELS: Mapping[str, tuple[str, ...]] = {
    "flts_serve_latency_seconds": ("route", "outcome"),
    "flts_serve_requests_total": ("route", "outcome"),
    "flts_serve_seconds_total": ("route", "outcome"),
    "flts_serve_series_total": ("role",),
    "flts_serve_live_error": ("role",),
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
                found.append(Reading("inference_requests_total", bucket.count))
                found.append(Reading("inference_latency_seconds", mean, {}, bucket.count))
                if outcome in ("error", "unavailable", "expired"):
                    found.append(Reading("inference_errors_total", bucket.count))
        return found


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
