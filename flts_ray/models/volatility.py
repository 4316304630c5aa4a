"""How large the next errors will be, from what a window shows: the scale that bands are given.

Design choices: errors of tomorrow are as large as changes were of late, over several spans at
once (heterogeneous autoregression, Corsi 2009), so the logarithm of a model's error is regressed
on logarithms of mean absolute changes within the window: from step to step, from season to season
and from week to week; and of how high the load is now, in units of the window's own level, because
errors of a load grow with it; everything is read from the window, so a band follows calm and storm
without any state; slopes are shrunk by as many windows as do not overlap, because the others say
the same again, and count only as far as they help on blocks of time that did not choose them; a
series has a level of its own, shrunk towards that of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from flts_ray.models.phases import at_steps, phase_of
from flts_ray.prepare.arrays import Windows

PRIOR_SLOPE = 0.1
"""Standard deviation that one slope is expected to have."""
PRIOR_LEVEL = 0.25
"""Standard deviation of the logarithmic level of one series against all."""
BOUND = 20.0
"""Quiet and wild windows count as at most so many times quieter or wilder."""
MIN_ERROR = 1e-2
"""Smallest error of a window, in units of the mean one, that is told from none."""
ROUNDS = 3


LEVEL = 2
"""Of `Sign.changes`: neither values nor changes, but how high they lie."""


class Sign(NamedTuple):
    """Mean absolute difference of values `lag` apart over the last `steps` differences.

    Of the changes from step to step in place of the values where `changes` is 1; with lag 0 the
    standard deviation of the last `steps` values, or, where `changes` is LEVEL, their mean absolute
    value by that of the window.
    """

    lag: int
    steps: int
    changes: int = 0


def signs_of(season: int, lookback: int, horizon: int) -> tuple[Sign, ...]:
    """What a window of so many steps can show."""
    near = max(1, min(max(12, season // 8), lookback - 1))
    found = [Sign(1, near), Sign(1, lookback - 1), Sign(0, lookback)]
    if season > 1:
        week, ahead = 7 * season, season * -(-horizon // season)
        found += [Sign(1, steps) for steps in (season, week)]
        found += [Sign(season, steps) for steps in (season, week, lookback - season)]
        found += [Sign(ahead, lookback - ahead)] if ahead > season else []
        found += [Sign(week, steps) for steps in (season, lookback - week)]
        found += [Sign(season, steps, 1) for steps in (season, lookback - season - 1)]
    shown = [sign for sign in found if sign.steps >= near and _reach(sign) <= lookback]
    latest = min(max(3, horizon // 4), near)
    shown += [Sign(0, steps, LEVEL) for steps in (latest, near) if steps < lookback]
    return tuple(dict.fromkeys(shown))


def _reach(sign: Sign) -> int:
    return sign.lag + sign.steps + sign.changes if sign.lag else sign.steps


def seen_signs(y: np.ndarray, scale: np.ndarray, signs: Sequence[Sign]) -> np.ndarray:
    """Logarithms of the signs in units of the scale, or of the window's level: float64 [n, k].

    y: [n, L], newest last; scale: [n]. A flat window shows -log(BOUND), not minus infinity.
    """
    changes: dict[tuple[int, int], np.ndarray] = {}
    found = np.empty((len(y), len(signs)))
    for column, (lag, steps, order) in enumerate(signs):
        if lag == 0:
            last = y[:, -steps:]
            found[:, column] = scale * _height(y, last) if order == LEVEL else last.std(axis=1)
            continue
        if (lag, order) not in changes:
            values = np.diff(y, axis=1) if order else y
            changes[lag, order] = np.abs(values[:, lag:] - values[:, :-lag])
        found[:, column] = changes[lag, order][:, -steps:].mean(axis=1)
    return np.log(np.clip(found / scale[:, None], 1 / BOUND, BOUND))


def _height(y: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Mean absolute value of the last values by that of all; one where all are zero: [n]."""
    level = np.abs(y).mean(axis=1)
    return np.divide(np.abs(last).mean(axis=1), level, out=np.ones(len(y)), where=level > 0)


@dataclass(frozen=True)
class Volatility:
    """signs: of `signs_of`; slopes: float64 [k], how far a band follows each; levels: float64
    [series], added to the logarithm of the scale of each series; phases: of `fit_phases`, or empty.
    """

    signs: tuple[Sign, ...]
    slopes: np.ndarray
    levels: np.ndarray
    phases: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def none(cls) -> Volatility:
        """Bands that follow nothing."""
        return cls((), np.zeros(0), np.zeros(0))

    def scale(self, seen: np.ndarray, scale: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """What bands are in units of, phases apart: float64 [n]; seen: [n, k] of `seen_signs`."""
        known = (rows >= 0) & (rows < len(self.levels))
        level = np.zeros(len(rows))
        level[known] = self.levels[rows[known]]
        # Summed sign by sign: a product of matrices may round otherwise in another batch.
        moved = level + (seen * self.slopes).sum(axis=1)
        return np.asarray(scale * np.exp(np.clip(moved, -np.log(BOUND), np.log(BOUND))))

    def width(
        self,
        seen: np.ndarray,
        scale: np.ndarray,
        rows: np.ndarray,
        phase: np.ndarray,
        horizon: int,
    ) -> np.ndarray:
        """What bands are in units of at each step: float64 [n, H]; phase: [n] of `phase_of`."""
        width = self.scale(seen, scale, rows)[:, None] * at_steps(self.phases, phase, horizon)
        return np.broadcast_to(width, (len(width), horizon))

    def louder(self, by: np.ndarray) -> Volatility:
        """With more added to the logarithm of the scale of each series, float64 [series]."""
        if not by.any():
            return self
        known = np.zeros(len(by))
        known[: len(self.levels)] = self.levels
        return replace(self, levels=known + by)

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays for `Fitted.state`."""
        return {
            "volatility_signs": np.array(self.signs, np.int64).reshape(-1, 3),
            "volatility_slopes": self.slopes,
            "volatility_levels": self.levels,
            "volatility_phases": self.phases,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Volatility:
        """The inverse of `arrays`; without phases, of an artifact that had none."""
        signs = tuple(Sign(*map(int, row)) for row in arrays["volatility_signs"])
        phases = arrays.get("volatility_phases", np.zeros(0))
        return cls(signs, arrays["volatility_slopes"], arrays["volatility_levels"], phases)


def local_scale(
    windows: Windows, scale: np.ndarray, rows: np.ndarray, volatility: Volatility
) -> np.ndarray:
    """`scale` moved towards what the windows show and the clock says: float64 [n, H].

    scale: [n] of `series_scale`; rows: [n] of `known_rows`. The windows reach back as far as
    those that the volatility was fitted on.
    """
    phased = len(volatility.phases) > 0
    phase = phase_of(windows) if phased else np.zeros(len(windows), np.int64)
    seen = seen_signs(windows.y, scale, volatility.signs)
    return volatility.width(seen, scale, rows, phase, windows.horizon)


def fit_volatility(
    signs: tuple[Sign, ...],
    seen: np.ndarray,
    error: np.ndarray,
    series: np.ndarray,
    weight: float,
    n_series: int,
    share: float = 1.0,
) -> Volatility:
    """Slopes and levels that explain how large errors were.

    seen: [n, k] of `seen_signs`; error: [n, H], absolute and scaled, NaN where not observed;
    series: int64 [n]; weight: windows that do not overlap, for each of the n; share: of the
    slopes that is kept. Ridge regression of the logarithm of a window's mean error, each step in
    units of its own mean, within series; levels are what is left of a series, shrunk by its number
    of windows (random effects).
    """
    told = np.isfinite(error).any(axis=1)
    if not told.any():
        return Volatility(signs, np.zeros(len(signs)), np.zeros(n_series))
    seen, series = seen[told], series[told]
    size = _log_size(error[told])
    count = np.bincount(series, minlength=n_series)
    within = seen - _means(seen, series, count)[series]
    left = size - _means(size[:, None], series, count)[series, 0]
    gram, moment, noise = weight * within.T @ within, weight * within.T @ left, left.var()
    slopes = np.zeros(len(signs))
    for _ in range(ROUNDS):
        penalty = max(float(noise), MIN_ERROR) / PRIOR_SLOPE**2
        slopes = np.linalg.solve(gram + penalty * np.eye(len(gram)), moment)
        noise = np.mean((left - within @ slopes) ** 2)
    slopes = share * slopes
    rest = size - seen @ slopes
    mean = _means(rest[:, None], series, count)[:, 0] - rest.mean()
    trust = weight * count / (weight * count + max(float(noise), MIN_ERROR) / PRIOR_LEVEL**2)
    return Volatility(signs, slopes, np.where(count > 0, trust * mean, 0.0))


def _log_size(error: np.ndarray) -> np.ndarray:
    """Logarithm of the mean error of each window, steps in units of their mean: float64 [n]."""
    seen = np.isfinite(error)
    filled = np.where(seen, error, 0.0)
    typical = filled.sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    relative = filled / np.maximum(typical, 1e-300)
    return np.log(np.maximum(relative.sum(axis=1) / seen.sum(axis=1), MIN_ERROR))


def _means(values: np.ndarray, group: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean of the rows of each group, zero where it is empty: float64 [groups, columns]."""
    total = np.zeros((len(count), values.shape[1]))
    np.add.at(total, group, values)
    return total / np.maximum(count, 1)[:, None]
