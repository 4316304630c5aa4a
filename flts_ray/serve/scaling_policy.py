"""Ray Serve's autoscaling policy of the forecaster: `scaling` on what the replicas report.

Runs in the Serve controller at every turn of its loop, so the forecast is only remade once an
interval. Serve applies bounds and delays to the answer. A controller or a deployment that begins
anew goes on from what the last one counted, and until all replicas have reported to it their
silence is neither counted nor a reason to stop one.
"""

from __future__ import annotations

import math
from typing import Any

import structlog

from flts_ray.config_serve import AheadConfig
from flts_ray.serve.scaling import LATENCY, ONGOING, RATE, Ahead, Demand, wanted_replicas
from flts_ray.serve.scaling_memory import ScalingMemory, save_s

DEFAULT = AheadConfig()
_log = structlog.get_logger("flts_ray.serve")


class ScalingPolicy:
    """Called with Serve's context; answers (replicas, state).

    Times are those of `serve.ahead`; memory: name of the file that counts are kept in, None for
    none.
    """

    def __init__(
        self,
        target_ongoing: float,
        target_p95_ms: float | None,
        scale_ahead: bool,
        interval_s: float = DEFAULT.interval_s,
        ahead_s: float = DEFAULT.ahead_s,
        season_s: float = DEFAULT.season_s,
        memory: str | None = None,
    ) -> None:
        self._target_ongoing = target_ongoing
        self._target_p95_ms = target_p95_ms
        self._ahead: Ahead | None = None
        if scale_ahead:
            steps, season = math.ceil(ahead_s / interval_s), round(season_s / interval_s)
            self._ahead = Ahead(interval_s, steps, season)
        self._memory: ScalingMemory | None = None
        if memory is not None:
            self._memory = ScalingMemory(memory, every_s=save_s(interval_s))
        self._resumed = False

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        demand = demand_of(context)
        coming = 0.0
        if self._ahead is not None:
            self._look(self._ahead, demand, context.current_time)
            coming = self._ahead.concurrency
        replicas = wanted_replicas(demand, coming, self._target_ongoing, self._target_p95_ms)
        if not demand.told:
            replicas = max(replicas, context.target_num_replicas)
        return replicas, {}

    def _look(self, ahead: Ahead, demand: Demand, now: float) -> None:
        if self._memory is None:
            ahead.look(demand, now)
            return
        if not self._resumed:
            self._resumed = True
            kept = self._memory.read()
            if kept is not None and not ahead.resume(kept, now):
                _log.info("scaling_memory_of_another_clock")
        ahead.look(demand, now)
        if self._memory.due(now):
            self._memory.keep(ahead.counted(), now)


def demand_of(context: Any) -> Demand:
    """The replicas' reports in an `AutoscalingContext`."""
    reported = context.aggregated_metrics or {}
    replicas = context.current_num_replicas
    return Demand(
        replicas=replicas,
        # Serve does not see the requests that replicas take in themselves.
        ongoing=max(float(context.total_num_requests), sum(reported.get(ONGOING, {}).values())),
        per_s=sum(reported.get(RATE, {}).values()),
        p95_ms=max(reported.get(LATENCY, {}).values(), default=0.0),
        told=len(reported.get(RATE, {})) >= max(1, replicas),
    )
