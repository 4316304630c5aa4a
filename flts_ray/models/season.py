"""Repeating the season, as linear coefficients that ridge regressions are shrunk to."""

from __future__ import annotations

import numpy as np

POWERS = (0.0, 1.0, 2.0)
"""The penalty of a lag grows with its age to this power."""
DECAYS = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)
"""Weight of a cycle relative to the next newer one; 0: nothing is repeated."""


def seasonal_prior(lags: int, horizon: int, season: int, decay: float) -> np.ndarray:
    """Coefficients of the last `lags` values, newest first, for each step: float64 [lags, H].

    The exponentially weighted mean of the same phase in earlier cycles: the weights fall by
    `decay` and sum to one. Zero everywhere for a decay of 0, and where no whole cycle fits.
    """
    prior = np.zeros((lags, horizon))
    for step in range(horizon if decay else 0):
        first = (step // season + 1) * season - step
        at = np.arange(first, lags + 1, season)
        weights = decay ** np.arange(len(at))
        prior[at - 1, step] = weights / max(weights.sum(), 1.0)
    return prior
