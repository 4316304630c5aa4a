"""How the curve of Prophet is corrected by what it has missed of late.

Design choices: a curve of the clock drifts away in level, and in the shape of its season; so the
mean of the last residuals and their mean at the same phase of the last seasons are each added in
part; how far back both look, and the share of each at each step, are chosen on the validation
span; shares stay within [0, 1], so that a correction never overshoots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CYCLES = (0, 1, 3, 7)
"""Seasons whose residuals at the same phase are averaged; 0: none."""
SWEEPS = 20


@dataclass(frozen=True)
class Correction:
    """Shares [H] of the mean of the last `window` residuals, and of their mean at the target's
    phase over the last `cycles` seasons, less the mean of those seasons."""

    window: int
    cycles: int
    season: int
    level: np.ndarray
    phase: np.ndarray

    @property
    def lookback(self) -> int:
        return max(self.window, self.cycles * self.season)

    def apply(self, missed: np.ndarray) -> np.ndarray:
        """What to add to the curve, [n, H], from residuals [n, L], newest last, L >= lookback."""
        level, phase = features(missed, self.window, self.cycles, self.season, len(self.level))
        return level[:, None] * self.level + phase * self.phase


def features(
    missed: np.ndarray, window: int, cycles: int, season: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean residual, [n], and its deviation at the phase of each step, [n, H]."""
    level = missed[:, -window:].mean(axis=1)
    if cycles == 0:
        return level, np.zeros((len(missed), horizon))
    seasons = missed[:, -cycles * season :].reshape(len(missed), cycles, season).mean(axis=1)
    seasons = seasons - seasons.mean(axis=1, keepdims=True)
    return level, seasons[:, np.arange(horizon) % season]


def candidates(windows: Sequence[int], season: int, longest: int) -> Iterator[tuple[int, int]]:
    """Pairs of window and cycles that look back at most `longest` steps; one pair at least."""
    fitting = [w for w in sorted({*windows}) if w <= longest] or [min(windows)]
    for window in fitting:
        for cycles in CYCLES:
            if cycles == 0 or (season > 1 and cycles * season <= longest):
                yield window, cycles


def default_windows(season: int) -> tuple[int, ...]:
    """A few steps, a quarter of a season, one season and a week of them."""
    return tuple(sorted({1, 3, 6, 12, 24, max(1, season // 4), season, 7 * season}))


def fit_correction(
    missed: np.ndarray, error: np.ndarray, scale: np.ndarray, tried: Sequence[tuple[int, int, int]]
) -> tuple[Correction, float]:
    """The correction with the smallest scaled squared error.

    missed: residuals before each origin, [n, L]; error: residuals after it, [n, H], NaN where not
    observed; scale: [n], by which both are divided; tried: (window, cycles, season). Of equal
    errors the shortest lookback wins. Returns that error too.
    """
    found = [_shares(missed / scale[:, None], error / scale[:, None], *one) for one in tried]
    return min(found, key=lambda one: (one[1], one[0].lookback))


def _shares(
    missed: np.ndarray, error: np.ndarray, window: int, cycles: int, season: int
) -> tuple[Correction, float]:
    """Least squares with both shares within [0, 1], by coordinate descent."""
    seen = np.isfinite(error)
    target = np.where(seen, error, 0.0)
    level, phase = features(missed, window, cycles, season, error.shape[1])
    levels = np.where(seen, level[:, None], 0.0)
    phases = np.where(seen, phase, 0.0)
    shares = np.zeros((2, error.shape[1]))
    power = np.maximum((np.stack([levels, phases]) ** 2).sum(axis=1), 1e-12)
    both = (levels * phases).sum(axis=0)
    told = np.stack([(levels * target).sum(axis=0), (phases * target).sum(axis=0)])
    for _ in range(SWEEPS if cycles else 1):
        shares[0] = np.clip((told[0] - both * shares[1]) / power[0], 0.0, 1.0)
        shares[1] = np.clip((told[1] - both * shares[0]) / power[1], 0.0, 1.0)
    left = target - levels * shares[0] - phases * shares[1]
    loss = float((left**2).sum() / max(int(seen.sum()), 1))
    return Correction(window, cycles, season, shares[0], shares[1]), loss
