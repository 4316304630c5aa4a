"""The fitted linear map, and how it is found from training windows.

Design choices: a fit is folded into one matrix from history to horizon and one row of future
weights a step; products run on blocks of a fixed shape, so a window's forecast does not depend on
the batch it arrives in; every window is divided by its series' scale, which weighs the series by
one over the scale squared and makes one map serve all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import product
from operator import add

import numpy as np

from flts_ray.models import calibrate
from flts_ray.models.ar_features import (
    Layout,
    calendar_width,
    deviations,
    future_features,
    seasonal_features,
    shared_features,
)
from flts_ray.models.ridge import Moments, solve
from flts_ray.models.spread import Spread, in_turn, whole
from flts_ray.prepare.arrays import SeriesArrays, Windows, actuals_at, windows_at

BLOCK = 64
"""Rows of one product."""
MAX_CELLS = 2**22
"""Bound of the step features that exist at a time (float64 entries)."""
PART_WINDOWS, MAX_PARTS = 8192, 16
"""Windows that one task sums at least, and most tasks of one sum: each hands over all of it."""


@dataclass(frozen=True)
class LinearMap:
    """values: float64 [L, H]; future: float64 [H, r]; bias: float64 [H], in scaled units."""

    values: np.ndarray
    future: np.ndarray
    bias: np.ndarray

    @property
    def lookback(self) -> int:
        return len(self.values)

    def reaching(self, lookback: int) -> LinearMap:
        """The same map of a longer history, whose older part counts nothing."""
        return replace(self, values=np.pad(self.values, ((lookback - self.lookback, 0), (0, 0))))

    def mean(self, y: np.ndarray, scale: np.ndarray, future: np.ndarray) -> np.ndarray:
        """Expected values, float64 [n, H], in the units of `y`.

        y: [n, L or more]; scale: [n]; future: [n, H, r] of `future_features`.
        """
        moved = _in_blocks(deviations(y[:, -self.lookback :]), self.values)
        told = np.einsum("nhr,hr->nh", future, self.future) + self.bias
        return np.asarray(y[:, -1:] + moved + scale[:, None] * told)

    def over(self, sample: Sample, layout: Layout) -> np.ndarray:
        """Expected values of a sample's windows: float64 [n, H]."""
        mean = np.empty((len(sample.series), layout.horizon))
        for part, windows, scale, future in sample.chunks(layout):
            mean[part] = self.mean(windows.y, scale, future)
        return mean


def _in_blocks(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    count = -(-len(rows) // BLOCK)
    padded = np.zeros((count * BLOCK, rows.shape[1]))
    padded[: len(rows)] = rows
    product = padded.reshape(count, BLOCK, -1) @ weights
    return np.asarray(product.reshape(count * BLOCK, -1)[: len(rows)])


@dataclass(frozen=True)
class Sample:
    """Some windows of a set: series and origins, int64 [n], ordered by series; `spread`: what
    sums them; `stride`: one of how many windows they are, about."""

    data: SeriesArrays
    series: np.ndarray
    origins: np.ndarray
    spread: Spread = in_turn
    stride: int = 1

    def of(self, row: int) -> Sample:
        """The windows of one series."""
        low, high = np.searchsorted(self.series, [row, row + 1])
        return replace(self, series=self.series[low:high], origins=self.origins[low:high])

    def where(self, kept: np.ndarray) -> Sample:
        """The windows where `kept` (bool [n]) is True."""
        return replace(self, series=self.series[kept], origins=self.origins[kept])

    def without(self, rows: Sequence[int]) -> Sample:
        """The windows of all series but these."""
        return self.where(~np.isin(self.series, rows))

    def chunks(self, layout: Layout) -> Iterator[tuple[slice, Windows, np.ndarray, np.ndarray]]:
        """Slices with their windows, scales [n] and future features [n, H, r]."""
        width = 2 * layout.seasons + future_width(self.data, layout)
        size = max(BLOCK, min(calibrate.CHUNK, MAX_CELLS // (layout.horizon * width)))
        for part in calibrate.chunks(len(self.series), size):
            windows = windows_at(
                self.data, self.series[part], self.origins[part], layout.lookback, layout.horizon
            )
            scale = calibrate.series_scale(windows, self.data.stats)
            yield part, windows, scale, future_features(windows, layout)

    def actuals(self, horizon: int) -> np.ndarray:
        """What happened: float64 [n, H], NaN where not observed."""
        return actuals_at(self.data, self.series, self.origins, horizon)


def future_width(data: SeriesArrays, layout: Layout) -> int:
    """Number of future features of a step, one at least."""
    return max(1, calendar_width(layout) + 6 * len(data.contract.known_future))


def moments_of(sample: Sample, layout: Layout) -> Moments:
    """Sums over all windows of a sample that is not empty: one map-reduce.

    Parts and their order follow from the sample alone, so the sums are the same wherever its
    `spread` runs them. Raises FltsError where a part failed.
    """
    n = len(sample.series)
    size = max(PART_WINDOWS, -(-n // MAX_PARTS))
    rows = [slice(start, start + size) for start in range(0, n, size)]
    parts = [(sample.series[one], sample.origins[one]) for one in rows]
    costs = [float(len(series)) for series, _ in parts]
    found = sample.spread(partial(part_moments, layout=layout), sample.data, parts, costs)
    return reduce(add, whole(found))


def part_moments(
    data: SeriesArrays, part: tuple[np.ndarray, np.ndarray], layout: Layout
) -> Moments:
    """Sums over some windows of a set, one at least; part: their series and origins."""
    sample = Sample(data, *part)
    return reduce(add, (_chunk_moments(sample, *chunk, layout) for chunk in sample.chunks(layout)))


def _chunk_moments(
    sample: Sample,
    part: slice,
    windows: Windows,
    scale: np.ndarray,
    future: np.ndarray,
    layout: Layout,
) -> Moments:
    stats, series = sample.data.stats, sample.series[part]
    values = deviations(windows.y) / scale[:, None]
    at = (sample.data.offsets[series] + sample.origins[part])[:, None]
    y = sample.data.y[at + np.arange(layout.horizon)]
    y = np.clip(y, stats.clip_lo[series, None], stats.clip_hi[series, None])
    step = np.concatenate([seasonal_features(values, layout), future], axis=2)
    target = (y - windows.y[:, -1:]) / scale[:, None]
    return Moments.of(shared_features(values, layout), step, target)


def maps_from(
    moments: Moments,
    layout: Layout,
    penalties: Sequence[float],
    calendars: Sequence[bool],
    reaches: Sequence[int],
) -> list[LinearMap]:
    """Fitted maps of every setting; penalties vary fastest, then reaches, then calendars.

    A reach is the farthest dense lag that counts; seasonal lags and the mean always do.
    """
    unit = np.eye(layout.lookback)
    shared, seasonal = shared_features(unit, layout), seasonal_features(unit, layout)
    first = seasonal.shape[2]
    maps = []
    for calendar, reach in product(calendars, reaches):
        kept = np.ones(moments.step.shape[1], dtype=bool)
        kept[first : first + calendar_width(layout)] = calendar
        near = np.asarray([*(lag <= reach for lag in layout.lags), True])
        for fit in solve(moments, penalties, kept, near):
            values = shared @ fit.shared
            values += np.einsum("lhv,hv->lh", seasonal, fit.step[:, :first])
            maps.append(LinearMap(values, fit.step[:, first:], fit.bias))
    return maps


def scaled_errors(maps: Sequence[LinearMap], sample: Sample, layout: Layout) -> np.ndarray:
    """Mean absolute scaled error of each map at each step: float64 [maps, H].

    The layout's lookback is that of the farthest map.
    """
    actual = sample.actuals(layout.horizon)
    missed = np.zeros((len(maps), layout.horizon))
    for part, windows, scale, future in sample.chunks(layout):
        for row, fitted in enumerate(maps):
            error = np.abs(actual[part] - fitted.mean(windows.y, scale, future))
            missed[row] += np.nansum(error / scale[:, None], axis=0)
    return missed / np.maximum(np.isfinite(actual).sum(axis=0), 1)
