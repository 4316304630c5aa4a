"""Ray Serve's autoscaling policy of the forecaster: `scaling` on what the replicas report.

Runs in the Serve controller at every turn of its loop, so the forecast is only remade once an
interval. Serve applies bounds and delays to the answer.
"""

from __future__ import annotations

from typing import Any

from flts_ray.serve.scaling import LATENCY, RATE, Ahead, Demand, wanted_replicas

INTERVAL_S = 15.0
HORIZON = 4
DAY = int(86_400 / INTERVAL_S)


class ScalingPolicy:
    """Called with Serve's context; answers (replicas, state)."""

    def __init__(
        self, target_ongoing: float, target_p95_ms: float | None, scale_ahead: bool
    ) -> None:
        self._target_ongoing = target_ongoing
        self._target_p95_ms = target_p95_ms
        self._ahead = Ahead(INTERVAL_S, HORIZON, DAY) if scale_ahead else None

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        demand = demand_of(context)
        coming = 0.0
        if self._ahead is not None:
            self._ahead.look(demand, context.current_time)
            coming = self._ahead.concurrency()
        replicas = wanted_replicas(demand, coming, self._target_ongoing, self._target_p95_ms)
        return replicas, {}


def demand_of(context: Any) -> Demand:
    """The replicas' reports in an `AutoscalingContext`."""
    reported = context.aggregated_metrics or {}
    return Demand(
        replicas=context.current_num_replicas,
        ongoing=float(context.total_num_requests),
        per_s=sum(reported.get(RATE, {}).values()),
        p95_ms=max(reported.get(LATENCY, {}).values(), default=0.0),
    )
