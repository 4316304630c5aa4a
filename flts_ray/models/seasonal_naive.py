"""Repeat the last season: the forecast every other model has to beat.

Design choices: the bands are the model's own errors (`bands.py`), so that the baseline is honest
about its uncertainty too; its errors on the training span serve beside those on validation,
because nothing is fitted there to flatter them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from flts_ray.errors import ConfigError, DataError
from flts_ray.models import calibrate
from flts_ray.models.bands import Scored, fit_bands, scored, width_of
from flts_ray.models.base import (
    Compute,
    Fitted,
    Forecast,
    ModelSpec,
    Progress,
    Task,
    check_same_set,
    resolve_params,
)
from flts_ray.models.follow import followed, with_bands
from flts_ray.models.memory import Memory, split_memory, stored
from flts_ray.models.news import learned, news_of
from flts_ray.models.support import floored
from flts_ray.models.volatility import Volatility, signs_of
from flts_ray.prepare.arrays import (
    SeriesArrays,
    SeriesStats,
    Windows,
    actuals_at,
    widened,
    windows_at,
)

MIN_WINDOWS = 30
MAX_WINDOWS = 20_000


def seasonal_naive(history: np.ndarray, season: int, horizon: int) -> np.ndarray:
    """Repeat the last full season.

    history: [n, time] in the input's units, at least `season` long. Returns [n, horizon].
    Hyndman & Athanasopoulos, Forecasting: Principles and Practice, 3rd ed., 5.2.
    """
    return history[:, np.arange(horizon) % season + history.shape[1] - season]


@dataclass
class FittedSeasonalNaive:
    """The season's length is `spec.lookback`; `band` is in units of what `volatility` says."""

    spec: ModelSpec
    stats: SeriesStats
    volatility: Volatility
    band: calibrate.ResidualQuantiles
    memory: Memory | None = None

    def forecast(self, windows: Windows) -> Forecast:
        """See `Fitted.forecast`; any series can be forecast."""
        mean, quantiles, _ = self._banded(windows)
        return floored(self.spec, windows, mean, quantiles)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {}, {**self.volatility.arrays(), **self.band.arrays(), **stored(self.memory)}

    def served(self, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
        """Quantiles and the scale of their bands; see `recent_scores.Ask`."""
        return self._banded(windows)[1:]

    def _banded(self, windows: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, quantiles and the scale of their bands."""
        season = self.spec.lookback
        calibrate.check_lookback(windows, season)
        mean = seasonal_naive(windows.y, season, self.spec.task.horizon)
        width = width_of(windows.last(season), self.stats, self.volatility)
        rows = calibrate.known_rows(windows.ids, self.stats)
        return mean, self.band.apply(mean, width, rows), width


class SeasonalNaive:
    """`season`: steps to look back; None takes the contract's season."""

    kind = "seasonal_naive"
    iterative = False
    defaults: Mapping[str, Any] = {"season": None}

    def fit(
        self, data: SeriesArrays, task: Task, params: Mapping[str, Any], compute: Compute
    ) -> Iterator[Progress]:
        """Calibrate the bands; yields once with the scaled loss of the calibration windows."""
        chosen = resolve_params(self, params)
        season = _season(chosen["season"], data)
        series, origins = _calibration_origins(data, season, task.horizon)
        windows = _forecast(data, season, task.horizon, series, origins)
        signs = signs_of(data.contract.season, season, task.horizon)
        bands = fit_bands(windows, signs, task.levels, data.n_series, data.contract.season)
        spec = ModelSpec(self.kind, task, season, data.contract, {**chosen, "season": season})
        held = origins >= data.train_end[series]
        judged = windows.at(held) if held.any() else windows
        loss = bands.loss(judged, task.levels)
        metrics = {"valid_loss": loss, "valid_mae": float(np.nanmean(judged.error))}
        memory = Memory.of(data, task)
        fitted = FittedSeasonalNaive(spec, data.stats, bands.volatility, bands.band, memory)
        yield Progress(1, metrics, fitted)

    def refit(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> Fitted:
        """The model itself: nothing but the bands is learned, and those stay."""
        check_same_set(fitted, data)
        return fitted

    def update(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> FittedSeasonalNaive:
        """Bands follow the new windows; nothing else is learned. See `Updater.update`."""
        assert isinstance(fitted, FittedSeasonalNaive)
        news = news_of(fitted, data)
        if news is None:
            return fitted
        found = learned(fitted, news, fitted.served, own=True, bands=compute.bands)
        return replace(with_bands(fitted, found), stats=news.stats)

    def follow(self, fitted: Fitted, data: SeriesArrays) -> FittedSeasonalNaive:
        """See `Follower.follow`."""
        assert isinstance(fitted, FittedSeasonalNaive)
        return followed(fitted, data, fitted.served, with_bands, own=True)

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> FittedSeasonalNaive:
        """See `Forecaster.restore`."""
        arrays, memory = split_memory(arrays, stats, spec.task)
        band = calibrate.ResidualQuantiles.from_arrays(arrays)
        return FittedSeasonalNaive(spec, stats, Volatility.from_arrays(arrays), band, memory)


def _season(value: Any, data: SeriesArrays) -> int:
    if value is None:
        return data.contract.season
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"models.seasonal_naive.params.season: {value!r} is no whole number of steps from 1"
        )
    return value


def _calibration_origins(
    data: SeriesArrays, season: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """Origins of the training and the validation span together."""
    most = max(MIN_WINDOWS, min(MAX_WINDOWS, calibrate.MAX_SCORES // horizon))
    series, origins = calibrate.sample_origins(widened(data), "train", season, horizon, most)
    if len(series) == 0:
        raise DataError(
            f"no series has a season of {season} steps and a horizon of {horizon} steps without "
            "a long gap; shorten task.season or task.horizon, or give longer series",
            field="season",
        )
    return series, origins


def _forecast(
    data: SeriesArrays, season: int, horizon: int, series: np.ndarray, origins: np.ndarray
) -> Scored:
    signs = signs_of(data.contract.season, season, horizon)
    actual = actuals_at(data, series, origins, horizon)
    parts = []
    for part in calibrate.chunks(len(series)):
        windows = windows_at(data, series[part], origins[part], season, horizon)
        mean = seasonal_naive(windows.y, season, horizon)
        where = series[part], origins[part]
        parts.append(scored(windows, data.stats, signs, actual[part], mean, *where))
    return reduce(add, parts)
