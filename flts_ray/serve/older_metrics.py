"""A replica's queue, worker and model calls as `inference_*`, the older names of such numbers.

Design choices: a worker is the model of a replica, which does one call at a time, so every replica
has one; a job that waits or is executed is what goes into one call of the model by itself: a
request, or each micro-batch of a bulk request; what a job is executed for is the whole call that
it shares with others, because that is how long its caller waits for it; nothing is shown of the
latest job before there was one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from flts_ray.serve.engine import ModelSlot
from flts_ray.serve.metrics import Buckets, Reading
from flts_ray.serve.model_calls import ModelCall, busy_s


class OlderMetrics:
    """Reads one replica. For one thread; `clock` is that of the model calls."""

    def __init__(self, slot: ModelSlot, clock: Callable[[], float] = time.monotonic) -> None:
        self._slot = slot
        self._clock = clock
        self._read_at = clock()
        self._latest: ModelCall | None = None
        slot.calls.wanted = True

    def readings(self) -> Iterator[Reading]:
        """What is new since it was last asked, and how things stand now."""
        # A call that ends meanwhile is then found twice, which `busy_s` counts once.
        now, running, done = self._clock(), self._slot.calls.running(), self._slot.calls.take()
        yield from self._queue(now)
        yield from self._workers(now, running, done)
        yield from self._jobs(done)
        self._read_at = now

    def _queue(self, now: float) -> Iterator[Reading]:
        engines = self._slot.engines
        since = [one.waiting_since for one in engines if one.waiting_since is not None]
        yield Reading("inference_queue_len", float(sum(one.queued for one in engines)))
        oldest = max(0.0, now - min(since)) if since else 0.0
        yield Reading("inference_queue_oldest_wait_seconds", oldest)

    def _workers(
        self, now: float, running: Sequence[float], done: Sequence[ModelCall]
    ) -> Iterator[Reading]:
        ready, busy = float(self._slot.engine is not None), float(bool(running))
        spans = [(call.began, call.ended) for call in done]
        spans += [(began, now) for began in running]
        passed = now - self._read_at
        spent = busy_s(spans, self._read_at, now)
        yield Reading("inference_model_ready", ready)
        yield Reading("inference_workers_total", 1.0)
        yield Reading("inference_active_workers", ready)
        yield Reading("inference_workers_busy", busy)
        yield Reading("inference_workers_idle", max(ready - busy, 0.0))
        yield Reading("inference_worker_utilization", spent / passed if passed > 0 else busy)

    def _jobs(self, done: Sequence[ModelCall]) -> Iterator[Reading]:
        wait = Buckets("inference_queue_wait_seconds")
        latency = Buckets("inference_latency_seconds")
        for call in done:
            latency.add(call.ended - call.began, len(call.since))
            for since in call.since:
                wait.add(call.began - since)
        yield from wait.readings()
        yield from latency.readings()
        self._latest = latest = done[-1] if done else self._latest
        if latest is not None:
            waited, took = latest.began - latest.since[-1], latest.ended - latest.began
            yield Reading("inference_queue_wait_latest_seconds", waited)
            yield Reading("inference_latency_latest_seconds", took)
