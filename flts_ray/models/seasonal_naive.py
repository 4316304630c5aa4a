"""Repeat the last season: the forecast every other model has to beat.

Design choices: the bands are the model's own errors on the validation span, by `calibrate`, so
that the baseline is honest about its uncertainty too; with too short a validation span its
errors on the training span serve as well, because nothing is fitted there to flatter them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flts_ray.errors import ConfigError, DataError
from flts_ray.models import calibrate
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
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, Windows, actuals_at, windows_at

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
    """The season's length is `spec.lookback`; `band` is in units of the series scale."""

    spec: ModelSpec
    stats: SeriesStats
    band: calibrate.ResidualQuantiles

    def forecast(self, windows: Windows) -> Forecast:
        """See `Fitted.forecast`; any series can be forecast."""
        season, task = self.spec.lookback, self.spec.task
        calibrate.check_lookback(windows, season)
        mean = seasonal_naive(windows.y, season, task.horizon)
        scale = calibrate.series_scale(windows.last(season), self.stats)
        rows = calibrate.known_rows(windows.ids, self.stats)
        quantiles = self.band.apply(mean, scale, rows)
        return Forecast(windows.ids, windows.origin_us, task.levels, mean, quantiles)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {}, self.band.arrays()


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
        actual = actuals_at(data, series, origins, task.horizon)
        mean, scale = np.empty_like(actual), np.empty(len(series))
        for part in calibrate.chunks(len(series)):
            windows = windows_at(data, series[part], origins[part], season, task.horizon)
            mean[part] = seasonal_naive(windows.y, season, task.horizon)
            scale[part] = calibrate.series_scale(windows, data.stats)
        band = calibrate.residual_quantiles(actual, mean, scale, series, task.levels)
        spec = ModelSpec(self.kind, task, season, data.contract, {**chosen, "season": season})
        loss = calibrate.scaled_pinball(actual, band.apply(mean, scale, series), scale, task.levels)
        error = np.abs(actual - mean) / scale[:, None]
        metrics = {"valid_loss": loss, "valid_mae": float(np.nanmean(error))}
        yield Progress(1, metrics, FittedSeasonalNaive(spec, data.stats, band))

    def refit(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> Fitted:
        """The model itself: nothing but the bands is learned, and those stay."""
        check_same_set(fitted, data)
        return fitted

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> FittedSeasonalNaive:
        """See `Forecaster.restore`."""
        return FittedSeasonalNaive(spec, stats, calibrate.ResidualQuantiles.from_arrays(arrays))


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
    """Validation origins, with the training origins where those are too few."""
    most = max(MIN_WINDOWS, min(MAX_WINDOWS, calibrate.MAX_SCORES // horizon))
    found = calibrate.sample_origins(data, "validation", season, horizon, most)
    if len(found[0]) < MIN_WINDOWS or calibrate.validation_is_short(data):
        training = calibrate.sample_origins(data, "train", season, horizon, most)
        found = np.concatenate([training[0], found[0]]), np.concatenate([training[1], found[1]])
    if len(found[0]) == 0:
        raise DataError(
            f"no series has a season of {season} steps and a horizon of {horizon} steps without "
            "a long gap; shorten task.season or task.horizon, or give longer series",
            field="season",
        )
    return found
