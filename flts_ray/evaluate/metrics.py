"""Forecast errors, from arrays of forecasts and what happened.

Design choices: a metric is a formula over averages of per-value losses, and the average is an
argument, so that overall, per-step and per-series numbers come from one formula; values that
were not observed (NaN in `actual`) count nowhere; RMSE judges the mean forecast and MAE the
median, because these are the forecasts that minimise them (Gneiting 2011).

Shapes: actual, mean, median, lower, upper: [n, H]; quantiles: [n, H, Q]; scale: [n], the
in-sample seasonal-naive error of each window's series. A group without observed values is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flts_ray.config import Score
from flts_ray.errors import DataError
from flts_ray.evaluate.backtest import Backtest
from flts_ray.models.calibrate import chunks
from flts_ray.models.losses import pinball as pinball_loss

WINDOWS_AT_ONCE = 1024
"""Windows whose losses at all levels exist at a time."""
Average = Callable[[np.ndarray], np.ndarray]
"""Takes losses [n, H] with NaN where not observed, returns one number a group."""


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    above, below = np.asarray(above, float), np.asarray(below, float)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def overall(losses: np.ndarray) -> np.ndarray:
    """Mean over all observed values; an array without axes."""
    return _ratio(np.nansum(losses), np.sum(~np.isnan(losses)))


def by_step(losses: np.ndarray) -> np.ndarray:
    """Mean over the windows at each step, [H]."""
    return _ratio(np.nansum(losses, axis=0), np.sum(~np.isnan(losses), axis=0))


def by_series(group: np.ndarray, groups: int) -> Average:
    """Mean over the values of each group of windows, [groups]; group: int [n], from 0."""

    def average(losses: np.ndarray) -> np.ndarray:
        total = np.bincount(group, np.nansum(losses, axis=1), groups)
        return _ratio(total, np.bincount(group, np.sum(~np.isnan(losses), axis=1), groups))

    return average


def together(*averages: Average) -> Average:
    """All groups of several averages, one after the other."""
    return lambda losses: np.concatenate([np.atleast_1d(take(losses)) for take in averages])


def rmse(actual: np.ndarray, mean: np.ndarray, average: Average = overall) -> np.ndarray:
    """Root mean squared error, sqrt(mean(e^2)), in the units of `actual`."""
    return np.sqrt(average((actual - mean) ** 2))


def mae(actual: np.ndarray, median: np.ndarray, average: Average = overall) -> np.ndarray:
    """Mean absolute error, mean(|e|), in the units of `actual`."""
    return average(np.abs(actual - median))


def wape(actual: np.ndarray, median: np.ndarray, average: Average = overall) -> np.ndarray:
    """Weighted absolute percentage error, sum(|e|) / sum(|actual|), a share.

    Kolassa & Schuetz 2007 (as MAD/Mean ratio). NaN where every observed value is zero.
    """
    return _ratio(mae(actual, median, average), average(np.abs(actual)))


def mase(
    actual: np.ndarray, median: np.ndarray, scale: np.ndarray, average: Average = overall
) -> np.ndarray:
    """Mean absolute scaled error, mean(|e| / scale), without units.

    `scale` is the mean absolute seasonal-naive error within the training span (Hyndman &
    Koehler 2006). Each value is scaled before the average, so that large series do not rule.
    """
    return average(np.abs(actual - median) / scale[:, None])


def over_levels(actual: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Pinball loss averaged over the levels, float64 [n, H], NaN where nothing was observed.

    Divided by the seasonal scale of each series it is the loss of the M5 uncertainty competition
    (Makridakis et al. 2022). Some windows at a time: the losses of all levels are many times as
    large as the result.
    """
    found = np.empty(actual.shape)
    for rows in chunks(len(actual), WINDOWS_AT_ONCE):
        found[rows] = pinball_loss(actual[rows], quantiles[rows], levels).mean(axis=-1)
    return found


def pinball(
    actual: np.ndarray,
    quantiles: np.ndarray,
    levels: Sequence[float],
    average: Average = overall,
) -> np.ndarray:
    """Pinball loss averaged over the levels (Koenker & Bassett 1978), in the units of `actual`.

    Half the absolute error for the single level 0.5; with many levels it approaches half the
    continuous ranked probability score (Gneiting & Raftery 2007).
    """
    return average(over_levels(actual, quantiles, levels))


def composite(
    actual: np.ndarray,
    mean: np.ndarray,
    median: np.ndarray,
    scale: np.ndarray,
    average: Average = overall,
) -> np.ndarray:
    """0.5 RMSE + 0.3 MAE + 0.2 MSE of errors over the seasonal-naive error, without units.

    A weighted sum of measures in different powers, comparable only because errors are scaled
    first; RMSE and MSE judge the mean forecast, MAE the median.
    """
    squared = average(((actual - mean) / scale[:, None]) ** 2)
    return 0.5 * np.sqrt(squared) + 0.3 * mase(actual, median, scale, average) + 0.2 * squared


def coverage(
    actual: np.ndarray, lower: np.ndarray, upper: np.ndarray, average: Average = overall
) -> np.ndarray:
    """Share of observed values within [lower, upper], ends included (Christoffersen 1998)."""
    inside = ((actual >= lower) & (actual <= upper)).astype(float)
    return average(np.where(np.isnan(actual), np.nan, inside))


def band_width(
    actual: np.ndarray, lower: np.ndarray, upper: np.ndarray, average: Average = overall
) -> np.ndarray:
    """Mean width of the band where values were observed, mean(upper - lower)."""
    return average(np.where(np.isnan(actual), np.nan, upper - lower))


@dataclass(frozen=True)
class WindowLosses:
    """What a score reads of each window, in numbers that do not depend on the other windows.

    observed: int64 [n], observed values; sums: float64 [n, k], sums of k losses over them.
    """

    score: Score
    observed: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, bt: Backtest, scale: np.ndarray, score: Score) -> WindowLosses:
        """scale: float64 [n_series], `SeriesStats.scale`."""
        losses = _losses(bt, scale[bt.origins.series], score)
        observed = np.sum(~np.isnan(bt.actual), axis=1)
        return cls(score, observed, np.stack([np.nansum(one, axis=1) for one in losses], axis=1))

    @classmethod
    def joined(cls, parts: Sequence[WindowLosses]) -> WindowLosses:
        """The windows of one part or more, one after the other."""
        observed = np.concatenate([part.observed for part in parts])
        return cls(parts[0].score, observed, np.concatenate([part.sums for part in parts]))

    def scores(self) -> np.ndarray:
        """See `window_scores`."""
        n = len(self.observed)
        total = np.full(n, np.sum(self.observed) / max(1, n))
        share = [_ratio(column, total) for column in self.sums.T]
        if self.score == "rmse":
            found = _expand_root(share[0])
        elif self.score == "composite":
            found = 0.5 * _expand_root(share[0]) + 0.3 * share[1] + 0.2 * share[0]
        elif self.score == "wape":
            found = _ratio(share[0], np.full(n, share[1].mean() if n else np.nan))
        else:
            found = share[0]
        if not n or not np.isfinite(found).all():
            raise DataError(
                f"judge.score: {self.score} is undefined on these {n} windows (nothing observed, "
                "or only zeros where the score divides by the values); choose another score or "
                "enlarge the test span",
                field="judge.score",
            )
        return found


def window_scores(bt: Backtest, scale: np.ndarray, score: Score) -> np.ndarray:
    """What each window contributes to the score, float64 [n], lower is better.

    scale: float64 [n_series], `SeriesStats.scale`. The mean over the windows is the overall
    score itself, so the mean of paired differences orders two models as the score does: a
    window contributes the sum of its losses over the average count of observed values in a
    window. RMSE (also within the composite) is no average of losses; its windows contribute
    its first-order expansion around the pooled value R, (R + m / R) / 2 for a mean squared
    contribution m (the infinitesimal jackknife, Efron 1982), whose mean is R again.
    Raises DataError where the score is undefined.
    """
    return WindowLosses.of(bt, scale, score).scores()


def _losses(bt: Backtest, scales: np.ndarray, score: Score) -> list[np.ndarray]:
    """The losses whose sums a score is made of, each [n, H], NaN where nothing was observed."""
    actual, median, each = bt.actual, bt.median, scales[:, None]
    if score == "rmse":
        return [(actual - bt.mean) ** 2]
    if score == "composite":
        return [((actual - bt.mean) / each) ** 2, np.abs(actual - median) / each]
    if score == "wape":
        return [np.abs(actual - median), np.abs(actual)]
    if score == "mae":
        return [np.abs(actual - median)]
    if score == "mase":
        return [np.abs(actual - median) / each]
    losses = over_levels(actual, bt.quantiles, bt.levels)
    return [losses if score == "pinball" else losses / each]


def _expand_root(squared: np.ndarray) -> np.ndarray:
    root = np.sqrt(squared.mean()) if len(squared) else 0.0
    return (root + squared / root) / 2 if root > 0 else squared
