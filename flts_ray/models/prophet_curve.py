"""Prophet's curve in NumPy: what a fitted Prophet predicts, without Prophet or Stan.

Design choices: every series has the same columns (a seasonality that a short series does not
have carries zero coefficients), so thousands of fitted series are a handful of arrays and any
number of them is evaluated at once; times are wall-clock, because people's habits follow the
clock on the wall.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

US_PER_DAY = 86_400_000_000


@dataclass(frozen=True)
class Seasonality:
    """A Fourier seasonality: `period` in days, `order` pairs of sine and cosine."""

    name: str
    period: float
    order: int


@dataclass(frozen=True)
class Curves:
    """Fitted parameters of n series in Prophet's own scaling (Taylor & Letham 2018).

    start_us, span_us: [n] wall-clock start and length of the history in microseconds.
    y_scale, k, m: [n]. delta, changepoints: [n, C], zero-padded. beta: [n, K], seasonal
    coefficients (sine and cosine by order, seasonality by seasonality), then the regressors'.
    regressor_mean, regressor_std: [n, R].
    """

    start_us: np.ndarray
    span_us: np.ndarray
    y_scale: np.ndarray
    k: np.ndarray
    m: np.ndarray
    delta: np.ndarray
    changepoints: np.ndarray
    beta: np.ndarray
    regressor_mean: np.ndarray
    regressor_std: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def fourier(wall_us: np.ndarray, seasonalities: tuple[Seasonality, ...]) -> np.ndarray:
    """Seasonal features of wall-clock instants: float64 [2 * sum of orders, t]."""
    days = wall_us / US_PER_DAY
    waves = np.empty((2 * sum(s.order for s in seasonalities), len(days)))
    first = 0
    for seasonality in seasonalities:
        after = first + 2 * seasonality.order
        turns = np.arange(1, seasonality.order + 1)[:, None]
        angles = turns * (2.0 * np.pi * days / seasonality.period)
        np.sin(angles, out=waves[first:after:2])
        np.cos(angles, out=waves[first + 1 : after : 2])
        first = after
    return waves


def evaluate(
    curves: Curves,
    rows: np.ndarray,
    wall_us: np.ndarray,
    regressors: np.ndarray,
    seasonalities: tuple[Seasonality, ...],
    multiplicative: bool,
) -> np.ndarray:
    """Prophet's yhat of n curves at t instants each, in the input's units: float64 [n, t].

    rows: int [n], which series; wall_us: int64 [n, t], wall-clock microseconds; regressors:
    [n, t, R], raw values. Piecewise linear trend plus (or times one plus) Fourier seasonality and
    linear regressors: Taylor & Letham, "Forecasting at Scale", The American Statistician, 2018.
    """
    trend = _trend(curves, rows, wall_us)
    width = curves.beta.shape[1] - regressors.shape[2]
    effect = _seasonal(curves.beta[:, :width], rows, wall_us, seasonalities)
    for column in range(regressors.shape[2]):
        mean, std = curves.regressor_mean[rows, column], curves.regressor_std[rows, column]
        scaled = (regressors[..., column] - mean[:, None]) / std[:, None]
        effect += curves.beta[rows, width + column, None] * scaled
    value = trend * (1.0 + effect) if multiplicative else trend + effect
    return np.asarray(value * curves.y_scale[rows, None])


def _trend(curves: Curves, rows: np.ndarray, wall_us: np.ndarray) -> np.ndarray:
    t = (wall_us - curves.start_us[rows, None]) / curves.span_us[rows, None]
    delta, at = curves.delta[rows], curves.changepoints[rows]
    # After the last change, where forecasts are, the trend is one line.
    late = t.min(axis=1, initial=np.inf) >= at.max(axis=1, initial=0.0)
    slope = curves.k[rows] + np.where(late, delta.sum(axis=1), 0.0)
    level = curves.m[rows] - np.where(late, (delta * at).sum(axis=1), 0.0)
    trend = slope[:, None] * t + level[:, None]
    early = np.flatnonzero(~late)
    if len(early):
        t, delta, at = t[early], delta[early], at[early]
        for change in np.flatnonzero(delta.any(axis=0)):
            trend[early] += delta[:, change, None] * np.maximum(t - at[:, change, None], 0.0)
    return np.asarray(trend)


def _seasonal(
    beta: np.ndarray,
    rows: np.ndarray,
    wall_us: np.ndarray,
    seasonalities: tuple[Seasonality, ...],
) -> np.ndarray:
    """Sum of the seasonal columns, [n, t]; windows share instants, each is evaluated once."""
    found = np.zeros(wall_us.shape)
    if not wall_us.size:
        return found
    at: Any = slice(None)
    instants, shape = wall_us[0], (1, wall_us.shape[1])
    if len(rows) > 1 and not (wall_us == wall_us[0]).all():
        instants, at = np.unique(wall_us, return_inverse=True)
        shape = wall_us.shape
    waves = fourier(instants, seasonalities)
    # Summed column by column: a product of matrices would round by the shape of the batch.
    if len(rows) == 1:
        return np.asarray(found + np.add.reduce(beta[rows[0], :, None] * waves, axis=0))
    for column, wave in enumerate(waves):
        found += beta[rows, column, None] * wave[at].reshape(shape)
    return found
