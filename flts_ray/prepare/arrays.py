"""A prepared set in memory, and the windows that models see.

Design choices: series lie end to end in flat arrays (`offsets` marks the borders), so a million
series of different lengths are a few arrays that Ray shares without a copy; a window is index
arithmetic on them; a model never touches `SeriesArrays` beyond its training span except through
`windows_at`, which is where "nothing after the origin" is enforced.

Positions are step indices from the start of their series. An origin `t` means that steps
`[0, t)` are known and steps `[t, t + horizon)` are forecast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from zlib import crc32

import numpy as np

from flts_ray.panel import Contract, steps_after

FEW_ORIGINS = 8
ROWS_AT_ONCE = 2**22
"""Rows that a scan of a set looks through together."""
MOVED = 0.1
"""Share of a window beyond the training bounds from which its level has moved."""


@dataclass(frozen=True)
class SeriesStats:
    """What was learned about each series on its training span, in the input's units.

    All arrays are float64 [series]. `scale` is the mean absolute seasonal-naive error within the
    training span (the denominator of MASE, Hyndman & Koehler 2006), never below a tiny positive
    number. `clip_lo` and `clip_hi` are -inf and inf where nothing is clipped.
    """

    ids: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    scale: np.ndarray
    clip_lo: np.ndarray
    clip_hi: np.ndarray

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each series in the arrays, by id."""
        return {name: row for row, name in enumerate(self.ids)}

    def take(self, index: np.ndarray) -> SeriesStats:
        return SeriesStats(
            tuple(self.ids[i] for i in index),
            *(getattr(self, n)[index] for n in ("mean", "std", "scale", "clip_lo", "clip_hi")),
        )


@dataclass(frozen=True)
class SeriesArrays:
    """Every series of a prepared set, end to end.

    offsets: int64 [series + 1]; series i is rows `offsets[i]:offsets[i+1]`.
    start_us: int64 [series], first step, UTC microseconds.
    train_end, valid_end: int64 [series], positions; test is `[valid_end, length)`.
    y: float64 [rows], input's units; short gaps are imputed causally, longer ones are NaN.
    observed: bool [rows], False where `y` was imputed or is missing.
    future: float32 [rows, F] in the order of `contract.future`; past: float32 [rows, P];
    static: float32 [series, S] (numbers, or codes of sorted categories).
    """

    contract: Contract
    stats: SeriesStats
    offsets: np.ndarray
    start_us: np.ndarray
    train_end: np.ndarray
    valid_end: np.ndarray
    y: np.ndarray
    observed: np.ndarray
    future: np.ndarray
    past: np.ndarray
    static: np.ndarray

    @property
    def ids(self) -> tuple[str, ...]:
        return self.stats.ids

    @property
    def n_series(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def rows(self, series: int) -> slice:
        return slice(int(self.offsets[series]), int(self.offsets[series + 1]))

    def take(self, index: Sequence[int] | np.ndarray) -> SeriesArrays:
        """The chosen series, in the given order, as a set of their own (copies the rows)."""
        chosen = np.asarray(index, dtype=np.int64)
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        rows = np.arange(offsets[-1]) + shift
        return replace(
            self,
            stats=self.stats.take(chosen),
            offsets=offsets,
            start_us=self.start_us[chosen],
            train_end=self.train_end[chosen],
            valid_end=self.valid_end[chosen],
            y=self.y[rows],
            observed=self.observed[rows],
            future=self.future[rows],
            past=self.past[rows],
            static=self.static[chosen],
        )


def widened(data: SeriesArrays) -> SeriesArrays:
    """The same set whose training span reaches to the test span; its validation span is empty.

    Statistics (scale, clip bounds) stay those of the training span, so that whatever was fitted
    in their units keeps its meaning.
    """
    return replace(data, train_end=data.valid_end)


@dataclass(frozen=True)
class Windows:
    """What a model may know at each origin. n windows, lookback L, horizon H.

    ids: series of each window (any string for a series never seen before).
    origin_us: int64 [n], instant of the first step to forecast, UTC microseconds.
    y: float64 [n, L], `bounded` by the training bounds, no NaN. observed: bool [n, L].
    past: float32 [n, L, P]. future: float32 [n, L + H, F] (history, then horizon).
    static: float32 [n, S].
    scale: float64 [n], `SeriesStats.scale`, NaN for a series never seen before.
    """

    contract: Contract
    ids: tuple[str, ...]
    origin_us: np.ndarray
    y: np.ndarray
    observed: np.ndarray
    past: np.ndarray
    future: np.ndarray
    static: np.ndarray
    scale: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lookback(self) -> int:
        return int(self.y.shape[1])

    @property
    def horizon(self) -> int:
        return int(self.future.shape[1] - self.y.shape[1])

    def last(self, lookback: int) -> Windows:
        """The same origins with a shorter lookback (views)."""
        cut = self.lookback - lookback
        if not cut:
            return self
        return replace(
            self,
            y=self.y[:, cut:],
            observed=self.observed[:, cut:],
            past=self.past[:, cut:],
            future=self.future[:, cut:],
        )

    def part(self, rows: slice) -> Windows:
        """A run of windows (views)."""
        names = ("origin_us", "y", "observed", "past", "future", "static", "scale")
        return replace(self, ids=self.ids[rows], **{n: getattr(self, n)[rows] for n in names})


def windows_at(
    data: SeriesArrays, series: np.ndarray, origins: np.ndarray, lookback: int, horizon: int
) -> Windows:
    """Windows of `data` at the given origins.

    series, origins: int64 [n]; every window must fit: `origin >= lookback` and
    `origin + horizon <= length`. Values and past covariates at or after the origin are not read.
    """
    series, origins = np.asarray(series, np.int64), np.asarray(origins, np.int64)
    base = data.offsets[series] + origins
    back = base[:, None] + np.arange(-lookback, 0)
    whole = base[:, None] + np.arange(-lookback, horizon)
    stats = data.stats
    y = bounded(data.y[back], stats.clip_lo[series, None], stats.clip_hi[series, None])
    return Windows(
        contract=data.contract,
        ids=tuple(data.ids[i] for i in series),
        origin_us=steps_after(data.start_us[series], origins, data.contract),
        y=y,
        observed=data.observed[back],
        past=data.past[back],
        future=data.future[whole],
        static=data.static[series],
        scale=stats.scale[series],
    )


def bounded(y: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Windows with their outliers clipped.

    y: float64 [..., L], no NaN; low, high: broadcast against y. A window of which more than
    MOVED lies outside stays as it is: its level is no outlier any more, and clipped it would
    hold every forecast at the old bound.
    """
    outside = (y < low) | (y > high)
    if not outside.any():
        return y
    moved = outside.mean(axis=-1, keepdims=True) > MOVED
    return np.asarray(np.where(moved, y, np.clip(y, low, high)))


def actuals_at(
    data: SeriesArrays, series: np.ndarray, origins: np.ndarray, horizon: int
) -> np.ndarray:
    """What really happened: float64 [n, horizon], never clipped, NaN where not observed."""
    at = (data.offsets[series] + origins)[:, None] + np.arange(horizon)
    return np.where(data.observed[at], data.y[at], np.nan)


def origins_in(
    data: SeriesArrays,
    span: str,
    lookback: int,
    horizon: int,
    stride: int = 1,
    max_origins: int | None = None,
    staggered: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Origins whose targets lie in one span and whose history is complete.

    span: "train" (history and targets within training), "validation" or "test" (targets within
    the span, history may reach back into the one before). `max_origins` bounds the origins of
    one series by widening the stride for that series. `staggered`: a series with fewer than
    `FEW_ORIGINS` begins elsewhere within its first stride, wherever its name says, because those
    of many such series would lie at the same instants; one that ends before has none. Windows
    whose history holds a NaN, or whose targets were nowhere observed, are left out. Returns
    (series, origins), int64 [n], ordered by series, then time.
    """
    first, fitting = origins_between(data, span, lookback, horizon)
    step = np.full(data.n_series, stride)
    if max_origins is not None:
        step = np.maximum(step, -(-fitting // max_origins))
    if staggered:
        few = fitting < FEW_ORIGINS * step
        if few.any():  # names are hashed only where it matters
            later = np.where(few, turns(data.ids) * step, 0.0).astype(np.int64)
            first, fitting = first + later, np.maximum(fitting - later, 0)
    count = -(-fitting // step)
    found = [np.zeros((2, 0), np.int64)]
    for some in runs_of_series(data.offsets):
        if count[some].any():
            series = np.repeat(np.arange(some.start, some.stop), count[some])
            before = np.repeat(np.cumsum(count[some]) - count[some], count[some])
            origins = first[series] + (np.arange(len(series)) - before) * step[series]
            kept = _usable(data, some, series, origins, lookback, horizon, span == "train")
            found.append(np.stack([series[kept], origins[kept]]))
    series, origins = np.concatenate(found, axis=1)
    return series, origins


def origins_between(
    data: SeriesArrays, span: str, lookback: int, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """First origin of each series, and how many there are, whatever their windows hold.

    Spans as of `origins_in`. int64 [series] each.
    """
    first, last = _borders(data, span)
    first = np.maximum(first, lookback)
    return first, np.maximum(last - horizon - first + 1, 0)


def usable_windows(
    data: SeriesArrays,
    span: str,
    series: np.ndarray,
    origins: np.ndarray,
    lookback: int,
    horizon: int,
) -> np.ndarray:
    """Which windows `origins_in` does not leave out: bool [n].

    series, origins: int64 [n], of `origins_between`, ordered by series. Costs what is less, a
    look at every window or at every row of the set.
    """
    steps, complete = lookback + horizon, span == "train"
    if len(series) * steps < len(data.y):
        size = max(1, ROWS_AT_ONCE // steps)
        cuts = [slice(at, at + size) for at in range(0, len(series), size)]
        found = [
            _seen_usable(data, series[cut], origins[cut], lookback, horizon, complete)
            for cut in cuts
        ]
    else:
        found = []
        for some in runs_of_series(data.offsets):
            low, high = np.searchsorted(series, [some.start, some.stop])
            here = series[low:high], origins[low:high]
            found.append(_usable(data, some, *here, lookback, horizon, complete))
    return np.concatenate([np.zeros(0, bool), *found])


def turns(ids: Sequence[str]) -> np.ndarray:
    """A share below one for each series, by its name alone: float64 [series]."""
    hashed = (crc32(name.encode("utf-8", "surrogatepass")) for name in ids)
    return np.fromiter(hashed, dtype=np.float64, count=len(ids)) / 2**32


def _borders(data: SeriesArrays, span: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions between which the targets of one span lie: int64 [series]."""
    if span == "train":
        return np.zeros_like(data.train_end), data.train_end
    if span == "validation":
        return data.train_end, data.valid_end
    if span == "test":
        return data.valid_end, data.lengths
    raise ValueError(f"span {span!r}")


def runs_of_series(offsets: np.ndarray) -> Iterator[slice]:
    """Runs of series that hold at most `ROWS_AT_ONCE` rows or are one series: what a scan of the
    rows takes at a time, because its temporary arrays would be larger than the set."""
    start, n_series = 0, len(offsets) - 1
    while start < n_series:
        fits = int(np.searchsorted(offsets, offsets[start] + ROWS_AT_ONCE, side="right")) - 1
        stop = min(max(fits, start + 1), n_series)
        yield slice(start, stop)
        start = stop


def _usable(
    data: SeriesArrays,
    some: slice,
    series: np.ndarray,
    origins: np.ndarray,
    lookback: int,
    horizon: int,
    complete: bool,
) -> np.ndarray:
    """Whether windows of a run of series have a whole history and observed targets: bool [n].

    complete: no target may be missing.
    """
    begin = data.offsets[some.start]
    rows = slice(begin, data.offsets[some.stop])
    missing = np.concatenate([[0], np.cumsum(np.isnan(data.y[rows]))])
    seen = np.concatenate([[0], np.cumsum(data.observed[rows])])
    at = data.offsets[series] - begin + origins
    usable = (missing[at] == missing[at - lookback]) & (seen[at + horizon] > seen[at])
    if complete:
        usable &= missing[at + horizon] == missing[at]
    return usable


def _seen_usable(
    data: SeriesArrays,
    series: np.ndarray,
    origins: np.ndarray,
    lookback: int,
    horizon: int,
    complete: bool,
) -> np.ndarray:
    """What `_usable` says, from the rows of these windows alone."""
    at = (data.offsets[series] + origins)[:, None]
    known = lookback + (horizon if complete else 0)
    whole = ~np.isnan(data.y[at + np.arange(-lookback, known - lookback)]).any(axis=1)
    return np.asarray(whole & data.observed[at + np.arange(horizon)].any(axis=1))
