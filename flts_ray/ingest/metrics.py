"""What Prometheus sees of ingestion.

Design choices: names are stable and start with `flts_ingest_`; no label grows with the data: the
configuration, the actor and, for lag, the partition are all there are; counters grow by what a
worker did since the last look, so that a restarted worker, which counts from nothing, never makes
one fall.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

GAUGES = {
    "flts_ingest_lag": "Messages of a partition that are not in a segment yet",
    "flts_ingest_buffered_bytes": "Bytes of message values that wait for their segment",
}
COUNTERS = {
    "flts_ingest_messages_total": ("messages", "Messages taken from the broker"),
    "flts_ingest_rows_total": ("rows", "Good rows decoded"),
    "flts_ingest_bad_rows_total": ("bad_rows", "Rows that became dead letters"),
    "flts_ingest_bytes_total": ("bytes", "Bytes of message values taken from the broker"),
    "flts_ingest_segments_total": ("segments", "Segments written"),
    "flts_ingest_put_failures_total": ("put_failures", "Writes that the store did not confirm"),
    "flts_ingest_conflicts_total": ("conflicts", "Segments that somebody else wrote first"),
    "flts_ingest_lost_total": ("lost", "Offsets the broker no longer had when they were due"),
    "flts_ingest_rebalances_total": ("rebalances", "Times the group shared out its partitions"),
    "flts_ingest_commit_failures_total": ("commit_failures", "Commits the broker did not take"),
    "flts_ingest_dlq_total": ("forwarded", "Dead letters sent to their topic"),
}
"""Metric to the worker's count and what it means."""


class Reading(NamedTuple):
    """A gauge's value, or what a counter grew by."""

    metric: str
    value: float
    partition: str | None = None


def readings(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[Reading]:
    """What two statuses of one worker, as JSON data, say; `before` is None at its first.

    A partition that the worker gave away reads 0, so that the sum over actors stays right.
    """
    partitions, totals = now["partitions"], now["totals"]
    gone = set(before["partitions"]) - set(partitions) if before else set()
    buffered = sum(one["buffered_bytes"] for one in partitions.values())
    found = [Reading("flts_ingest_buffered_bytes", buffered)]
    found += [
        Reading("flts_ingest_lag", one["lag"], partition)
        for partition, one in partitions.items()
        if one["lag"] is not None
    ]
    found += [Reading("flts_ingest_lag", 0, partition) for partition in sorted(gone)]
    earlier = before["totals"] if before else {}
    for metric, (count, _) in COUNTERS.items():
        grown = totals.get(count, 0) - earlier.get(count, 0)
        if grown > 0:
            found.append(Reading(metric, grown))
    return found


class RayMeter:
    """Writes the readings of one worker to Ray's metrics, which Prometheus scrapes."""

    def __init__(self, name: str, index: int) -> None:
        from ray.util.metrics import Counter, Gauge

        tags = {"name": name, "actor": str(index)}
        self._before: Mapping[str, Any] | None = None
        self._gauges = {
            metric: Gauge(metric, told, ("name", "actor", *_extra(metric))).set_default_tags(tags)
            for metric, told in GAUGES.items()
        }
        self._counters = {
            metric: Counter(metric, told, ("name", "actor")).set_default_tags(tags)
            for metric, (_, told) in COUNTERS.items()
        }

    def __call__(self, status: Mapping[str, Any]) -> None:
        for metric, value, partition in readings(self._before, status):
            if metric in self._counters:
                self._counters[metric].inc(value)
            else:
                tags = None if partition is None else {"partition": partition}
                self._gauges[metric].set(value, tags=tags)
        self._before = status


def _extra(metric: str) -> tuple[str, ...]:
    return ("partition",) if metric == "flts_ingest_lag" else ()
