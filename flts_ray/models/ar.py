"""Linear autoregression: ridge-regularised, direct for every step, pooled over series.

Design choices: one closed-form fit tries every penalty, with and without the calendar, pooled
and per series, on the same sums of products, and keeps what has the smallest scaled absolute
error on the validation span; the pooled map always exists, so a series never seen before is
forecast too; bands are conformal, and follow the recent volatility (`bands.py`).
Direct multi-step forecasts: Marcellino, Stock & Watson 2006; pooling: Montero-Manso & Hyndman
2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models import calibrate
from flts_ray.models.ar_bands import calibrated
from flts_ray.models.ar_best import MIN_VALID_WINDOWS
from flts_ray.models.ar_choice import (
    Choice,
    Grid,
    Recipe,
    Spans,
    choose,
)
from flts_ray.models.ar_features import Layout, future_features
from flts_ray.models.ar_map import LinearMap, Sample
from flts_ray.models.ar_prior import Shrinkage
from flts_ray.models.ar_settings import Settings, layout_of, reach_of, settings_of
from flts_ray.models.ar_sums import MAX_BYTES, Sums
from flts_ray.models.base import (
    Compute,
    Fitted,
    Forecast,
    ModelSpec,
    Progress,
    Task,
    check_same_set,
    resolve_params,
)
from flts_ray.models.follow import followed, with_bands
from flts_ray.models.memory import Memory, split_memory, stored
from flts_ray.models.news import News, learned, news_of
from flts_ray.models.relevel import relevelled
from flts_ray.models.spread import Spread
from flts_ray.models.strata import in_turn_of
from flts_ray.models.support import floored
from flts_ray.models.volatility import Volatility, local_scale
from flts_ray.prepare.arrays import (
    SeriesArrays,
    SeriesStats,
    Windows,
    origins_between,
    origins_in,
    turns,
    widened,
)
from flts_ray.prepare.covariates import check_ahead, check_future

MAX_VALID_WINDOWS = 10_000


@dataclass
class FittedAR:
    """`maps` are what `recipe` gives: maps[0] is for every series, the others for their owners.

    `volatility`: what the bands follow. `sums`: of the windows that the maps were refitted on;
    None before a refit and where they are too large to keep.
    """

    spec: ModelSpec
    stats: SeriesStats
    layout: Layout
    recipe: Recipe
    maps: list[LinearMap]
    volatility: Volatility
    band: calibrate.ResidualQuantiles
    sums: Sums | None = None
    memory: Memory | None = None

    @property
    def summed(self) -> int:
        """Past steps of the windows that are summed: short maps may be given up, their sums not."""
        return max(self.spec.lookback, self.layout.lookback)

    def forecast(self, windows: Windows) -> Forecast:
        """See `Fitted.forecast`; any series can be forecast."""
        mean, quantiles, _ = self._banded(windows)
        return floored(self.spec, windows, mean, quantiles)

    def served(self, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
        """Quantiles and the scale of their bands; see `recent_scores.Ask`."""
        return self._banded(windows)[1:]

    def _banded(self, windows: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, quantiles and the scale of their bands."""
        calibrate.check_lookback(windows, self.spec.lookback)
        check_ahead(windows)
        windows, task = relevelled(windows.last(self.spec.lookback)), self.spec.task
        rows = calibrate.known_rows(windows.ids, self.stats)
        mean = np.empty((len(windows), task.horizon))
        width = np.empty_like(mean)
        quantiles = np.empty((*mean.shape, len(task.levels)))
        for part in calibrate.chunks(len(windows), calibrate.CHUNK // 4):
            chunk = windows.part(part)
            scale = calibrate.series_scale(chunk, self.stats)
            mean[part] = self._mean(chunk, scale, rows[part])
            width[part] = local_scale(chunk, scale, rows[part], self.volatility)
            quantiles[part] = self.band.apply(mean[part], width[part], rows[part])
        return mean, quantiles, width

    def _mean(self, windows: Windows, scale: np.ndarray, rows: np.ndarray) -> np.ndarray:
        future = future_features(windows, replace(self.layout, lookback=self.spec.lookback))
        slots = np.zeros(len(rows), dtype=np.int64)
        owners = self.recipe.owners
        if len(owners):
            at = np.minimum(np.searchsorted(owners, rows), len(owners) - 1)
            slots = np.where(owners[at] == rows, at + 1, 0)
        mean = np.empty((len(rows), self.layout.horizon))
        for slot in np.unique(slots):
            mine = np.flatnonzero(slots == slot)
            mean[mine] = self.maps[slot].mean(windows.y[mine], scale[mine], future[mine])
        return mean

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        values = {
            "lags": list(self.layout.lags),
            "seasons": self.layout.seasons,
            "season": self.layout.season,
            "shown": list(self.layout.shown),
            "penalties": list(self.recipe.grid.penalties),
            "calendars": list(self.recipe.grid.calendars),
            "reaches": list(self.recipe.grid.reaches),
            "weights": list(self.recipe.weights),
            "reach": self.recipe.reach,
            "lookback": self.layout.lookback,
        }
        arrays = {
            "values": np.stack([m.reaching(self.spec.lookback).values for m in self.maps]),
            "future": np.stack([m.future for m in self.maps]),
            "bias": np.stack([m.bias for m in self.maps]),
            "picks": self.recipe.picks,
            "owners": self.recipe.owners,
            "shrinkage": np.asarray([one.row() for one in self.recipe.shrinkage], np.float64),
            "center": self.layout.center,
            "spread": self.layout.spread,
        }
        kept = {} if self.sums is None else self.sums.arrays()
        bands = {**self.volatility.arrays(), **self.band.arrays()}
        return values, {**arrays, **bands, **kept, **stored(self.memory)}


class LinearAR:
    """See `Settings` for the parameters."""

    kind = "ar"
    iterative = False
    defaults: Mapping[str, Any] = Settings().model_dump()

    def fit(
        self, data: SeriesArrays, task: Task, params: Mapping[str, Any], compute: Compute
    ) -> Iterator[Progress]:
        """Fit all settings, choose on validation, calibrate; yields once.

        Metrics: `valid_loss` (scaled pinball), `valid_mae` (scaled), the median `ridge` and the
        share of steps with the `calendar` in the pooled map, and `own_maps`, the number of
        series with maps of their own.
        """
        settings = settings_of(resolve_params(self, params))
        check_future(data)
        layout = layout_of(data, task.horizon, settings)
        reach = reach_of(data, layout, settings)
        seen = replace(layout, lookback=max(layout.lookback, reach))
        spread = compute.over_parts
        training = _training(data, seen, settings.max_windows, spread)
        valid = _sample(data, "validation", seen, min(MAX_VALID_WINDOWS, _most(layout)), spread)
        spans = Spans(
            training,
            valid,
            _sample(data, "train", seen, settings.max_windows, spread),
            _sample(data, "validation", seen, settings.max_windows, spread),
        )
        choice = choose(spans, layout, settings, reach)
        reported = _reported(settings, layout, choice)
        spec = ModelSpec(self.kind, task, choice.lookback, data.contract, reported)
        found = calibrated(layout, choice, training, valid, task.levels)
        fitted = FittedAR(
            spec=spec,
            stats=data.stats,
            layout=layout,
            recipe=choice.recipe,
            maps=choice.maps,
            volatility=found.bands.volatility,
            band=found.bands.band,
            memory=Memory.of(data, task),
        )
        pooled = choice.recipe.pooled()
        chosen = {
            "ridge": float(np.median([penalty for _, penalty in pooled])),
            "calendar": float(np.mean([calendar for calendar, _ in pooled])),
            "own_maps": float(len(choice.recipe.owners)),
        }
        yield Progress(1, {**found.metrics, **chosen}, fitted)

    def refit(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> FittedAR:
        """Maps of the same settings from the windows of both spans; see `Forecaster.refit`."""
        assert isinstance(fitted, FittedAR)
        check_same_set(fitted, data)
        most = int(fitted.spec.params["max_windows"])
        seen = replace(fitted.layout, lookback=fitted.summed)
        windows = _training(widened(data), seen, most, compute.over_parts)
        dense = _sample(windows.data, "train", seen, most, compute.over_parts)
        return solved_from(fitted, fitted.recipe.sums(windows, dense, fitted.layout))

    def update(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> FittedAR:
        """Sums of the new windows are added and the maps solved again; see `Updater.update`.

        Of a model whose sums were not kept, all windows are summed again.
        """
        assert isinstance(fitted, FittedAR)
        news = news_of(fitted, data)
        if news is None:
            return fitted
        found = learned(fitted, news, fitted.served, own=True, bands=compute.bands)
        if fitted.sums is None:
            again = self.refit(replace(fitted, stats=news.stats), news.whole(), compute)
        else:
            again = solved_from(fitted, fitted.sums + _new_sums(fitted, news))
        return replace(with_bands(again, found), stats=news.stats)

    def follow(self, fitted: Fitted, data: SeriesArrays) -> FittedAR:
        """See `Follower.follow`."""
        assert isinstance(fitted, FittedAR)
        return followed(fitted, data, fitted.served, with_bands, own=True)

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> FittedAR:
        """See `Forecaster.restore`."""
        arrays, memory = split_memory(arrays, stats, spec.task)
        layout = Layout(
            lags=tuple(int(lag) for lag in values["lags"]),
            seasons=int(values["seasons"]),
            lookback=int(values["lookback"]),
            horizon=spec.task.horizon,
            season=int(values["season"]),
            calendar=spec.contract.calendar,
            center=arrays["center"],
            spread=arrays["spread"],
            shown=tuple(values["shown"]),
        )
        grid = Grid(
            tuple(float(penalty) for penalty in values["penalties"]),
            tuple(bool(calendar) for calendar in values["calendars"]),
            tuple(int(reach) for reach in values["reaches"]),
        )
        weights = tuple(float(weight) for weight in values["weights"])
        maps = zip(arrays["values"], arrays["future"], arrays["bias"], strict=True)
        band = calibrate.ResidualQuantiles.from_arrays(arrays)
        return FittedAR(
            spec=spec,
            stats=stats,
            layout=layout,
            recipe=Recipe(
                grid,
                arrays["picks"],
                arrays["owners"],
                weights,
                int(values["reach"]),
                tuple(Shrinkage.of_row(row) for row in arrays["shrinkage"]),
            ),
            maps=[LinearMap(*parts) for parts in maps],
            volatility=Volatility.from_arrays(arrays),
            band=band,
            sums=Sums.from_arrays(arrays),
            memory=memory,
        )


def solved_from(fitted: FittedAR, sums: Sums) -> FittedAR:
    """The model with maps from these sums, which it keeps if they are small enough."""
    maps = fitted.recipe.solved(sums, fitted.layout, fitted.maps)
    return replace(fitted, maps=maps, sums=sums if sums.nbytes <= MAX_BYTES else None)


def _new_sums(fitted: FittedAR, news: News) -> Sums:
    """Sums of the windows whose targets were not all seen yet, at the strides of the old ones."""
    assert fitted.sums is not None
    lookback, horizon = fitted.summed, fitted.spec.task.horizon
    data, begin = news.tail(lookback + horizon - 1)
    whole = widened(data)
    series, origins = origins_in(whole, "train", lookback, horizon)
    new = origins + horizon > data.train_end[series]
    every = Sample(whole, series[new], origins[new])
    since_first = every.origins + begin[every.series] - lookback
    # Series that begin together take turns, or an update would learn of all at one step or none.
    turn = turns(whole.ids)[every.series]
    near, far = (
        every.where(in_turn_of(since_first, stride, turn)) for stride in fitted.sums.strides
    )
    return fitted.recipe.sums(near, far, fitted.layout)


def _sample(data: SeriesArrays, span: str, layout: Layout, most: int, spread: Spread) -> Sample:
    reach = layout.lookback, layout.horizon
    chosen = calibrate.sample_origins(data, span, *reach, most)
    stride = round(int(origins_between(data, span, *reach)[1].sum()) / most)
    return Sample(data, *chosen, spread, max(1, stride))


def _most(layout: Layout) -> int:
    """Most windows whose forecasts fit into memory."""
    return max(MIN_VALID_WINDOWS, calibrate.MAX_SCORES // layout.horizon)


def _training(data: SeriesArrays, layout: Layout, most: int, spread: Spread) -> Sample:
    """Training windows. Raises DataError if there is none."""
    training = _sample(data, "train", layout, min(most, _most(layout)), spread)
    if len(training.series) == 0:
        raise DataError(
            f"no series has a training window of {layout.lookback} + {layout.horizon} steps "
            "without a long gap; lower models.ar.params.lags or task.horizon, or give longer "
            "series",
            field="lags",
        )
    return training


def _reported(settings: Settings, layout: Layout, choice: Choice) -> dict[str, Any]:
    """Parameters narrowed to what was chosen for the pooled map."""
    lags, pooled = settings.lags, choice.recipe.pooled()
    calendars = {calendar for calendar, _ in pooled}
    if lags is None:
        lags = max((1, *layout.lags))
    return {
        "lags": lags if isinstance(lags, int) else list(lags),
        "seasons": layout.seasons,
        "ridge": sorted({penalty for _, penalty in pooled} & {*settings.ridge} or settings.ridge),
        "reach": choice.recipe.reach,
        "pooling": settings.pooling if len(choice.recipe.owners) else "global",
        "calendar": calendars.pop() if len(calendars) == 1 else "auto",
        "max_windows": settings.max_windows,
    }
