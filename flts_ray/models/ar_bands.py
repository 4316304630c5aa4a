"""Bands of the linear model: conformal, and as wide as the window's recent volatility says.

Design choices: which volatility the bands follow, and how far, is what makes them sharpest on the
windows that calibrate; where validation is too short for that, training windows, forecast by maps
that did not see them, help out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from flts_ray.models import calibrate
from flts_ray.models.ar_best import MIN_VALID_WINDOWS
from flts_ray.models.ar_choice import Choice, out_of_fold
from flts_ray.models.ar_features import Layout
from flts_ray.models.ar_map import Sample
from flts_ray.models.calibrate import Volatility

Levels = tuple[float, ...]


@dataclass(frozen=True)
class Judged:
    """Windows that calibrate: actual, mean [n, H]; scales [volatilities, n]; rows [n]."""

    actual: np.ndarray
    mean: np.ndarray
    scales: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(
        cls, sample: Sample, mean: np.ndarray, layout: Layout, tried: Sequence[Volatility]
    ) -> Judged:
        scales = np.empty((len(tried), len(sample.series)))
        for part, windows, scale, _ in sample.chunks(layout):
            for i, one in enumerate(tried):
                scales[i, part] = calibrate.local_scale(windows, scale, one)
        return cls(sample.actuals(layout.horizon), mean, scales, sample.series)

    def __add__(self, other: Judged) -> Judged:
        return Judged(
            np.concatenate([self.actual, other.actual]),
            np.concatenate([self.mean, other.mean]),
            np.concatenate([self.scales, other.scales], axis=1),
            np.concatenate([self.rows, other.rows]),
        )

    def loss(self, band: calibrate.ResidualQuantiles, which: int, levels: Levels) -> float:
        quantiles = band.apply(self.mean, self.scales[which], self.rows)
        return calibrate.scaled_pinball(self.actual, quantiles, self.scales[0], levels)

    def band(self, which: int, levels: Levels) -> calibrate.ResidualQuantiles:
        return calibrate.residual_quantiles(
            self.actual, self.mean, self.scales[which], self.rows, levels
        )


@dataclass(frozen=True)
class Bands:
    """Metrics: `valid_loss` (scaled pinball) and `valid_mae` (scaled)."""

    volatility: Volatility
    band: calibrate.ResidualQuantiles
    metrics: dict[str, float]


def calibrated(
    layout: Layout, choice: Choice, training: Sample, valid: Sample, levels: Levels
) -> Bands:
    """Bands, and the volatility that makes them sharpest on validation."""
    seen = replace(layout, lookback=choice.lookback)
    tried = calibrate.volatilities(layout.season, choice.lookback)
    judged = Judged.of(valid, _chosen_mean(valid, seen, choice), seen, tried)
    calibrating = judged
    if calibrate.validation_is_short(training.data) or len(valid.series) < MIN_VALID_WINDOWS:
        calibrating += Judged.of(training, out_of_fold(training, layout, choice), seen, tried)
    judged = judged if len(valid.series) else calibrating
    bands = [calibrating.band(i, levels) for i in range(len(tried))]
    losses = [calibrating.loss(band, i, levels) for i, band in enumerate(bands)]
    best = int(np.argmin(losses))
    error = np.abs(judged.actual - judged.mean) / judged.scales[0][:, None]
    metrics = {
        "valid_loss": judged.loss(bands[best], best, levels),
        "valid_mae": float(np.nanmean(error)),
    }
    return Bands(tried[best], bands[best], metrics)


def _chosen_mean(sample: Sample, layout: Layout, choice: Choice) -> np.ndarray:
    mean = choice.maps[0].over(sample, layout)
    for slot, row in enumerate(choice.recipe.owners, start=1):
        mean[sample.series == row] = choice.maps[slot].over(sample.of(row), layout)
    return mean
