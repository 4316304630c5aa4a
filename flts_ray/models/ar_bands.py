"""Bands of the linear model: conformal, on windows of both spans by maps that did not see them.

Design choices: training windows count beside those of validation, because a year has quiet and
wild months and validation is a few of them; they are forecast by maps fitted on the other
quarters of each series (cross-conformal prediction, Vovk 2015); a share of them is enough, because
neighbouring windows say nearly the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flts_ray.models.ar_choice import Choice, out_of_fold
from flts_ray.models.ar_features import Layout
from flts_ray.models.ar_map import Sample, moments_of
from flts_ray.models.bands import Bands, Scored, fit_bands
from flts_ray.models.calibrate import clock_phase
from flts_ray.models.phases import phase_of
from flts_ray.models.strata import evenly
from flts_ray.models.volatility import Sign, seen_signs, signs_of

Levels = tuple[float, ...]

MAX_CROSSED = 12_000
"""Most training windows that calibrate."""


@dataclass(frozen=True)
class Calibrated:
    """Metrics: `valid_loss` (scaled pinball) and `valid_mae` (scaled)."""

    bands: Bands
    metrics: dict[str, float]


def calibrated(
    layout: Layout, choice: Choice, training: Sample, valid: Sample, levels: Levels
) -> Calibrated:
    """Bands from training and validation windows, judged on validation where there is any."""
    seen = replace(layout, lookback=choice.lookback)
    signs = signs_of(layout.season, choice.lookback, layout.horizon)
    judged = _scored(valid, _chosen_mean(valid, seen, choice), seen, signs)
    crossed = _crossed(training, layout, choice, seen, signs)
    calibrating = crossed + _as_dense(judged, crossed)
    bands = fit_bands(calibrating, signs, levels, training.data.n_series, layout.season)
    shown = judged if len(judged) else crossed
    loss = bands.loss(shown, levels)
    return Calibrated(bands, {"valid_loss": loss, "valid_mae": float(np.nanmean(shown.error))})


def _as_dense(windows: Scored, like: Scored) -> Scored:
    """Some of the windows, so that a month counts as much as among the others."""
    if not len(windows) or not len(like):
        return windows
    most = max(1, round(len(windows) * min(1.0, like.per_step / windows.per_step)))
    return windows.at(evenly(len(windows), most, lambda rows: (windows.phase[rows],)))


def _crossed(
    training: Sample, layout: Layout, choice: Choice, seen: Layout, signs: tuple[Sign, ...]
) -> Scored:
    few = _thinned(training)
    if len(choice.recipe.owners):
        # Own maps borrow from all windows: of these, so that no fold is among what it borrows.
        choice = replace(choice, total=moments_of(few, layout))
    return _scored(few, out_of_fold(few, layout, choice), seen, signs)


def _thinned(sample: Sample) -> Sample:
    """At most MAX_CROSSED windows, of all phases of the season."""
    phase = clock_phase(sample.data, sample.series, sample.origins)
    rows = evenly(len(phase), MAX_CROSSED, lambda rows: (phase[rows],))
    return replace(sample, series=sample.series[rows], origins=sample.origins[rows])


def _scored(sample: Sample, mean: np.ndarray, layout: Layout, signs: tuple[Sign, ...]) -> Scored:
    scale, shown = np.empty(len(mean)), np.empty((len(mean), len(signs)))
    phase = np.empty(len(mean), np.int64)
    for part, windows, of_series, _ in sample.chunks(layout):
        scale[part] = of_series
        shown[part] = seen_signs(windows.y, of_series, signs)
        phase[part] = phase_of(windows)
    actual = sample.actuals(layout.horizon)
    return Scored(actual, mean, scale, shown, sample.series, sample.origins, phase)


def _chosen_mean(sample: Sample, layout: Layout, choice: Choice) -> np.ndarray:
    mean = choice.maps[0].over(sample, layout)
    for slot, row in enumerate(choice.recipe.owners, start=1):
        mean[sample.series == row] = choice.maps[slot].over(sample.of(row), layout)
    return mean
