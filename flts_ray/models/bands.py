"""Bands around a point forecast: how wide of late, and how far out each level lies.

Design choices: one rule for every model that forecasts a mean; windows from all over the training
and the validation span calibrate, each forecast by a fit that has not seen it, because one
season's errors say little about the next; scores are errors in units of what the window shows
(`volatility.py`) and of what the clock says (`phases.py`), so that calm and storm, night and day
become exchangeable, and their order statistics, with the correction of split conformal prediction,
are the bands (`calibrate.py`); how far bands follow both is chosen by the pinball loss on blocks of
time that had no say in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from flts_ray.models.calibrate import (
    ResidualQuantiles,
    covered_steps,
    known_rows,
    residual_quantiles,
    scaled_pinball,
    series_scale,
    share_apart,
)
from flts_ray.models.phases import at_steps, fit_phases, phase_of
from flts_ray.models.volatility import Sign, Volatility, fit_volatility, local_scale, seen_signs
from flts_ray.prepare.arrays import SeriesStats, Windows

BLOCKS = 4
MAX_JUDGED = 2000
"""Windows on which the shares are judged."""
SHARES = (0.0, 0.5, 1.0)
"""How far a band may follow the window, or the clock."""


class Follows(NamedTuple):
    """Of the slopes and of the phases, what a band follows."""

    window: float = 0.0
    clock: float = 0.0


@dataclass(frozen=True)
class Scored:
    """Windows that calibrate, each forecast by a fit that has not seen it.

    actual: [n, H], NaN where not observed; mean: [n, H]; scale: [n]; all in the input's units;
    seen: [n, k] of `seen_signs`; series, origins: int64 [n]; phase: int64 [n] of `phase_of`.
    """

    actual: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    seen: np.ndarray
    series: np.ndarray
    origins: np.ndarray
    phase: np.ndarray

    @classmethod
    def none(cls, horizon: int, signs: int) -> Scored:
        """No windows."""
        steps, at = np.zeros((0, horizon)), np.zeros(0, np.int64)
        return cls(steps, steps, np.zeros(0), np.zeros((0, signs)), at, at, at)

    def __len__(self) -> int:
        return len(self.series)

    def __add__(self, other: Scored) -> Scored:
        joined = {
            f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)])
            for f in fields(self)
        }
        return Scored(**joined)

    def at(self, rows: np.ndarray) -> Scored:
        """The windows of an index or a mask."""
        return Scored(*(getattr(self, f.name)[rows] for f in fields(self)))

    def in_order(self) -> Scored:
        """By series, then time."""
        return self.at(np.lexsort((self.origins, self.series)))

    def recentred(self, like: Scored) -> Scored:
        """As if the middle error of each step were that of other windows.

        Errors of a forecast that has grown old lean to one side, which says nothing about another
        season; how far they spread does.
        """
        lean = _middle(self) - _middle(like)
        return replace(self, mean=self.mean + lean * self.scale[:, None])

    @property
    def error(self) -> np.ndarray:
        """Absolute errors in units of the scale, [n, H]."""
        return np.abs(self.actual - self.mean) / self.scale[:, None]

    @property
    def apart(self) -> float:
        """Of `share_apart`."""
        return share_apart(self.series, self.origins, self.actual.shape[1])

    @property
    def steps(self) -> int:
        """Most steps of time that windows of one series cover."""
        return int(covered_steps(self.series, self.origins)[1].max(initial=0))

    @property
    def per_step(self) -> float:
        """Windows for each step of time that they cover."""
        return len(self) / max(int(covered_steps(self.series, self.origins)[1].sum()), 1)


def _middle(windows: Scored) -> np.ndarray:
    """Median scaled error of each step, zero where nothing was observed: float64 [H]."""
    lean = (windows.actual - windows.mean) / windows.scale[:, None]
    seen = (column[np.isfinite(column)] for column in lean.T)
    return np.array([np.median(column) if len(column) else 0.0 for column in seen])


def scored(
    windows: Windows,
    stats: SeriesStats,
    signs: Sequence[Sign],
    actual: np.ndarray,
    mean: np.ndarray,
    series: np.ndarray,
    origins: np.ndarray,
) -> Scored:
    """Windows and their forecasts; the windows reach back as far as the model looks."""
    scale = series_scale(windows, stats)
    shown = seen_signs(windows.y, scale, signs)
    return Scored(actual, mean, scale, shown, series, origins, phase_of(windows))


def width_of(windows: Windows, stats: SeriesStats, volatility: Volatility) -> np.ndarray:
    """What the bands of each window are in units of, in the input's units: float64 [n, H].

    The windows reach back exactly as far as the model looks.
    """
    rows = known_rows(windows.ids, stats)
    return local_scale(windows, series_scale(windows, stats), rows, volatility)


@dataclass(frozen=True)
class Bands:
    """What bands are in units of, and the bands in those units."""

    volatility: Volatility
    band: ResidualQuantiles

    def over(self, windows: Scored) -> np.ndarray:
        """Quantiles of scored windows: [n, H, Q]."""
        width = _width(self.volatility, windows)
        return self.band.apply(windows.mean, width, windows.series)

    def loss(self, windows: Scored, levels: Sequence[float]) -> float:
        """Scaled pinball loss on these windows."""
        return scaled_pinball(windows.actual, self.over(windows), windows.scale, levels)


def fit_bands(
    windows: Scored,
    signs: tuple[Sign, ...],
    levels: Sequence[float],
    n_series: int,
    season: int = 1,
) -> Bands:
    """Bands that cover each level on windows exchangeable with these.

    signs: those that `windows.seen` holds; n_series: rows of `SeriesStats`; season: steps whose
    phases `windows.phase` counts.
    """
    windows = windows.in_order()
    best = Follows()
    if signs:
        tried = [Follows(window=share) for share in SHARES]
        best = _best(windows, signs, levels, n_series, season, tried)
    if season > 1:
        tried = [best._replace(clock=share) for share in SHARES]
        best = _best(windows, signs, levels, n_series, season, tried)
    return _fitted(windows, signs, levels, n_series, season, best)


def _width(told: Volatility, windows: Scored) -> np.ndarray:
    horizon = windows.mean.shape[1]
    return told.width(windows.seen, windows.scale, windows.series, windows.phase, horizon)


def _fitted(
    windows: Scored,
    signs: tuple[Sign, ...],
    levels: Sequence[float],
    n_series: int,
    season: int,
    follows: Follows,
) -> Bands:
    apart, error, phases = windows.apart, windows.error, np.zeros(0)
    if follows.clock:
        phases = follows.clock * fit_phases(error, windows.phase, season, windows.steps / season)
        error = error / at_steps(phases, windows.phase, error.shape[1])
    told = fit_volatility(
        signs, windows.seen, error, windows.series, apart, n_series, follows.window
    )
    told = replace(told, phases=phases)
    width = _width(told, windows)
    band = residual_quantiles(windows.actual, windows.mean, width, windows.series, levels, apart)
    return Bands(told, band)


def _best(
    windows: Scored,
    signs: tuple[Sign, ...],
    levels: Sequence[float],
    n_series: int,
    season: int,
    tried: Sequence[Follows],
) -> Follows:
    """What is best to follow on blocks of time that had no say; the first where blocks are none."""
    rows = np.linspace(0, len(windows) - 1, min(len(windows), MAX_JUDGED)).round().astype(np.int64)
    few = windows.at(rows)
    block = _blocks(few.series)
    loss = np.zeros(len(tried))
    for held in range(BLOCKS):
        judged, rest = few.at(block == held), few.at(block != held)
        if not len(judged) or not len(rest):
            return tried[0]
        for which, follows in enumerate(tried):
            bands = _fitted(rest, signs, levels, n_series, season, follows)
            loss[which] += len(judged) * bands.loss(judged, levels)
    return tried[int(np.argmin(loss))]


def _blocks(series: np.ndarray) -> np.ndarray:
    """Quarter of its series that each window lies in: int64 [n]; windows are in order."""
    _, first, count = np.unique(series, return_index=True, return_counts=True)
    rank = np.arange(len(series)) - np.repeat(first, count)
    return rank * BLOCKS // np.repeat(count, count)
