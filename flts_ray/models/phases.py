"""How large errors are at each phase of the season: nights are quieter than evenings.

Design choices: one profile for all series, because it is the clock that they share; it is told by
cycles of the season, not by windows, because errors of one evening go together over windows and
over series, and is shrunk towards an even one by as many of them; neighbouring phases are averaged
where a season has many.
"""

from __future__ import annotations

import numpy as np

from flts_ray.panel import to_local_us
from flts_ray.prepare.arrays import Windows

PRIOR_SIZE = 0.25
"""Standard deviation that the logarithm of an error's size at one phase is expected to have."""
ONE_CYCLE = np.pi / 2 - 1
"""Squared coefficient of variation of the absolute value of one normal error."""
NEIGHBOURS = 48
"""Phases that are told apart, about: a season has one neighbour on each side for as many steps."""
BOUND = 20.0
"""Quiet and wild phases count as at most so many times quieter or wilder."""


def phase_of(windows: Windows) -> np.ndarray:
    """Phase of the season, on the local clock, of the first step to forecast: int64 [n]."""
    contract = windows.contract
    local = to_local_us(windows.origin_us, contract.time_zone)
    return np.asarray(local // contract.frequency.step_us % contract.season)


def at_steps(phases: np.ndarray, phase: np.ndarray, horizon: int) -> np.ndarray:
    """What the width of each step is multiplied by: float64 [n, H], or [n, 1] without phases.

    phases: float64 [season] of `fit_phases`, or empty; phase: int64 [n] of `phase_of`.
    """
    if not len(phases):
        return np.ones((len(phase), 1))
    at = (phase[:, None] + np.arange(horizon)) % len(phases)
    return np.asarray(np.exp(phases)[at])


def fit_phases(error: np.ndarray, phase: np.ndarray, season: int, cycles: float) -> np.ndarray:
    """Logarithm of the size of errors at each phase against all: float64 [season].

    error: [n, H], absolute and scaled, NaN where not observed; phase: int64 [n]; cycles: seasons
    that the windows span. Each step of the horizon is in units of its own mean.
    """
    seen = np.isfinite(error)
    filled = np.where(seen, error, 0.0)
    typical = filled.sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    relative = filled / np.maximum(typical, 1e-300)
    at = ((phase[:, None] + np.arange(error.shape[1])) % season).ravel()
    total = _smoothed(np.bincount(at, relative.ravel(), season))
    count = _smoothed(np.bincount(at, seen.ravel().astype(float), season))
    if not count.any():
        return np.zeros(season)
    told, prior = np.minimum(count, cycles), ONE_CYCLE / PRIOR_SIZE**2
    size = (told * total / np.maximum(count, 1) + prior) / (told + prior)
    size = size / float((size * count).sum() / count.sum())
    return np.log(np.clip(size, 1 / BOUND, BOUND))


def _smoothed(values: np.ndarray) -> np.ndarray:
    near = len(values) // NEIGHBOURS
    around = [np.roll(values, by) for by in range(-near, near + 1)]
    return np.asarray(np.mean(around, axis=0) * len(around))
