"""A loaded champion, and the slot from which every request takes the one it uses.

Design choices: a request reads the slot once and keeps that engine to its end, so a swap is one
assignment and no answer mixes two versions; every engine has its own batcher, so no batch mixes
them either; all engines share one thread, because two of them on one core only wait for each
other, and calls of a moment need none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import numpy as np

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import Unavailable
from flts_ray.models.base import Fitted, Forecast
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import SeriesArrays, Windows
from flts_ray.serve.batcher import Batcher
from flts_ray.serve.challenge import belongs_to_challenger
from flts_ray.serve.history import calendar_of
from flts_ray.serve.load import Load
from flts_ray.serve.model_calls import ModelCalls
from flts_ray.serve.observe import Role

MOMENT_S = 0.02
"""Model calls up to here run in the event loop: a replica has one core, so a thread would only
take turns with it, which cost a sixth of the throughput of a network of 0.3 ms a series."""


class KnownSeries(Protocol):
    """The prepared data of a champion."""

    def series(self, ids: Sequence[str]) -> dict[str, SeriesArrays]:
        """Each named series alone. Raises DataError for an unknown name, Unavailable for data
        that cannot be read now."""
        ...


@dataclass(frozen=True)
class ServedModel:
    """A fitted model with its place in the registry; `known` is the data it was fitted on.

    `made_at` is when it was registered, in seconds since 1970; `run_id` the MLflow run that made
    it, "" where there is none.
    """

    name: str
    version: str
    digest: str
    fitted: Fitted
    known: KnownSeries | None = None
    made_at: float | None = None
    run_id: str = ""

    @cached_property
    def position(self) -> dict[str, int]:
        """Position of each series in `fitted.stats`."""
        return {name: i for i, name in enumerate(self.fitted.stats.ids)}

    @cached_property
    def series_of_target(self) -> dict[str, str]:
        """The known series that each target means, where it can mean only one."""
        known, targets = self.fitted.stats.ids, self.fitted.spec.contract.targets
        if len(targets) == len(known) == 1:
            return {targets[0]: known[0]}
        found = {
            target: [name for name in known if name == target or name.endswith(f"/{target}")]
            for target in targets
        }
        return {target: names[0] for target, names in found.items() if len(names) == 1}


class Engine:
    """A model and its batcher. Make it inside the event loop that serves it."""

    def __init__(
        self,
        model: ServedModel,
        limits: ServeConfig,
        thread: ThreadPoolExecutor,
        calls: ModelCalls,
    ) -> None:
        self.model = model
        self.role: Role = "champion"
        self._max_batch = limits.max_batch
        self._batcher = Batcher[Windows, Forecast](
            self._run,
            thread,
            weigh=len,
            max_weight=limits.max_batch,
            max_waiting=limits.max_queued_requests,
            max_wait_s=limits.max_wait_ms / 1e3,
            moment_s=MOMENT_S,
            calls=calls,
        )

    @property
    def queued(self) -> int:
        """Requests that wait for the model now."""
        return self._batcher.queued

    @property
    def waiting_since(self) -> float | None:
        """`time.monotonic()` when the first of them came, None without any."""
        return self._batcher.waiting_since

    @property
    def backlog_s(self) -> float:
        """About how long it takes until what waits now is done."""
        return self._batcher.backlog_s

    @property
    def batches(self) -> int:
        """Calls of the model since the start."""
        return self._batcher.batches

    @property
    def batch_series(self) -> int:
        """Series in all those calls."""
        return self._batcher.weight

    async def forecast(self, windows: Windows, deadline: float | None = None) -> Forecast:
        """Forecast one request's windows together with those of others.

        deadline: `time.monotonic()` after which the answer is worthless. Raises Expired then,
        and Overloaded when too many requests wait.
        """
        return await self._batcher.submit(windows, deadline)

    def _run(self, items: Sequence[Windows]) -> list[Forecast | Exception]:
        return forecast_each(self.model.fitted, items, self._max_batch)


class ModelSlot:
    """Holds the engine that new requests use; None until a champion is loaded."""

    def __init__(self, name: str, limits: ServeConfig) -> None:
        self.name = name
        self.limits = limits
        self.engine: Engine | None = None
        self.load = Load()
        self.calls = ModelCalls()
        self.challenger_failed: Callable[[ServedModel, str], None] = _unheard
        """Told of a challenger that failed where the champion did not, and of the error."""
        self._challenger: Engine | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    def install(self, model: ServedModel) -> None:
        """Serve this model from the next request on."""
        self.engine = Engine(model, self.limits, self._thread, self.calls)

    def install_challenger(self, model: ServedModel | None) -> None:
        """Hold this model beside the champion, or none."""
        if model is None:
            self._challenger = None
            return
        engine = Engine(model, self.limits, self._thread, self.calls)
        engine.role = "canary"
        self._challenger = engine

    @property
    def engines(self) -> list[Engine]:
        """The champion's and the challenger's, as far as they are there."""
        return [one for one in (self.engine, self._challenger) if one is not None]

    @property
    def champion(self) -> ServedModel | None:
        return None if self.engine is None else self.engine.model

    @property
    def challenger(self) -> ServedModel | None:
        return None if self._challenger is None else self._challenger.model

    def require(self) -> Engine:
        """The engine. Raises Unavailable that holds the command which makes a champion."""
        if self.engine is None:
            raise Unavailable(
                f"no champion of {self.name!r} is loaded; `flts train --config <file>` makes "
                "one, `flts status --config <file>` shows what is there"
            )
        return self.engine

    def engine_for(self, unique_id: str) -> Engine:
        """The engine that answers requests about this series. Raises like `require`."""
        champion, challenger = self.require(), self._challenger
        share = self.limits.canary.share
        if challenger is None or not belongs_to_challenger(unique_id, share):
            return champion
        return challenger

    def close(self) -> None:
        """Stop the thread; what waits for it fails."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _unheard(model: ServedModel, error: str) -> None:
    """Nobody keeps a challenger here."""


def forecast_each(
    fitted: Fitted, items: Sequence[Windows], max_batch: int
) -> list[Forecast | Exception]:
    """One forecast or exception for each item; the windows of all items run in few calls."""
    try:
        whole = _forecast_all(fitted, join_windows(items), max_batch)
    except Exception as error:  # noqa: BLE001 -- repeated one by one to find whose it is
        if len(items) == 1:
            return [error]
        return [result for item in items for result in forecast_each(fitted, [item], max_batch)]
    if len(items) == 1:
        return [whole]
    ends = accumulate(len(item) for item in items)
    return [_part(whole, end - len(item), end) for end, item in zip(ends, items, strict=True)]


def _forecast_all(fitted: Fitted, windows: Windows, max_batch: int) -> Forecast:
    if len(windows) <= max_batch:
        return fitted.forecast(windows)
    starts = range(0, len(windows), max_batch)
    parts = [fitted.forecast(windows.part(slice(at, at + max_batch))) for at in starts]
    return replace(
        parts[0],
        ids=windows.ids,
        origin_us=windows.origin_us,
        mean=np.concatenate([part.mean for part in parts]),
        quantiles=np.concatenate([part.quantiles for part in parts]),
    )


def _part(forecast: Forecast, begin: int, end: int) -> Forecast:
    return Forecast(
        forecast.ids[begin:end],
        forecast.origin_us[begin:end],
        forecast.levels,
        forecast.mean[begin:end],
        forecast.quantiles[begin:end],
    )


def join_windows(items: Sequence[Windows]) -> Windows:
    """Windows of the same model one after the other."""
    if len(items) == 1:
        return items[0]

    def joined(name: str) -> np.ndarray:
        parts = [getattr(item, name) for item in items]
        first = parts[0]
        if len(first) == 1 and all(part is first for part in parts):
            return first.repeat(len(parts), axis=0)
        return np.concatenate(parts)

    return Windows(
        contract=items[0].contract,
        ids=tuple(name for item in items for name in item.ids),
        origin_us=joined("origin_us"),
        y=joined("y"),
        observed=joined("observed"),
        past=joined("past"),
        future=joined("future"),
        static=joined("static"),
        scale=joined("scale"),
    )


def warm(model: ServedModel) -> None:
    """One forecast of a made-up window of the first known series.

    Pays for lazy imports and first-call set-up before the model meets a request; raises what
    the model raises.
    """
    spec, stats = model.fitted.spec, model.fitted.stats
    lookback, horizon, contract = spec.lookback, spec.task.horizon, spec.contract
    origin = np.array([1_700_000_000_000_000 // contract.frequency.step_us])
    origin = origin * contract.frequency.step_us
    stamps = steps_after(origin[:, None], np.arange(-lookback, horizon), contract)
    known = np.zeros((1, lookback + horizon, len(contract.known_future)), np.float32)
    wave = np.sin(2 * np.pi * np.arange(lookback) / max(contract.season, 2))
    windows = Windows(
        contract=contract,
        ids=stats.ids[:1],
        origin_us=origin,
        y=stats.mean[:1, None] + stats.std[:1, None] * wave,
        observed=np.ones((1, lookback), dtype=bool),
        past=np.zeros((1, lookback, len(contract.past)), np.float32),
        future=np.concatenate([calendar_of(stamps, contract), known], axis=-1),
        static=np.zeros((1, len(contract.static)), np.float32),
        scale=stats.scale[:1],
    )
    model.fitted.forecast(windows)
