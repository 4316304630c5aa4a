"""Forecasts of several models for the same windows, side by side, and what a mixture loses.

Design choices: mixtures are weighted sums of stored forecasts, so thousands of them cost no model
a second forecast; weights sum to one, so a mixture's error is the mixture of errors, and those
are kept once, in units of the series and in float32, with only the columns that the score reads;
losses are sums over windows, so one pass gives them for every series at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flts_ray.config import Score
from flts_ray.evaluate.backtest import Backtest, Origins, backtest
from flts_ray.models.base import Fitted
from flts_ray.models.calibrate import series_scale
from flts_ray.prepare.arrays import SeriesArrays, windows_at


@dataclass(frozen=True)
class Bench:
    """n windows of M models.

    backtests: one a model, on the same origins. scale: float64 [n], positive, of each window.
    series_scale: float64 [S], `SeriesStats.scale` of the set the origins point into.
    """

    names: tuple[str, ...]
    backtests: tuple[Backtest, ...]
    scale: np.ndarray
    series_scale: np.ndarray

    @property
    def origins(self) -> Origins:
        return self.backtests[0].origins

    @property
    def origin_us(self) -> np.ndarray:
        return self.backtests[0].origin_us

    def __len__(self) -> int:
        return len(self.backtests[0])

    def mixed(self, weights: np.ndarray, mean_weights: np.ndarray | None = None) -> Backtest:
        """The forecasts of a mixture of quantiles and (with the same weights if None) of means.

        Weights: float64 [M], or [n, M] for one row a window.
        """
        shape = (len(self), len(self.names))
        level = np.broadcast_to(weights, shape)
        centre = level if mean_weights is None else np.broadcast_to(mean_weights, shape)
        first = self.backtests[0]
        mean, quantiles = np.zeros_like(first.mean), np.zeros_like(first.quantiles)
        for number, one in enumerate(self.backtests):
            if centre[:, number].any():
                mean += centre[:, number, None] * one.mean
            if level[:, number].any():
                quantiles += level[:, number, None, None] * one.quantiles
        return replace(first, mean=mean, quantiles=quantiles)


def bench_of(members: Mapping[str, Fitted], data: SeriesArrays, origins: Origins) -> Bench:
    """Forecast the origins with every model. Raises DataError as `backtest` does."""
    horizon = next(iter(members.values())).spec.task.horizon
    windows = windows_at(data, origins.series, origins.positions, 1, horizon)
    return Bench(
        tuple(members),
        tuple(backtest(fitted, data, origins) for fitted in members.values()),
        series_scale(windows, data.stats),
        data.stats.scale,
    )


@dataclass(frozen=True)
class Errors:
    """What a score reads of a bench, for windows that mixtures are chosen on.

    values: float32 [M, n, H, C], forecasts minus what happened over the scale of the window,
    zero where nothing was observed; C is the mean, the median, both, or all levels.
    units: float64 [n, k], turns the sums of k losses into the units of the score.
    observed: int64 [n].
    """

    score: Score
    levels: np.ndarray
    values: np.ndarray
    units: np.ndarray
    observed: np.ndarray

    @classmethod
    def of(cls, bench: Bench, score: Score, *, scaled: bool = False) -> Errors:
        """scaled: squared errors of `rmse` in units of the series, so that all count alike."""
        first = bench.backtests[0]
        known = np.isfinite(first.actual)
        values = [
            np.where(known[..., None], _columns(one, score) - first.actual[..., None], 0.0)
            / bench.scale[:, None, None]
            for one in bench.backtests
        ]
        over = bench.scale / bench.series_scale[bench.origins.series]
        units = {
            "rmse": [over**2 if scaled else bench.scale**2],
            "composite": [over**2, over],
            "scaled_pinball": [over],
            "mase": [over],
        }.get(score, [bench.scale])
        return cls(
            score,
            np.asarray(first.levels, np.float32),
            np.stack(values).astype(np.float32),
            np.stack(units, axis=1),
            known.sum(axis=1),
        )

    def part(self, rows: np.ndarray) -> Errors:
        """The windows of these rows, bool [n]; all of them without a copy."""
        if rows.all():
            return self
        return replace(
            self,
            values=self.values[:, rows],
            units=self.units[rows],
            observed=self.observed[rows],
        )

    @cached_property
    def window_numbers(self) -> np.ndarray:
        return np.arange(self.values.shape[1])

    def loss(self, error: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
        """Of the mixture with these errors [n, H, C], in each group of windows: float64 [groups].

        Orders mixtures as the score does; group: int [n], from 0.
        """
        sums = self._sums(error) * self.units
        count = np.maximum(np.bincount(group, self.observed, groups), 1)
        mean = [np.bincount(group, column, groups) / count for column in sums.T]
        if self.score == "composite":
            return 0.5 * np.sqrt(mean[0]) + 0.3 * mean[1] + 0.2 * mean[0]
        return mean[0]

    def _sums(self, error: np.ndarray) -> np.ndarray:
        """Losses of each window summed over its steps, float64 [n, k]."""
        if self.score == "rmse":
            found = [np.square(error[..., 0]).sum(axis=1)]
        elif self.score == "composite":
            found = [np.square(error[..., 0]).sum(axis=1), np.abs(error[..., 1]).sum(axis=1)]
        elif self.score in ("scaled_pinball", "pinball"):
            # max(q e, (q - 1) e) for e = actual - forecast, which is minus the error here.
            above = np.maximum(error, 0.0).sum(axis=(1, 2))
            found = [(above - error.sum(axis=1) @ self.levels) / len(self.levels)]
        else:
            found = [np.abs(error[..., 0]).sum(axis=1)]
        return np.stack(found, axis=1).astype(np.float64)


def _columns(bt: Backtest, score: Score) -> np.ndarray:
    """Forecasts that a score reads, float64 [n, H, C]."""
    if score in ("scaled_pinball", "pinball"):
        return bt.quantiles
    columns = {"rmse": [bt.mean], "composite": [bt.mean, bt.median]}.get(score, [bt.median])
    return np.stack(columns, axis=-1)
