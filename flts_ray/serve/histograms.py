"""Histograms as the running totals that Prometheus reads.

Design choices: Ray's own histogram is told of every observation by itself, and the process of a
node that shows them to Prometheus repeats each from the middle of its bucket, which costs more
than a twentieth of serving at thousands of requests a second and leaves their sum an estimate; so
the totals are kept here and shown as gauges under the names of a histogram, whose cost does not
grow with the rate and whose sum is exact.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from flts_ray.serve.metrics import Reading

BUCKET, COUNT, SUM = "_bucket", "_count", "_sum"
BOUND = "le"
"""Label of a bucket: its upper bound, which is in it."""


@dataclass
class _Totals:
    """counts: [bound + 1], not added up yet."""

    labels: Mapping[str, str]
    counts: list[int]
    total: float = 0.0


@dataclass
class Histograms:
    """Totals since the start. `bounds`: those of each histogram by its name, they rise."""

    bounds: Mapping[str, tuple[float, ...]]
    _kept: dict[tuple[str, frozenset[tuple[str, str]]], _Totals] = field(default_factory=dict)

    def since(self, readings: Iterable[Reading]) -> list[Reading]:
        """Add observations; the new totals of each histogram that had one."""
        changed: dict[tuple[str, frozenset[tuple[str, str]]], _Totals] = {}
        for one in readings:
            if one.metric not in self.bounds:
                continue
            key = one.metric, frozenset(one.labels.items())
            bounds = self.bounds[one.metric]
            if key not in self._kept:
                self._kept[key] = _Totals(one.labels, [0] * (len(bounds) + 1))
            totals = changed[key] = self._kept[key]
            totals.counts[bisect_left(bounds, one.value)] += one.times
            totals.total += one.value * one.times
        return [
            shown
            for (metric, _), totals in changed.items()
            for shown in self._shown(metric, totals)
        ]

    def _shown(self, metric: str, totals: _Totals) -> list[Reading]:
        labels = totals.labels
        bounds = (*map(str, self.bounds[metric]), "+Inf")
        up_to = list(accumulate(totals.counts))
        return [
            *(
                Reading(metric + BUCKET, count, {**labels, BOUND: bound})
                for bound, count in zip(bounds, up_to, strict=True)
            ),
            Reading(metric + COUNT, up_to[-1], labels),
            Reading(metric + SUM, totals.total, labels),
        ]
