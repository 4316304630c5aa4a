"""Linear autoregression: ridge-regularised, direct for every step, pooled over series.

Design choices: one closed-form fit tries every penalty, with and without the calendar, pooled
and per series, on the same sums of products, and keeps what has the smallest scaled absolute
error on the validation span; the pooled map always exists, so a series never seen before is
forecast too; bands are conformal, and follow the recent volatility where that pays.
Direct multi-step forecasts: Marcellino, Stock & Watson 2006; pooling: Montero-Manso & Hyndman
2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
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
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, Windows, widened

MAX_VALID_WINDOWS = 10_000


@dataclass
class FittedAR:
    """`maps` are what `recipe` gives: maps[0] is for every series, the others for their owners.

    `volatility`: what the bands follow.
    """

    spec: ModelSpec
    stats: SeriesStats
    layout: Layout
    recipe: Recipe
    maps: list[LinearMap]
    volatility: calibrate.Volatility
    band: calibrate.ResidualQuantiles

    def forecast(self, windows: Windows) -> Forecast:
        """See `Fitted.forecast`; any series can be forecast."""
        calibrate.check_lookback(windows, self.spec.lookback)
        windows, task = windows.last(self.spec.lookback), self.spec.task
        rows = calibrate.known_rows(windows.ids, self.stats)
        mean = np.empty((len(windows), task.horizon))
        quantiles = np.empty((*mean.shape, len(task.levels)))
        for part in calibrate.chunks(len(windows), calibrate.CHUNK // 4):
            chunk = windows.part(part)
            scale = calibrate.series_scale(chunk, self.stats)
            mean[part] = self._mean(chunk, scale, rows[part])
            width = calibrate.local_scale(chunk, scale, self.volatility)
            quantiles[part] = self.band.apply(mean[part], width, rows[part])
        return Forecast(windows.ids, windows.origin_us, task.levels, mean, quantiles)

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
            "volatility": asdict(self.volatility),
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
        return values, {**arrays, **self.band.arrays()}


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
        layout = layout_of(data, task.horizon, settings)
        reach = reach_of(data, layout, settings)
        seen = replace(layout, lookback=max(layout.lookback, reach))
        training = _training(data, seen, settings.max_windows)
        valid = _sample(data, "validation", seen, min(MAX_VALID_WINDOWS, _most(layout)))
        spans = Spans(
            training,
            valid,
            _sample(data, "train", seen, settings.max_windows),
            _sample(data, "validation", seen, settings.max_windows),
        )
        choice = choose(spans, layout, settings, reach)
        reported = _reported(settings, layout, choice)
        spec = ModelSpec(self.kind, task, choice.lookback, data.contract, reported)
        bands = calibrated(layout, choice, training, valid, task.levels)
        fitted = FittedAR(
            spec=spec,
            stats=data.stats,
            layout=layout,
            recipe=choice.recipe,
            maps=choice.maps,
            volatility=bands.volatility,
            band=bands.band,
        )
        pooled = choice.recipe.pooled()
        chosen = {
            "ridge": float(np.median([penalty for _, penalty in pooled])),
            "calendar": float(np.mean([calendar for calendar, _ in pooled])),
            "own_maps": float(len(choice.recipe.owners)),
        }
        yield Progress(1, {**bands.metrics, **chosen}, fitted)

    def refit(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> FittedAR:
        """Maps of the same settings from the windows of both spans; see `Forecaster.refit`."""
        assert isinstance(fitted, FittedAR)
        check_same_set(fitted, data)
        most = int(fitted.spec.params["max_windows"])
        seen = replace(fitted.layout, lookback=fitted.spec.lookback)
        windows = _training(widened(data), seen, most)
        dense = _sample(windows.data, "train", seen, most)
        return replace(fitted, maps=fitted.recipe.maps(windows, dense, fitted.layout))

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> FittedAR:
        """See `Forecaster.restore`."""
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
            volatility=calibrate.Volatility(**values["volatility"]),
            band=band,
        )


def _sample(data: SeriesArrays, span: str, layout: Layout, most: int) -> Sample:
    return Sample(
        data, *calibrate.sample_origins(data, span, layout.lookback, layout.horizon, most)
    )


def _most(layout: Layout) -> int:
    """Most windows whose forecasts fit into memory."""
    return max(MIN_VALID_WINDOWS, calibrate.MAX_SCORES // layout.horizon)


def _training(data: SeriesArrays, layout: Layout, most: int) -> Sample:
    """Training windows. Raises DataError if there is none."""
    training = _sample(data, "train", layout, min(most, _most(layout)))
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
