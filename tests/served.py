"""A transparent model for tests of serving, and requests for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.base import Forecast, ModelSpec, Task
from flts_ray.panel import Contract, steps_after
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, Windows
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.history import calendar_of, stamps_text
from tests.synthetic import CALENDAR, START_US, seasonal_set

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
LOOKBACK, HORIZON = 24, 6
TASK = Task(HORIZON, LEVELS)


@dataclass
class Transparent:
    """mean = the last value plus the known-future value of the step plus `shift`.

    Quantile q is the mean plus q; windows named in `refused` raise.
    """

    spec: ModelSpec
    stats: SeriesStats
    shift: float = 0.0
    refused: tuple[str, ...] = ()
    seen: list[Windows] | None = None

    def forecast(self, windows: Windows) -> Forecast:
        if self.seen is not None:
            self.seen.append(windows)
        refused = set(self.refused) & set(windows.ids)
        if refused:
            raise DataError(f"unique_id: {sorted(refused)} refused", field="unique_id")
        known = windows.future[:, -HORIZON:, len(windows.contract.calendar) :].sum(axis=-1)
        mean = windows.y[:, -1:] + known.astype(np.float64) + self.shift
        quantiles = mean[..., None] + np.asarray(LEVELS)
        return Forecast(windows.ids, windows.origin_us, LEVELS, mean, quantiles)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {}, {}


def transparent(
    contract: Contract, ids: Sequence[str] = ("s0", "s1"), lookback: int = LOOKBACK, **about: Any
) -> Transparent:
    n = len(ids)
    stats = SeriesStats(
        tuple(ids),
        mean=np.full(n, 5.0),
        std=np.ones(n),
        scale=np.arange(1.0, n + 1),
        clip_lo=np.full(n, -100.0),
        clip_hi=np.full(n, 100.0),
    )
    return Transparent(ModelSpec("transparent", TASK, lookback, contract), stats, **about)


def plain_contract(**changes: Any) -> Contract:
    """Hourly, one target, calendar only."""
    return replace(Contract(freq="1h", season=24, calendar=CALENDAR, max_gap=3), **changes)


def served(
    fitted: Any, version: str = "1", known: Any = None, digest: str | None = None
) -> ServedModel:
    return ServedModel("demo", version, digest or f"digest{version}", fitted, known)


class KnownSet:
    """A prepared set in memory."""

    def __init__(self, data: SeriesArrays) -> None:
        self.data = data

    def series(self, ids: Sequence[str]) -> dict[str, SeriesArrays]:
        return {name: self.data.take([self.data.ids.index(name)]) for name in ids}


def true_calendar(data: SeriesArrays) -> SeriesArrays:
    """The set with the calendar columns that its stamps really have."""
    future = data.future.copy()
    for i in range(data.n_series):
        rows = data.rows(i)
        stamps = steps_after(
            data.start_us[i : i + 1], np.arange(rows.stop - rows.start), data.contract
        )
        future[rows, : len(data.contract.calendar)] = calendar_of(stamps, data.contract)
    return replace(data, future=future)


def known_set(**about: Any) -> SeriesArrays:
    return true_calendar(seasonal_set(length=200, **about))


def stamps(count: int, start_us: int = START_US, step_us: int = 3_600_000_000) -> list[str]:
    return stamps_text(start_us + step_us * np.arange(count))


def history(count: int = 30, **changes: Any) -> dict[str, Any]:
    """A request for one hourly series without covariates."""
    return {"ds": stamps(count), "y": [float(i) for i in range(count)], **changes}
