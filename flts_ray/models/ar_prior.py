"""Linear maps over a long history, shrunk towards repeating its season.

Design choices: every lag of the lookback counts, and what keeps them in check is a ridge penalty
that grows with the age of a lag and pulls not to zero but to a seasonal prior, the exponentially
weighted mean of the same phase in earlier cycles (a conjugate Gaussian prior; Hoerl & Kennard
1970, and Doan, Litterman & Sims 1984 for penalties by lag); the whole grid of penalties and priors
is scored on sums of products of the validation windows, without another pass over them, and one
eigendecomposition serves all priors and penalties of one power of the age; there is no intercept
and no calendar, because what drifted in one year of training need not drift on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flts_ray.models.ar_features import Layout, calendar_width
from flts_ray.models.ar_map import LinearMap
from flts_ray.models.ridge import Coefficients, Moments, Ridge, reciprocal, squared_errors
from flts_ray.models.season import DECAYS, POWERS, seasonal_prior

PENALTIES = tuple(float(penalty) for penalty in np.logspace(-4.0, 2.0, 10))
"""In units of the mean variance of the lags; with powers and decays, 180 settings."""


@dataclass(frozen=True)
class Shrinkage:
    """One setting. `borrowed`: weight of the other series' windows in a map of one series."""

    power: float
    decay: float
    penalty: float
    borrowed: float = 0.0

    def row(self) -> list[float]:
        return [self.power, self.decay, self.penalty, self.borrowed]

    @classmethod
    def of_row(cls, row: Sequence[float]) -> Shrinkage:
        return cls(*(float(value) for value in row))


def long_layout(layout: Layout, reach: int) -> Layout:
    """The features of these maps: every lag up to `reach` and the known covariates."""
    dense = tuple(range(2, reach + 1))
    return replace(layout, lags=dense, seasons=0, lookback=reach, calendar=(), shown=())


def prior_of(layout: Layout, decay: float) -> np.ndarray:
    """Coefficients of the shared features that repeat the season: float64 [d, H].

    Without lag 1, the reference, whose deviation is zero; nothing for the mean of the window.
    """
    prior = seasonal_prior(layout.lookback, layout.horizon, layout.season, decay)
    return np.concatenate([prior[1:], np.zeros((1, layout.horizon))])


def choose_shrinkage(
    training: Moments, valid: Moments, layout: Layout
) -> tuple[Shrinkage, Coefficients]:
    """The setting with the smallest mean squared error on validation, and its fit."""
    tried = (
        (squared_errors(valid, fit).mean(), setting, fit)
        for setting, fit in _all_fits(training, layout)
    )
    _, setting, fit = min(tried, key=lambda one: one[0])
    return setting, fit


def choose_borrowed(
    variants: Sequence[tuple[float, Moments]], valid: Moments, layout: Layout, pooled: Shrinkage
) -> tuple[Shrinkage, Coefficients]:
    """Penalty and borrowed weight of one series' map; all else is as in the pooled one.

    variants: weight of the other series' windows and the moments that it gives.
    """
    tried = []
    for weight, moments in variants:
        for penalty, fit in zip(PENALTIES, _fits(moments, layout, pooled, PENALTIES), strict=True):
            setting = replace(pooled, penalty=penalty, borrowed=weight)
            tried.append((squared_errors(valid, fit).mean(), setting, fit))
    _, setting, fit = min(tried, key=lambda one: one[0])
    return setting, fit


def shrunk_fit(moments: Moments, layout: Layout, setting: Shrinkage) -> Coefficients:
    """The fit of one setting."""
    return _fits(moments, layout, setting, [setting.penalty])[0]


def folded(fit: Coefficients, layout: Layout) -> LinearMap:
    """The same fit as one matrix from history to horizon, with the future features of `layout`."""
    values = np.zeros((len(fit.shared), layout.horizon))
    # Dense lags, newest first, end one step before the reference.
    values[:-1] = fit.shared[:-1][::-1]
    future = np.pad(fit.step, ((0, 0), (calendar_width(layout), 0)))
    return LinearMap(values, future, fit.bias)


def _all_fits(moments: Moments, layout: Layout) -> Iterator[tuple[Shrinkage, Coefficients]]:
    priors = {decay: prior_of(layout, decay) for decay in DECAYS}
    for power in POWERS:
        ridge = _ridge(moments, layout, power)
        penalties = [penalty * ridge.variance for penalty in PENALTIES]
        for decay, prior in priors.items():
            fits = ridge.fits(penalties, _every(moments), prior)
            for penalty, fit in zip(PENALTIES, fits, strict=True):
                yield Shrinkage(power, decay, penalty), fit


def _fits(
    moments: Moments, layout: Layout, setting: Shrinkage, penalties: Sequence[float]
) -> list[Coefficients]:
    ridge = _ridge(moments, layout, setting.power)
    prior = prior_of(layout, setting.decay)
    scaled = [penalty * ridge.variance for penalty in penalties]
    return ridge.fits(scaled, _every(moments), prior)


def _every(moments: Moments) -> np.ndarray:
    return np.ones(moments.step.shape[1], dtype=bool)


def _ridge(moments: Moments, layout: Layout, power: float) -> Ridge:
    # Without an intercept: a drift that all training windows share is not taken for a law.
    return Ridge(moments, _ages(moments, layout, power), intercept=False)


def _ages(moments: Moments, layout: Layout, power: float) -> np.ndarray:
    """What multiplies each shared feature; the mean of the window is left out."""
    by_age = np.asarray(layout.lags, dtype=np.float64) ** (-power / 2)
    mean = moments.shared / moments.n
    varies = reciprocal(np.diagonal(moments.shared_shared) / moments.n - mean**2, mean) > 0
    return np.append(by_age / by_age.mean(), 0.0) * varies
