"""Prophet's curve in NumPy: what a fitted Prophet predicts, without Prophet or Stan.

Design choices: every series has the same columns (a seasonality that a short series does not
have carries zero coefficients), so thousands of fitted series are a handful of arrays; times are
wall-clock, because people's habits follow the clock on the wall.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

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
    """Seasonal features of wall-clock instants: float64 [t, 2 * sum of orders]."""
    days = wall_us / US_PER_DAY
    columns = []
    for seasonality in seasonalities:
        angle = 2.0 * np.pi * days / seasonality.period
        for order in range(1, seasonality.order + 1):
            columns += [np.sin(order * angle), np.cos(order * angle)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(wall_us), 0))


def evaluate(
    curves: Curves,
    index: int,
    wall_us: np.ndarray,
    regressors: np.ndarray,
    seasonalities: tuple[Seasonality, ...],
    multiplicative: bool,
) -> np.ndarray:
    """Prophet's yhat of one series, in the input's units.

    wall_us: int64 [t], wall-clock microseconds; regressors: float64 [t, R], raw values.
    Returns float64 [t]. Piecewise linear trend plus (or times one plus) Fourier seasonality and
    linear regressors: Taylor & Letham, "Forecasting at Scale", The American Statistician, 2018.
    """
    t = (wall_us - curves.start_us[index]) / curves.span_us[index]
    trend = curves.k[index] * t + curves.m[index]
    for delta, at in zip(curves.delta[index], curves.changepoints[index], strict=True):
        if delta != 0.0:
            trend += delta * np.maximum(t - at, 0.0)
    scaled = (regressors - curves.regressor_mean[index]) / curves.regressor_std[index]
    effect = np.concatenate([fourier(wall_us, seasonalities), scaled], axis=1) @ curves.beta[index]
    value = trend * (1.0 + effect) if multiplicative else trend + effect
    return np.asarray(value * curves.y_scale[index])
