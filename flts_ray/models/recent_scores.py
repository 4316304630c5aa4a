"""Bands that follow what a model has missed of late.

Design choices: each new window is scored by the model as it was before it learned from that
window (prequential, Dawid 1984), so scores never flatter; scores are distances to every quantile
in units of the window's scale (conformalised quantile regression, Romano, Patterson & Candès
2019), so one store serves every kind of model; what is kept is bounded, and when it overflows it
is thinned evenly, so that older windows fade; the correction of the bands is the order statistic
of the scores times their share of all windows that ever calibrated, so that a handful of new
windows moves a band a little and a year of them replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flts_ray.models import calibrate
from flts_ray.prepare.arrays import SeriesArrays, Windows, actuals_at, windows_at

MAX_ENTRIES = 2**19
"""Bound of the stored scores (float32), 2 MiB."""
MIN_WINDOWS = 64
Ask = Callable[[Windows], tuple[np.ndarray, np.ndarray]]
"""Quantiles [n, H, Q] of windows in the input's units, and the scale [n] of their bands."""


@dataclass(frozen=True)
class RecentScores:
    """Scores since the calibration of the fit.

    kept: float32 [n, H, Q], oldest first, against the bands of the fit, NaN where nothing was
    observed; shift: float64 [H, Q], the correction that is part of the bands now; base: windows
    that the fit calibrated on; count: windows that were scored since.
    """

    kept: np.ndarray
    shift: np.ndarray
    base: float
    count: float

    @classmethod
    def none(cls, base: float, horizon: int, levels: int) -> RecentScores:
        """Nothing scored yet."""
        shape = (horizon, levels)
        return cls(np.zeros((0, *shape), np.float32), np.zeros(shape), base, 0.0)

    @property
    def share(self) -> float:
        """How much of a band is owed to the windows since the fit, within [0, 1)."""
        return self.count / (self.count + max(self.base, 1.0))

    def added(self, served: np.ndarray, stands_for: int, levels: Sequence[float]) -> RecentScores:
        """With more scores, [n, H, Q], of windows that stand for so many.

        served: against the bands as they are now, their correction included.
        """
        if not len(served):
            return self
        more = (served + self.shift).astype(np.float32)
        kept = _thinned(np.concatenate([self.kept, more]))
        grown = replace(self, kept=kept, count=self.count + stands_for)
        told = calibrate.fit_shift(
            np.zeros(kept.shape[:2]), -kept.astype(np.float64), np.ones(len(kept)), levels
        )
        return replace(grown, shift=grown.share * told)

    def arrays(self) -> dict[str, np.ndarray]:
        weights = np.array([self.base, self.count])
        return {"scores": self.kept, "shift": self.shift, "weights": weights}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> RecentScores:
        """The inverse of `arrays`. Raises KeyError and ValueError for anything else."""
        base, count = (float(value) for value in arrays["weights"])
        kept, shift = arrays["scores"], arrays["shift"]
        if kept.shape[1:] != shift.shape or not np.isfinite(shift).all():
            raise ValueError(f"scores {kept.shape} and correction {shift.shape} do not fit")
        return cls(kept, shift, base, count)


def most_windows(horizon: int, levels: int) -> int:
    """Windows whose scores are kept at most."""
    return max(MIN_WINDOWS, MAX_ENTRIES // (horizon * levels))


def _thinned(scores: np.ndarray) -> np.ndarray:
    most = most_windows(*scores.shape[1:])
    if len(scores) <= most:
        return scores
    return scores[np.linspace(0, len(scores) - 1, most).round().astype(np.int64)]


def score_windows(
    data: SeriesArrays, lookback: int, horizon: int, levels: int, ask: Ask
) -> tuple[np.ndarray, int]:
    """Scores of a bounded number of windows of the validation span, and for how many they stand.

    Returns float64 [n, H, Q], NaN where nothing was observed.
    """
    most = most_windows(horizon, levels)
    series, origins = calibrate.sample_origins(data, "validation", lookback, horizon, most)
    scores = np.empty((len(series), horizon, levels))
    for part in calibrate.chunks(len(series), calibrate.CHUNK // 4):
        windows = windows_at(data, series[part], origins[part], lookback, horizon)
        quantiles, scale = ask(windows)
        actual = actuals_at(data, series[part], origins[part], horizon)
        scores[part] = (actual[..., None] - quantiles) / scale[:, None, None]
    spans = np.maximum(data.valid_end - np.maximum(data.train_end, lookback) - horizon + 1, 0)
    return scores, max(len(series), int(spans.sum())) if len(series) else 0


def moved(band: calibrate.ResidualQuantiles, by: np.ndarray) -> calibrate.ResidualQuantiles:
    """Bands moved by a correction [H, Q] in their own units, in order again."""
    if not by.any():
        return band
    return replace(
        band,
        pooled=np.sort(band.pooled + by, axis=-1),
        own=np.sort(band.own + by, axis=-1),
    )
