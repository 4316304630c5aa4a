"""Which of the fitted linear maps is kept, for each step and series.

Design choices: validation chooses the penalty, the reach of the lags and the use of the calendar
for each step, from errors averaged over neighbouring steps; a series borrows from the others
(partial pooling, Gelman & Hill 2007): its map is fitted on its own windows and on those of all
others at a weight that validation chooses for each step, from nothing to full; forecasts of
training windows come from maps that were fitted without their quarter of the training span
(cross-conformal prediction, Vovk 2015), so that they can calibrate as validation windows do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import add

import numpy as np

from flts_ray.models.ar_features import Layout
from flts_ray.models.ar_map import LinearMap, Sample, maps_from, moments_of, scaled_errors
from flts_ray.models.ar_settings import Settings
from flts_ray.models.ridge import Moments

MIN_VALID_WINDOWS = 30
"""With fewer, the middle penalty and the calendar are taken unseen."""
MIN_OWN_TRAIN, MIN_OWN_VALID = 200, 50
"""Windows a series needs before a map of its own is tried."""
MAX_OWN_SERIES = 64
MAX_OWN_ENTRIES = 2**24
FOLDS = 4
SHORT_REACH = 24
"""Dense lags of the shorter map that is tried: the next steps often need no more."""
BORROWED = (0.0, 0.01, 0.1, 1.0)
"""Weights of the other series' windows that are tried for a map of one series."""


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
    `grid.settings`; of a series' own map into those settings repeated for each of `weights`.
    """

    grid: Grid
    picks: np.ndarray
    owners: np.ndarray
    weights: tuple[float, ...]

    @property
    def penalties(self) -> list[float]:
        """Penalty of each step of the pooled map."""
        return [self.grid.settings[pick][2] for pick in self.picks[0]]

    @property
    def calendars(self) -> list[bool]:
        """Whether each step of the pooled map uses the calendar."""
        return [self.grid.settings[pick][0] for pick in self.picks[0]]

    def maps(self, training: Sample, layout: Layout) -> list[LinearMap]:
        """The same maps fitted on these windows, of which every owner has one at least."""
        sums, total = _sums(training, [int(row) for row in self.owners], layout)
        maps = [_assembled(self.grid.maps(total, layout), self.picks[0])]
        for picks, mine in zip(self.picks[1:], sums.values(), strict=True):
            own = _own_maps(self.grid, mine, total, self.weights, layout)
            maps.append(_assembled(own, picks))
        return maps


@dataclass(frozen=True)
class Choice:
    """The recipe, its maps of the training windows, and the moments of all those windows."""

    recipe: Recipe
    maps: list[LinearMap]
    total: Moments


def choose(training: Sample, valid: Sample, layout: Layout, settings: Settings) -> Choice:
    """Fit every setting on training windows (one at least) and keep what validates best."""
    both = settings.calendar == "auto" and len(layout.calendar) > 0
    farthest = max((1, *layout.lags))
    grid = Grid(
        settings.ridge,
        (True, False) if both else (settings.calendar is not False,),
        (farthest, SHORT_REACH) if farthest > 2 * SHORT_REACH else (farthest,),
    )
    rows = _eligible(training, valid, layout, settings)
    sums, total = _sums(training, rows, layout)
    pooled, picks = _best(grid.maps(total, layout), valid, layout, len(grid.settings))
    weights = BORROWED if settings.pooling == "auto" else (0.0,)
    own = {
        row: _best(
            _own_maps(grid, mine, total, weights, layout), valid.of(row), layout, len(grid.settings)
        )
        for row, mine in sums.items()
    }
    recipe = Recipe(
        grid=grid,
        picks=np.stack([picks, *(picked for _, picked in own.values())]),
        owners=np.asarray(list(own), dtype=np.int64),
        weights=weights,
    )
    return Choice(recipe, [pooled, *(fitted for fitted, _ in own.values())], total)


def _sums(
    training: Sample, rows: Sequence[int], layout: Layout
) -> tuple[dict[int, Moments], Moments]:
    """Moments of each of some series, and of all windows together."""
    rest = training.without(rows)
    sums = {row: moments_of(training.of(row), layout) for row in rows}
    others = [moments_of(rest, layout)] if len(rest.series) else []
    return sums, reduce(add, [*others, *sums.values()])


def _own_maps(
    grid: Grid, mine: Moments, total: Moments, weights: Sequence[float], layout: Layout
) -> list[LinearMap]:
    """Maps of one series: every setting for each weight of the other series' windows."""
    maps = []
    for weight in weights:
        borrowed = mine if weight == 0.0 else mine + (total - mine) * weight
        maps += grid.maps(borrowed, layout)
    return maps


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


def _best(
    maps: list[LinearMap], valid: Sample, layout: Layout, settings: int
) -> tuple[LinearMap, np.ndarray]:
    """The map put together from the best one of each step, and which those are."""
    if len(valid.series) < MIN_VALID_WINDOWS:
        picks = np.full(layout.horizon, min(settings, len(maps)) // 2, dtype=np.int64)
    else:
        errors = scaled_errors(maps, valid, layout)
        reach = max(1, layout.horizon // 8)
        before = np.concatenate([np.zeros((len(maps), 1)), np.cumsum(errors, axis=1)], axis=1)
        steps = np.arange(layout.horizon)
        low, high = np.maximum(steps - reach, 0), np.minimum(steps + reach + 1, layout.horizon)
        # The next step is what most users look at first: its own errors decide.
        high[0] = 1
        picks = ((before[:, high] - before[:, low]) / (high - low)).argmin(axis=0)
    return _assembled(maps, picks), picks


def _assembled(maps: Sequence[LinearMap], picks: np.ndarray) -> LinearMap:
    return LinearMap(
        values=np.stack([maps[p].values[:, h] for h, p in enumerate(picks)], axis=1),
        future=np.stack([maps[p].future[h] for h, p in enumerate(picks)]),
        bias=np.array([maps[p].bias[h] for h, p in enumerate(picks)]),
    )


def out_of_fold(training: Sample, layout: Layout, choice: Choice) -> np.ndarray:
    """Forecasts of training windows by maps that did not see them: float64 [n, H].

    A sample too small to be divided is forecast by the pooled map itself.
    """
    mean = _out_of_fold(training, layout, choice, 0)
    for slot, row in enumerate(choice.recipe.owners, start=1):
        mean[training.series == row] = _out_of_fold(training.of(row), layout, choice, slot)
    return mean


def _out_of_fold(sample: Sample, layout: Layout, choice: Choice, slot: int) -> np.ndarray:
    folds = _folds(sample.series)
    parts = [sample.where(folds == fold) for fold in np.unique(folds)]
    mean = np.empty((len(folds), layout.horizon))
    if len(parts) < 2:
        return choice.maps[slot].over(sample, layout)
    recipe = choice.recipe
    sums = [moments_of(part, layout) for part in parts]
    for i, part in enumerate(parts):
        others = reduce(add, sums[:i] + sums[i + 1 :])
        maps = (
            _own_maps(recipe.grid, others, choice.total - sums[i], recipe.weights, layout)
            if slot
            else recipe.grid.maps(others, layout)
        )
        fitted = _assembled(maps, recipe.picks[slot])
        mean[folds == np.unique(folds)[i]] = fitted.over(part, layout)
    return mean


def _folds(series: np.ndarray) -> np.ndarray:
    """Quarter of its series that each window lies in, shifted from series to series: int64 [n]."""
    _, first, count = np.unique(series, return_index=True, return_counts=True)
    rank = np.arange(len(series)) - np.repeat(first, count)
    return (rank * FOLDS // np.repeat(count, count) + series) % FOLDS
