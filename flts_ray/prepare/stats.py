"""What is learned about one series: level, spread, error scale and clipping bounds.

Design choices: only observed values of the training span are read, so that nothing an origin
could not know shapes what a model sees; the values themselves are stored unclipped, because
models are judged on what really happened.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPREAD_FLOOR = 1e-3
RELATIVE_FLOOR = 1e-8
ABSOLUTE_FLOOR = 1e-12


@dataclass(frozen=True)
class TrainingStats:
    """Statistics of one series in the input's units; `scale` is positive."""

    mean: float
    std: float
    scale: float
    clip_lo: float
    clip_hi: float


def training_stats(
    y: np.ndarray, observed: np.ndarray, train_end: int, season: int, clip: float | None
) -> TrainingStats:
    """Statistics of the steps before `train_end`.

    y: float64 [steps]; observed: bool [steps], at least one True before `train_end`.
    scale: mean absolute difference of observed values one season apart (Hyndman & Koehler 2006,
    the denominator of MASE), the standard deviation where no two are; never below a thousandth
    of that deviation, because a series that repeats itself exactly would have no scale at all.
    clip: bounds lie this many 1-99 % ranges outside the 1st and 99th percentile; infinite for
    None and for a series that is constant between those percentiles, which would lose its peaks.
    """
    values, seen = y[:train_end], observed[:train_end]
    known = values[seen]
    std = float(known.std())
    least = RELATIVE_FLOOR * float(np.abs(known).max())
    floor = max(SPREAD_FLOOR * std, least, ABSOLUTE_FLOOR)
    low, high = _clip_bounds(known, clip)
    return TrainingStats(
        mean=float(known.mean()),
        std=std,
        scale=max(_seasonal_difference(values, seen, season, std), floor),
        clip_lo=low,
        clip_hi=high,
    )


def _seasonal_difference(y: np.ndarray, seen: np.ndarray, season: int, fallback: float) -> float:
    both = seen[season:] & seen[:-season]
    if not both.any():
        return fallback
    return float(np.abs(y[season:][both] - y[:-season][both]).mean())


def _clip_bounds(known: np.ndarray, clip: float | None) -> tuple[float, float]:
    low, high = np.percentile(known, [1, 99])
    if clip is None or low == high:
        return -np.inf, np.inf
    return float(low - clip * (high - low)), float(high + clip * (high - low))
