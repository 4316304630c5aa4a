"""A model's forecasts of many series cut to what was asked.

Design choices: numbers are laid level by level, as columns of an answer want them, in one copy;
whether every number is finite is told by a sum, and looked for one by one only where it is not.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flts_ray.models.base import Forecast
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.predictor import Made


def made_of_many(
    forecast: Forecast, horizon: int, levels: tuple[float, ...], model: ServedModel
) -> Made:
    """What `predictor.made_of` makes of it, finite or not: `finite_rows` tells.

    `quantiles` is [n, Q, H] with the memory of [Q, n, H]. Raises DataError for a level outside
    those of the model.
    """
    laid = _by_level(replace(forecast, quantiles=forecast.quantiles[:, :horizon]), levels)
    return Made(
        ids=forecast.ids,
        origin_us=forecast.origin_us,
        levels=levels,
        mean=np.ascontiguousarray(forecast.mean[:, :horizon]),
        median=laid[-1],
        quantiles=laid[:-1].transpose(1, 0, 2),
        cold=[name not in model.position for name in forecast.ids],
    )


def _by_level(cut: Forecast, levels: tuple[float, ...]) -> np.ndarray:
    """float64 [Q + 1, n, H] at these levels, then the median; those that the model has are read,
    not interpolated."""
    wanted = (*levels, 0.5)
    if not set(wanted) <= set(cut.levels):
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ascontiguousarray(cut.at(wanted).transpose(2, 0, 1))
    laid = np.empty((len(wanted), *cut.quantiles.shape[:2]))
    for row, level in enumerate(wanted):
        laid[row] = cut.quantiles[:, :, cut.levels.index(level)]
    return laid


def finite_rows(forecast: Forecast, made: Made) -> np.ndarray | None:
    """Which series have finite numbers only, cut and uncut, bool [n]; None where all have."""
    every = [forecast.mean, forecast.quantiles]
    if not set(made.levels) <= set(forecast.levels):
        every.append(made.quantiles)  # interpolation may overflow
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(sum(values.sum() for values in every)):
            return None
    finite = np.ones(len(forecast.ids), dtype=bool)
    for values in every:
        finite &= np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return None if finite.all() else finite
