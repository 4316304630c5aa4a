"""Which of the fitted linear maps is kept, for each step and series.

Design choices: validation chooses the penalty, the reach of the lags and the use of the calendar
for each step, from errors averaged over neighbouring steps, and whether a step is better told by
a map over a long history that is shrunk towards the season (`ar_prior.py`); a series borrows from
the others (partial pooling, Gelman & Hill 2007): its map is fitted on its own windows and on those
of all others at a weight that validation chooses for each step, from nothing to full; forecasts of
training windows come from maps that were fitted without their quarter of the training span
(cross-conformal prediction, Vovk 2015), so that they can calibrate as validation windows do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from operator import add

import numpy as np

from flts_ray.models.ar_best import MIN_VALID_WINDOWS, assembled, best_map
from flts_ray.models.ar_features import Layout
from flts_ray.models.ar_map import LinearMap, Sample, maps_from, moments_of
from flts_ray.models.ar_prior import (
    Shrinkage,
    choose_borrowed,
    choose_shrinkage,
    folded,
    long_layout,
    shrunk_fit,
)
from flts_ray.models.ar_settings import Settings
from flts_ray.models.ar_sums import Sums
from flts_ray.models.ridge import Moments

MIN_OWN_TRAIN, MIN_OWN_VALID = 200, 50
"""Windows a series needs before a map of its own is tried."""
MAX_OWN_SERIES = 64
MAX_OWN_ENTRIES = 2**24
FOLDS = 4
SHORT_REACH = 24
"""Dense lags of the shorter map that is tried: the next steps often need no more."""
BORROWED = (0.0, 0.01, 0.1, 1.0)
"""Weights of the other series' windows that are tried for a map of one series."""
LONG_BORROWED = (0.01, 1.0)
"""The same for a long map, each of which costs an eigendecomposition."""


@dataclass(frozen=True)
class Grid:
    """Every setting that one fit tries, in the order of `maps_from`."""

    penalties: tuple[float, ...]
    calendars: tuple[bool, ...]
    reaches: tuple[int, ...]

    @property
    def settings(self) -> list[tuple[bool, int, float]]:
        return list(product(self.calendars, self.reaches, self.penalties))

    def maps(self, moments: Moments, layout: Layout) -> list[LinearMap]:
        return maps_from(moments, layout, self.penalties, self.calendars, self.reaches)


@dataclass(frozen=True)
class Recipe:
    """How the chosen maps are put together from windows: all that validation has decided.

    Map 0 is pooled, map 1 + i is of the series in row `owners[i]`, int64 [k], rising.
    picks: int64 [1 + k, H], the setting of each step of each map as an index into
    `grid.settings`; of a series' own map into those settings repeated for each of `weights`. The
    index after the last one is the long map of that `shrinkage`, which sees `reach` steps.
    """

    grid: Grid
    picks: np.ndarray
    owners: np.ndarray
    weights: tuple[float, ...]
    reach: int = 0
    shrinkage: tuple[Shrinkage, ...] = ()

    def pooled(self) -> list[tuple[bool, float]]:
        """Calendar and penalty of each step of the pooled map."""
        settings = [(calendar, penalty) for calendar, _, penalty in self.grid.settings]
        settings += [(False, one.penalty) for one in self.shrinkage[:1]]
        return [settings[pick] for pick in self.picks[0]]

    def sums(self, training: Sample, dense: Sample, layout: Layout) -> Sums:
        """Moments of these windows, from which `solved` makes the maps.

        dense: the windows for the long maps, which cost less each.
        """
        owners = [int(row) for row in self.owners]
        mine = [_moments(training.of(row), layout) for row in owners]
        whole = reduce(_plus, mine, _moments(training.without(owners), layout))
        far = [self.long(dense, layout), *(self.long(dense.of(row), layout) for row in owners)]
        strides = training.stride, dense.stride
        return Sums((whole, *mine), tuple(far) if self.reach else (), strides)

    def solved(self, sums: Sums, layout: Layout, before: Sequence[LinearMap]) -> list[LinearMap]:
        """The same maps fitted on the windows of these sums.

        before: the maps so far, which stay where a series has no window any more.
        """
        far = sums.long or (None,) * len(sums.short)
        total = sums.short[0]
        return [
            old
            if mine is None or total is None
            else self.fit(slot, mine, total, mine_long, far[0], layout)
            for slot, (mine, mine_long, old) in enumerate(zip(sums.short, far, before, strict=True))
        ]

    def long(self, sample: Sample, layout: Layout) -> Moments | None:
        """A sample's moments for the long maps; None where none is used or there is no window."""
        return _moments(sample, long_layout(layout, self.reach)) if self.reach else None

    def fit(
        self,
        slot: int,
        mine: Moments,
        total: Moments,
        mine_long: Moments | None,
        total_long: Moments | None,
        layout: Layout,
    ) -> LinearMap:
        """The map of a slot from the moments of its own and of all windows.

        Those of all windows do not matter for slot 0.
        """
        maps = (
            _own_maps(self.grid, mine, total, self.weights, layout)
            if slot
            else self.grid.maps(mine, layout)
        )
        if mine_long is not None:
            setting, long = self.shrinkage[slot], long_layout(layout, self.reach)
            if slot and total_long is not None:
                mine_long = _borrowing(mine_long, total_long, setting.borrowed)
            maps.append(folded(shrunk_fit(mine_long, long, setting), layout))
        return assembled(maps, self.picks[slot])


@dataclass(frozen=True)
class Choice:
    """The recipe, its maps of the training windows, and the moments of all those windows."""

    recipe: Recipe
    maps: list[LinearMap]
    total: Moments

    @property
    def lookback(self) -> int:
        """Steps of history that the farthest map sees."""
        return max(one.lookback for one in self.maps)


@dataclass(frozen=True)
class Spans:
    """Windows of both spans; `dense` ones, more of the same, serve where only sums are kept."""

    training: Sample
    valid: Sample
    dense_training: Sample
    dense_valid: Sample


def choose(spans: Spans, layout: Layout, settings: Settings, reach: int) -> Choice:
    """Fit every setting on training windows (one at least) and keep what validates best.

    reach: steps that the long maps see, 0 for none of them; windows have that many at least.
    """
    training, valid = spans.training, spans.valid
    calendars = _calendars(layout, settings)
    farthest = max((1, *layout.lags))
    reaches = (farthest, SHORT_REACH) if farthest > 2 * SHORT_REACH else (farthest,)
    grid = Grid(settings.ridge, calendars, reaches)
    weights = BORROWED if settings.pooling == "auto" else (0.0,)
    rows = _eligible(training, valid, layout, settings)
    sums, total = _sums(training, rows, layout)
    candidates = [grid.maps(total, layout)]
    candidates += [_own_maps(grid, mine, total, weights, layout) for mine in sums.values()]
    long, shrinkage = _long_maps(spans, layout, reach, rows)
    judging = replace(layout, lookback=max(layout.lookback, reach)) if long else layout
    pooled = best_map([candidates[0], long[:1]], valid, judging, len(grid.settings))
    kept = [pooled]
    for slot, (row, maps) in enumerate(zip(rows, candidates[1:], strict=True), start=1):
        families = [maps, long[slot : slot + 1]]
        kept.append(best_map(families, valid.of(row), judging, len(grid.settings), pooled[0]))
    owned = [slot for slot, (_, picked) in enumerate(kept) if slot == 0 or picked[0] >= 0]
    kept, candidates = [kept[slot] for slot in owned], [candidates[slot] for slot in owned]
    shrinkage = tuple(shrinkage[slot] for slot in owned) if shrinkage else ()
    rows = [rows[slot - 1] for slot in owned[1:]]
    picks = np.stack([picked for _, picked in kept])
    if not any((row == len(maps)).any() for row, maps in zip(picks, candidates, strict=True)):
        reach, shrinkage = 0, ()
    owners = np.asarray(rows, dtype=np.int64)
    recipe = Recipe(grid, picks, owners, weights, reach, shrinkage)
    return Choice(recipe, [fitted for fitted, _ in kept], total)


def _calendars(layout: Layout, settings: Settings) -> tuple[bool, ...]:
    if settings.calendar == "auto" and len(layout.calendar) > 0:
        return (True, False)
    return (settings.calendar is not False,)


def _long_maps(
    spans: Spans, layout: Layout, reach: int, rows: Sequence[int]
) -> tuple[list[LinearMap], tuple[Shrinkage, ...]]:
    """The long map of each slot, pooled first."""
    if not reach or len(spans.valid.series) < MIN_VALID_WINDOWS:
        return [], ()
    long, training, valid = long_layout(layout, reach), spans.dense_training, spans.dense_valid
    total = moments_of(training, long)
    found = [choose_shrinkage(total, moments_of(valid, long), long)]
    pooled = found[0][0]
    for row in rows:
        mine = moments_of(training.of(row), long)
        variants = [(weight, _borrowing(mine, total, weight)) for weight in LONG_BORROWED]
        found.append(choose_borrowed(variants, moments_of(valid.of(row), long), long, pooled))
    return [folded(fit, layout) for _, fit in found], tuple(setting for setting, _ in found)


def _sums(
    training: Sample, rows: Sequence[int], layout: Layout
) -> tuple[dict[int, Moments], Moments]:
    """Moments of each of some series, and of all windows together."""
    rest = training.without(rows)
    sums = {row: moments_of(training.of(row), layout) for row in rows}
    others = [moments_of(rest, layout)] if len(rest.series) else []
    return sums, reduce(add, [*others, *sums.values()])


def _moments(sample: Sample, layout: Layout) -> Moments | None:
    return moments_of(sample, layout) if len(sample.series) else None


def _plus(one: Moments | None, other: Moments | None) -> Moments | None:
    return one if other is None else other if one is None else one + other


def _own_maps(
    grid: Grid, mine: Moments, total: Moments, weights: Sequence[float], layout: Layout
) -> list[LinearMap]:
    """Maps of one series: every setting for each weight of the other series' windows."""
    maps = []
    for weight in weights:
        maps += grid.maps(_borrowing(mine, total, weight), layout)
    return maps


def _borrowing(mine: Moments, total: Moments, weight: float) -> Moments:
    return mine if weight == 0.0 else mine + (total - mine) * weight


def _eligible(training: Sample, valid: Sample, layout: Layout, settings: Settings) -> list[int]:
    """Rows of the series for which a map of their own is tried, rising."""
    n = training.data.n_series
    if settings.pooling == "global" or (settings.pooling == "auto" and n == 1):
        return []
    trained = np.bincount(training.series, minlength=n) >= MIN_OWN_TRAIN
    judged = np.bincount(valid.series, minlength=n) >= MIN_OWN_VALID
    rows = np.flatnonzero(trained & judged)
    most = min(MAX_OWN_SERIES, MAX_OWN_ENTRIES // (layout.lookback * layout.horizon))
    if settings.pooling == "auto" and len(rows) > most:
        return []
    return [int(row) for row in rows[:most]]


def out_of_fold(training: Sample, layout: Layout, choice: Choice) -> np.ndarray:
    """Forecasts of training windows by maps that did not see them: float64 [n, H].

    A sample too small to be divided is forecast by the pooled map itself.
    """
    mean = _out_of_fold(training, None, layout, choice, 0)
    # Only maps of single series borrow from all windows.
    total_long = choice.recipe.long(training, layout) if len(choice.recipe.owners) else None
    for slot, row in enumerate(choice.recipe.owners, start=1):
        mine = training.of(row)
        mean[training.series == row] = _out_of_fold(mine, total_long, layout, choice, slot)
    return mean


def _out_of_fold(
    sample: Sample, total_long: Moments | None, layout: Layout, choice: Choice, slot: int
) -> np.ndarray:
    folds = _folds(sample.series)
    parts = [sample.where(folds == fold) for fold in np.unique(folds)]
    mean = np.empty((len(folds), layout.horizon))
    judging = replace(layout, lookback=choice.lookback)
    if len(parts) < 2:
        return choice.maps[slot].over(sample, judging)
    recipe = choice.recipe
    sums = [moments_of(part, layout) for part in parts]
    long = [recipe.long(part, layout) for part in parts]
    for i, part in enumerate(parts):
        others = reduce(add, sums[:i] + sums[i + 1 :])
        others_long = [one for j, one in enumerate(long) if j != i and one is not None]
        fitted = recipe.fit(
            slot,
            others,
            choice.total - sums[i],
            reduce(add, others_long) if others_long else None,
            _less(total_long, long[i]),
            layout,
        )
        mean[folds == np.unique(folds)[i]] = fitted.over(part, judging)
    return mean


def _less(total: Moments | None, part: Moments | None) -> Moments | None:
    return None if total is None or part is None else total - part


def _folds(series: np.ndarray) -> np.ndarray:
    """Quarter of its series that each window lies in, shifted from series to series: int64 [n]."""
    _, first, count = np.unique(series, return_index=True, return_counts=True)
    rank = np.arange(len(series)) - np.repeat(first, count)
    return (rank * FOLDS // np.repeat(count, count) + series) % FOLDS
