"""Hands what a replica has counted to Ray's metrics, which Prometheus scrapes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from flts_ray.serve.histograms import BOUND, BUCKET, COUNT, SUM, Histograms
from flts_ray.serve.metrics import BOUNDS, COUNTERS, GAUGES, HISTOGRAMS, LABELS, Ended, Reading

PERIOD_S = 2.0


class RayMetrics:
    """Hands readings to Ray's metrics every PERIOD_S seconds, until `close`."""

    def __init__(self, name: str, sources: Iterable[Callable[[], Iterable[Reading]]]) -> None:
        from ray.util.metrics import Counter, Gauge

        tags = {"name": name}

        self._sources = tuple(sources)
        self._counters = {
            metric: Counter(metric, told, ("name", *LABELS.get(metric, ()))).set_default_tags(tags)
            for metric, told in COUNTERS.items()
        }
        self._gauges = {
            metric: Gauge(metric, told, ("name", *labels)).set_default_tags(tags)
            for metric, told, labels in _all_gauges()
        }
        self._histograms = Histograms(BOUNDS)
        self._ended = Ended()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._hand_over()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self._hand_over()

    def _hand_over(self) -> None:
        readings = [one for source in self._sources for one in source()]
        totals = self._histograms.since(readings)
        for one in (*readings, *totals, *self._ended.since(readings)):
            labels = dict(one.labels)
            if one.metric in self._gauges:
                self._gauges[one.metric].set(one.value, labels)
            elif one.metric not in HISTOGRAMS and one.value > 0:
                self._counters[one.metric].inc(one.value, labels)


def _all_gauges() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, description and labels beyond those in LABELS, of each."""
    for metric, told in GAUGES.items():
        yield metric, told, LABELS.get(metric, ())
    for metric, told in HISTOGRAMS.items():
        labels = LABELS.get(metric, ())
        yield metric + BUCKET, told, (*labels, BOUND)
        yield metric + COUNT, told, labels
        yield metric + SUM, told, labels
