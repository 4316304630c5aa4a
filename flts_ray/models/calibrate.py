"""Quantiles that cover what they promise: conformal calibration on windows not fitted on.

Design choices: one rule for every model, the level-q order statistic of scaled validation scores
with the finite-sample correction of split conformal prediction (Vovk et al. 2005; Lei et al.
2018; Angelopoulos & Bates 2021); point forecasts use residuals as scores, quantile forecasts the
distance to each quantile (conformalised quantile regression, Romano, Patterson & Candès 2019);
scores are divided by a scale per window, so that series of any size share one table; a step with
few scores borrows those of its neighbours; a series with many has a table of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.losses import pinball
from flts_ray.models.strata import evenly
from flts_ray.prepare.arrays import (
    SeriesArrays,
    SeriesStats,
    Windows,
    origins_between,
    origins_in,
    usable_windows,
)

MIN_SUPPORT = 200
"""Scores that should stand behind the quantiles of one step."""
MIN_OWN_WINDOWS = 500
"""Windows a series needs for a table of its own."""
MIN_OWN_APART = 400
"""How many of them must not overlap: the others say the same again."""
MAX_TABLE_ENTRIES = 2**22
"""Bound of all tables of single series together (float64 entries)."""
MAX_SCORES = 2**23
"""Bound of the window-step pairs that one calibration holds in memory."""
CHUNK = 4096
"""Most windows built at a time."""
PLACES = 8
"""Parts of the span of each series that sampled windows come from alike."""


def sample_origins(
    data: SeriesArrays, span: str, lookback: int, horizon: int, max_windows: int
) -> tuple[np.ndarray, np.ndarray]:
    """`max_windows` origins of one span, evenly spread over all series; all where there are fewer.

    A stratified sample of the origins of all series end to end (see `strata.py`): a series has
    its share of the windows, and the phases of the season and the parts of the span have theirs.
    Where windows are not usable (`origins_in`), there are as many fewer. Returns (series, origins)
    as `origins_in` does.
    """
    first, count = origins_between(data, span, lookback, horizon)
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    if total <= max_windows:
        return origins_in(data, span, lookback, horizon)
    begin = first - ends + count

    def at(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        series = np.searchsorted(ends, positions, side="right")
        return series, positions + begin[series]

    def labels(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        series, origins = at(positions)
        place = (origins - first[series]) * PLACES // count[series]
        return clock_phase(data, series, origins), place

    series, origins = at(evenly(total, max_windows, labels))
    kept = usable_windows(data, span, series, origins, lookback, horizon)
    return series[kept], origins[kept]


def clock_phase(data: SeriesArrays, series: np.ndarray, origins: np.ndarray) -> np.ndarray:
    """Phase of the season at each origin on a clock without a time zone: int64 [n]."""
    start = data.start_us[series] // data.contract.frequency.step_us
    return np.asarray((start + origins) % data.contract.season)


def check_lookback(windows: Windows, lookback: int) -> None:
    """Raise DataError unless the windows reach back `lookback` steps."""
    if windows.lookback < lookback:
        raise DataError(
            f"history has {windows.lookback} steps, the model looks back {lookback}: give "
            f"{lookback - windows.lookback} more",
            field="history",
        )


def chunks(n: int, size: int = CHUNK) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover `range(n)`."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def known_rows(ids: Sequence[str], stats: SeriesStats) -> np.ndarray:
    """Row of each id in `stats`, -1 for a series never seen before: int64 [n]."""
    row_of = stats.row_of
    return np.fromiter((row_of.get(name, -1) for name in ids), dtype=np.int64, count=len(ids))


def series_scale(windows: Windows, stats: SeriesStats) -> np.ndarray:
    """Positive scale of each window in the input's units: float64 [n].

    The training scale of a series in `stats`; else the scale the windows carry; else the mean
    absolute seasonal difference of the window, or of neighbouring steps where the window holds
    no two seasons. Never below a thousandth of the standard deviation, because a series that
    repeats itself exactly would have no scale at all.
    """
    rows = known_rows(windows.ids, stats)
    scale = np.array(windows.scale, dtype=np.float64)
    floor = np.zeros(len(rows))
    known = rows >= 0
    scale[known] = stats.scale[rows[known]]
    floor[known] = _floor(stats.mean[rows[known]], stats.std[rows[known]])
    floor[~known] = _floor(windows.y[~known].mean(axis=1), windows.y[~known].std(axis=1))
    missing = ~(np.isfinite(scale) & (scale > 0))
    scale[missing] = _window_scale(windows.y[missing], windows.contract.season)
    return np.maximum(scale, floor)


def per_step(scale: np.ndarray) -> np.ndarray:
    """Scales of windows, [n], or of their steps, [n, H], as what divides [n, H]."""
    return scale if scale.ndim == 2 else scale[:, None]


def _floor(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return np.maximum(np.maximum(1e-3 * std, 1e-9 * np.abs(mean)), 1e-12)


def _window_scale(y: np.ndarray, season: int) -> np.ndarray:
    lag = season if season < y.shape[1] else 1
    if y.shape[1] <= lag:
        return np.abs(y).mean(axis=1)
    return np.abs(y[:, lag:] - y[:, :-lag]).mean(axis=1)


@dataclass(frozen=True)
class ResidualQuantiles:
    """Bands around a point forecast, in scaled units.

    pooled: float64 [H, Q], for every series; own: float64 [k, H, Q], tables of single series;
    owners: int64 [k], rising, the rows of those series in `SeriesStats`.
    """

    pooled: np.ndarray
    own: np.ndarray
    owners: np.ndarray

    def apply(self, mean: np.ndarray, scale: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Quantiles around `mean`, never crossing.

        mean: [n, H] and scale: [n] or [n, H] in the input's units; rows: [n] from `known_rows`.
        Returns float64 [n, H, Q].
        """
        offsets = np.broadcast_to(self.pooled, (len(rows), *self.pooled.shape))
        if len(self.owners):
            slot = np.minimum(np.searchsorted(self.owners, rows), len(self.owners) - 1)
            hit = self.owners[slot] == rows
            offsets = np.where(hit[:, None, None], self.own[slot], offsets)
        return mean[..., None] + offsets * per_step(scale)[..., None]

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays for `Fitted.state`."""
        return {"band_pooled": self.pooled, "band_own": self.own, "band_owners": self.owners}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> ResidualQuantiles:
        return cls(arrays["band_pooled"], arrays["band_own"], arrays["band_owners"])


def residual_quantiles(
    actual: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
    rows: np.ndarray,
    levels: Sequence[float],
    weight: float = 1.0,
) -> ResidualQuantiles:
    """Bands of a point forecast from what it missed on windows it was not fitted on.

    actual: [n, H], NaN is ignored; mean: [n, H]; scale: [n] or [n, H]; all in the input's units.
    rows: [n] from `known_rows`; weight: of `share_apart`. Split conformal prediction (Vovk,
    Gammerman & Shafer 2005; Lei et al. 2018), one-sided for each level.
    """
    scores = ((actual - mean) / per_step(scale))[..., None]
    size = mean.shape[1] * len(levels)
    owners, counts = np.unique(rows, return_counts=True)
    enough = (counts >= MIN_OWN_WINDOWS) & (counts * weight >= MIN_OWN_APART)
    owners = owners[enough & (owners >= 0)][: MAX_TABLE_ENTRIES // size]
    own = [_conformal_offsets(scores[rows == row], levels, weight) for row in owners]
    return ResidualQuantiles(
        pooled=_conformal_offsets(scores, levels, weight),
        own=np.stack(own) if own else np.zeros((0, mean.shape[1], len(levels))),
        owners=owners.astype(np.int64),
    )


def share_apart(series: np.ndarray, origins: np.ndarray, horizon: int) -> float:
    """Windows whose targets do not overlap, for each of these: within (0, 1].

    The steps that their targets cover, in horizons. series, origins: int64 [n], in any order.
    """
    if not len(series):
        return 1.0
    order = np.lexsort((origins, series))
    fresh = np.minimum(np.diff(origins[order]), horizon)
    fresh[np.diff(series[order]) > 0] = horizon
    return float((1 + fresh.sum() / horizon) / len(series))


def covered_steps(series: np.ndarray, origins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows of each series that has any, and the steps from its first origin to its last."""
    _, row, count = np.unique(series, return_inverse=True, return_counts=True)
    first = np.full(len(count), np.iinfo(np.int64).max)
    last = np.full(len(count), -1)
    np.minimum.at(first, row, origins)
    np.maximum.at(last, row, origins)
    return count, last - first + 1


def fit_shift(
    actual: np.ndarray,
    quantiles: np.ndarray,
    scale: np.ndarray,
    levels: Sequence[float],
    weight: float = 1.0,
) -> np.ndarray:
    """Additive correction of each step and level, in scaled units: float64 [H, Q].

    actual: [n, H], NaN is ignored; quantiles: [n, H, Q]; scale: [n]; all in the input's units,
    of windows the model was not fitted on; weight: of `share_apart`. Conformalised quantile
    regression (Romano, Patterson & Candès 2019), one-sided for each level. Without any actual
    the correction is zero.
    """
    scores = (actual[..., None] - quantiles) / scale[:, None, None]
    return _conformal_offsets(scores, levels, weight)


def apply_shift(quantiles: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Quantiles moved by `fit_shift`'s correction and put in order again: float64 [n, H, Q]."""
    return np.sort(quantiles + shift * scale[:, None, None], axis=-1)


def scaled_pinball(
    actual: np.ndarray, quantiles: np.ndarray, scale: np.ndarray, levels: Sequence[float]
) -> float:
    """Mean pinball loss over windows, steps and levels, each window divided by its scale.

    NaN actuals are ignored; without any actual the loss is zero.
    """
    loss = pinball(actual, quantiles, levels) / scale[:, None, None]
    return float(loss[np.isfinite(loss)].mean()) if np.isfinite(loss).any() else 0.0


def _conformal_offsets(
    scores: np.ndarray, levels: Sequence[float], weight: float = 1.0
) -> np.ndarray:
    """Order statistics of scores [n, H, 1 or Q] for each step and level: float64 [H, Q].

    weight: windows that do not overlap, for each of the n; up to an earlier step more do not.
    """
    steps, columns = scores.shape[1:]
    found = np.zeros((steps, len(levels)))
    support = np.isfinite(scores[..., 0]).sum(axis=0)
    for step, width in enumerate(_band_widths(support)):
        pool = scores[:, max(0, step - width) : step + width + 1].reshape(-1, columns)
        pool = np.sort(pool[np.isfinite(pool).all(axis=1)], axis=0)
        if len(pool):
            apart = min(1.0, weight * steps / (step + 1))
            found[step] = _order_statistics(pool, np.asarray(levels), apart)
    return found


def _band_widths(support: np.ndarray) -> np.ndarray:
    """Neighbours on each side that a step needs to reach MIN_SUPPORT scores: int64 [H]."""
    steps = np.arange(len(support))
    before = np.concatenate([[0], np.cumsum(support)])
    wanted = min(MIN_SUPPORT, int(before[-1]))
    widths = np.zeros(len(support), dtype=np.int64)
    for width in range(1, len(support)):
        low, high = np.maximum(steps - widths, 0), np.minimum(steps + widths + 1, len(support))
        thin = before[high] - before[low] < wanted
        if not thin.any():
            break
        widths[thin] = width
    return widths


def _order_statistics(ordered: np.ndarray, levels: np.ndarray, weight: float) -> np.ndarray:
    """Conservative ranks outwards from the median: [Q].

    Of m exchangeable scores they are floor and ceil of (m + 1) q. Where windows overlap, the
    correction is that of the fewer scores that do not: errors of forecasts h steps ahead go
    together over h steps (Hansen & Hodrick 1980).
    """
    top = len(ordered)
    outwards = top * (levels - 0.5) * (1 + 1 / (top * weight))
    rank = np.round((top + 1) / 2 + outwards, 9)
    low = np.where(levels <= 0.5, np.floor(rank), np.ceil(rank)).astype(np.int64)
    high = np.where(levels < 0.5, np.floor(rank), np.ceil(rank)).astype(np.int64)
    column = np.arange(len(levels)) if ordered.shape[1] == len(levels) else 0
    below, above = (ordered[np.clip(k, 1, top) - 1, column] for k in (low, high))
    return np.asarray((below + above) / 2)
