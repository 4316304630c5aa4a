"""All that a replica does beside answering: forecast log, metrics, live error, challenger.

Design choices: whoever serves hands over what was answered and nothing else; everything here has
threads of its own and ends with the app, the log last, so that a graceful stop loses no answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

from flts_ray.config_serve import ServeConfig
from flts_ray.serve.challenger import ChallengerKeeper, Dropped
from flts_ray.serve.engine import ModelSlot, ServedModel
from flts_ray.serve.forecast_log import ForecastLog
from flts_ray.serve.metrics import Growth, Meter, Reading
from flts_ray.serve.observe import Observer, Observers
from flts_ray.serve.older_metrics import OlderMetrics
from flts_ray.serve.refresh import ModelSource
from flts_ray.serve.watcher import Watcher
from flts_ray.store import Store

Sources = Iterable[Callable[[], Iterable[Reading]]]
Publish = Callable[[str, Sources], Callable[[], None]]
"""Hands readings on until what it returned is called."""


def on_ray(name: str, sources: Sources) -> Callable[[], None]:
    """Publish through Ray's metrics, which Prometheus scrapes."""
    from flts_ray.serve.ray_metrics import RayMetrics

    return RayMetrics(name, sources).close


class Watch:
    """Watches one replica. `observer` goes to the app; `run` runs while it does, then `close`.

    source: None where there is no registry, so no challenger either.
    """

    def __init__(
        self,
        slot: ModelSlot,
        store: Store,
        source: ModelSource | None,
        publish: Publish = on_ray,
    ) -> None:
        limits = slot.limits
        self._slot = slot
        self._poll_s = limits.poll_s
        self._log = ForecastLog(store, slot.name, limits.log) if limits.log.enabled else None
        self._watcher = Watcher(limits.canary, self._log, self._drop)
        self._keeper = _keeper(slot, store, source, limits, self._watcher)
        self._meter = Meter()
        self._growth = Growth()
        each: list[Observer] = [self._meter, self._watcher]
        each += [self._log] if self._log is not None else []
        self.observer: Observer = Observers(each)
        older = OlderMetrics(slot).readings
        self._stop_publishing = publish(
            slot.name, (self._meter.readings, self._watcher.readings, self._readings, older)
        )

    async def run(self, beside: Callable[[], Awaitable[None]]) -> None:
        """Run `beside` and keep the challenger, until cancelled; then write what is left."""
        try:
            await asyncio.gather(beside(), self._keep())
        finally:
            await asyncio.get_running_loop().run_in_executor(None, self.close)

    def close(self) -> None:
        """Stop the threads; the forecast log is written to its end."""
        self._watcher.close()
        if self._log is not None:
            self._log.close()
        self._stop_publishing()

    async def _keep(self) -> None:
        if self._keeper is not None:
            await self._keeper.run()
            return
        while True:
            self._watcher.models(self._slot.champion, None)
            await asyncio.sleep(self._poll_s)

    def _drop(self, challenger: ServedModel, reason: str) -> None:
        assert self._keeper is not None  # without it there is no challenger
        self._keeper.drop(challenger, reason)

    def _readings(self) -> Iterator[Reading]:
        yield Reading("flts_serve_up", 1.0)
        yield Reading("flts_serve_challenger", float(self._slot.challenger is not None))
        if self._log is not None:
            counts = self._log.counts
            yield self._growth.since("flts_serve_log_rows_total", counts.written)
            yield self._growth.since("flts_serve_log_lost_total", counts.lost)
            yield Reading("flts_serve_log_waiting", self._log.waiting)
        engine = self._slot.engine
        if engine is None:
            return
        yield Reading("flts_serve_queue", sum(one.queued for one in self._slot.engines))
        yield self._growth.since("flts_serve_batches_total", engine.batches)
        yield self._growth.since("flts_serve_batch_series_total", engine.batch_series)
        model = engine.model
        if model.version.isdigit():
            yield Reading("flts_serve_champion_version", float(model.version))
        if model.made_at is not None:
            yield Reading("flts_serve_champion_age_seconds", time.time() - model.made_at)


def _keeper(
    slot: ModelSlot,
    store: Store,
    source: ModelSource | None,
    limits: ServeConfig,
    watcher: Watcher,
) -> ChallengerKeeper | None:
    """None where no challenger is wanted: the registry is not even asked then."""
    wanted = limits.canary.shadow or limits.canary.share > 0
    if source is None or not wanted:
        return None
    dropped = Dropped(store, slot.name)
    return ChallengerKeeper(source, slot, dropped, limits.poll_s, watcher.models)
