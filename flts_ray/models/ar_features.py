"""What the linear model sees of a window.

Design choices: values enter as deviations from the last value, so a change of level changes
nothing; everything made of values is linear in them and folds into one matrix per fit, so a
forecast is a product; recent lags are dense, older ones are those a whole number of seasons
before the target, alone and averaged with their neighbours; cycles of the calendar get harmonics,
so a sine and a cosine of the weekday can tell all seven days; known covariates enter at the
target, a season before it and at the last step, with their squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flts_ray.prepare.arrays import Windows

HARMONICS = 4
"""Harmonics of a cycle of the calendar; a weekday needs three, a day of the year gets one."""


@dataclass(frozen=True)
class Layout:
    """Which features there are.

    lags: steps before the origin, 2 and more (lag 1 is the reference); seasons: how many seasonal
    lags; lookback, horizon, season: steps; calendar: names of the calendar columns (empty where
    the features have none), of which only those in `shown` count.
    center, spread: float64 [K], training mean and deviation of each known covariate.
    """

    lags: tuple[int, ...]
    seasons: int
    lookback: int
    horizon: int
    season: int
    calendar: tuple[str, ...]
    center: np.ndarray
    spread: np.ndarray
    shown: tuple[str, ...] = ()

    @property
    def aligned(self) -> np.ndarray:
        """History position of each seasonal lag, int64 [H, seasons], -1 where there is none.

        The first lag of a step is the nearest whole season that lies before the origin.
        """
        step = np.arange(self.horizon)[:, None]
        back = (step // self.season + 1 + np.arange(self.seasons)) * self.season
        return np.maximum(self.lookback + step - back, -1)


def deviations(y: np.ndarray) -> np.ndarray:
    """Values less the last one: float64 [n, L]."""
    return y - y[:, -1:]


def shared_features(values: np.ndarray, layout: Layout) -> np.ndarray:
    """Features of all steps, linear in `values` [n, L]: lags and the window's mean, [n, d]."""
    lags = values[:, layout.lookback - np.asarray(layout.lags, dtype=np.int64)]
    return np.concatenate([lags, values.mean(axis=1, keepdims=True)], axis=1)


def seasonal_features(values: np.ndarray, layout: Layout) -> np.ndarray:
    """Seasonal lags of each step, linear in `values` [n, L]: float64 [n, H, v]."""
    at = layout.aligned
    plain = np.where(at >= 0, values[:, at], 0.0)
    half = layout.season // 48
    if half == 0 or layout.seasons == 0:
        return plain
    before = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, layout.lookback)
    high = np.maximum(high, low + 1)
    smooth = (before[:, high] - before[:, low]) / (high - low)
    return np.concatenate([plain, np.where(at >= 0, smooth, 0.0)], axis=2)


def future_features(windows: Windows, layout: Layout) -> np.ndarray:
    """Calendar, then known covariates of each step: float64 [n, H, r], no NaN.

    The windows reach back `layout.lookback` steps.
    """
    future = windows.future.astype(np.float64)
    split = len(windows.contract.calendar)
    columns = [np.zeros((len(windows), layout.horizon, 0))]
    if layout.calendar:
        told = np.asarray([name in layout.shown for name in layout.calendar], dtype=np.float64)
        columns = [_harmonics(future[:, layout.lookback :, :split] * told, layout.calendar)]
    if future.shape[2] > split:
        known = np.nan_to_num((future[..., split:] - layout.center) / layout.spread)
        known = np.concatenate([known, known**2], axis=2)
        nearest = np.arange(layout.horizon) % layout.season + layout.lookback - layout.season
        before = np.where((nearest >= 0)[:, None], known[:, np.maximum(nearest, 0)], 0.0)
        last = np.broadcast_to(known[:, layout.lookback - 1, None], before.shape)
        columns += [known[:, layout.lookback :], before, last]
    return np.concatenate(columns, axis=2)


def calendar_width(layout: Layout) -> int:
    """How many of the first future features come from the calendar."""
    empty = np.zeros((1, 1, len(layout.calendar)))
    return int(_harmonics(empty, layout.calendar).shape[2])


def _harmonics(columns: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Columns [n, H, C] with multiples of the angle for each `x_sin`, `x_cos` pair."""
    found = [columns]
    for name in names:
        cosine = name.removesuffix("_sin") + "_cos"
        if not name.endswith("_sin") or cosine not in names or name.startswith("year"):
            continue
        turn = columns[..., names.index(cosine)] + 1j * columns[..., names.index(name)]
        highest = 3 if name.startswith("week") else HARMONICS
        for power in range(2, highest + 1):
            wave = turn**power
            found.append(np.stack([wave.real, wave.imag], axis=2))
    return np.concatenate(found, axis=2)
