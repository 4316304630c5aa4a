"""Rolling-origin backtest: what a fitted model would have forecast at each origin.

Design choices: origins are chosen once, from the longest lookback, and handed to every model,
because only forecasts of the same windows can be compared in pairs; the model is not refitted
between origins, so a backtest costs one pass of forecasts (the fixed-model rolling origin of
Tashman 2000); a forecast that is not finite stops the backtest, because every average after it
would be meaningless.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.base import Fitted, Forecast
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import SeriesArrays, Windows, actuals_at, origins_in, windows_at


@dataclass(frozen=True)
class Origins:
    """Where forecasts start. series: int64 [n], index of the series; positions: int64 [n], the
    first step to forecast, counted from the start of its series."""

    series: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.series)

    def part(self, rows: slice | np.ndarray) -> Origins:
        return Origins(self.series[rows], self.positions[rows])

    def thinned(self, most: int) -> Origins:
        """At most so many of these, evenly spread."""
        if len(self) <= most:
            return self
        return self.part(np.linspace(0, len(self) - 1, most).round().astype(np.int64))


@dataclass(frozen=True)
class Backtest:
    """Forecasts of n windows, H steps and Q levels beside what happened, in the input's units.

    origin_us: int64 [n], UTC microseconds. mean: float64 [n, H]. quantiles: float64 [n, H, Q].
    actual: float64 [n, H], NaN where nothing was observed.
    """

    origins: Origins
    origin_us: np.ndarray
    levels: tuple[float, ...]
    mean: np.ndarray
    quantiles: np.ndarray
    actual: np.ndarray

    def __len__(self) -> int:
        return len(self.origins)

    def quantile(self, level: float) -> np.ndarray:
        """Forecasts at one level, float64 [n, H]. Raises DataError for a level not forecast."""
        found = np.flatnonzero(np.isclose(self.levels, level, rtol=0, atol=1e-9))
        if not len(found):
            raise DataError(
                f"task.quantiles: the backtest holds no forecasts at level {level}, only at "
                f"{list(self.levels)}; add the level and fit again",
                field="task.quantiles",
            )
        return self.quantiles[..., int(found[0])]

    @property
    def median(self) -> np.ndarray:
        return self.quantile(0.5)


def choose_origins(
    data: SeriesArrays,
    span: str,
    lookback: int,
    horizon: int,
    stride: int | None = None,
    max_origins: int | None = None,
) -> Origins:
    """Origins of one span (train, validation, test) that every candidate can forecast.

    lookback: the longest among the candidates, in steps. stride: steps between two origins of a
    series, the horizon by default. max_origins: most origins of one series. Raises DataError
    when no window fits.
    """
    step = horizon if stride is None else stride
    origins = Origins(*origins_in(data, span, lookback, horizon, step, max_origins))
    if not len(origins):
        raise DataError(
            f"{span} span: no series holds a window of {lookback} known and {horizon} forecast "
            f"steps; shorten task.horizon or the lookback, or enlarge split.{span} or the data",
            field="task.horizon",
        )
    return origins


def backtest(fitted: Fitted, data: SeriesArrays, origins: Origins, chunk: int = 1024) -> Backtest:
    """Forecast every origin, `chunk` windows at a time.

    The windows of a forecast do not depend on `chunk`, nor do the results of a model that
    treats windows one by one (matrix products may round differently in the last bit).
    Raises DataError for an origin that does not fit its series, a forecast of the wrong shape
    and a forecast that is not finite.
    """
    spec = fitted.spec
    _check_fit(data, origins, spec.lookback, spec.task.horizon)
    n, horizon, levels = len(origins), spec.task.horizon, spec.task.levels
    mean = np.empty((n, horizon))
    quantiles = np.empty((n, horizon, len(levels)))
    for start in range(0, n, chunk):
        rows = slice(start, min(n, start + chunk))
        forecast = forecast_at(fitted, data, origins.part(rows))
        mean[rows], quantiles[rows] = forecast.mean, forecast.quantiles
    return Backtest(
        origins=origins,
        origin_us=instants_of(data, origins),
        levels=levels,
        mean=mean,
        quantiles=quantiles,
        actual=actuals_at(data, origins.series, origins.positions, horizon),
    )


def forecast_at(fitted: Fitted, data: SeriesArrays, origins: Origins) -> Forecast:
    """One checked batch of forecasts; raises DataError as `backtest` does."""
    spec = fitted.spec
    windows = windows_at(data, origins.series, origins.positions, spec.lookback, spec.task.horizon)
    forecast = fitted.forecast(windows)
    shape = (len(windows), spec.task.horizon, len(spec.task.levels))
    if forecast.quantiles.shape != shape or forecast.mean.shape != shape[:2]:
        raise DataError(
            f"model {spec.kind}: forecast of shape mean {forecast.mean.shape}, quantiles "
            f"{forecast.quantiles.shape} where {shape[:2]} and {shape} were asked for; "
            "correct the model's forecast"
        )
    _check_finite(spec.kind, forecast, windows)
    return forecast


def instants_of(data: SeriesArrays, origins: Origins) -> np.ndarray:
    """Instant of the first step to forecast, int64 [n], UTC microseconds."""
    return steps_after(data.start_us[origins.series], origins.positions, data.contract)


def instant_text(instant_us: int) -> str:
    """An instant as people read it, such as 2024-03-31T00:30Z."""
    text = str(np.datetime64(int(instant_us), "us").astype("datetime64[ms]"))
    return text.removesuffix(".000").removesuffix(":00") + "Z"


def _check_finite(kind: str, forecast: Forecast, windows: Windows) -> None:
    finite = np.isfinite(forecast.mean).all(1) & np.isfinite(forecast.quantiles).all((1, 2))
    if finite.all():
        return
    at = int(np.argmin(finite))
    raise DataError(
        f"model {kind}: the forecast of series {windows.ids[at]} at origin "
        f"{instant_text(windows.origin_us[at])} is not finite ({int((~finite).sum())} of "
        f"{len(finite)} windows of the batch); look for extreme values in that series or lower "
        "the learning rate"
    )


def _check_fit(data: SeriesArrays, origins: Origins, lookback: int, horizon: int) -> None:
    early = origins.positions < lookback
    late = origins.positions + horizon > data.lengths[origins.series]
    if not (early | late).any():
        return
    at = int(np.argmax(early | late))
    series, position = int(origins.series[at]), int(origins.positions[at])
    raise DataError(
        f"series {data.ids[series]}: origin {position} does not leave {lookback} steps before "
        f"and {horizon} after it among {int(data.lengths[series])}; choose origins with the "
        "longest lookback of all candidates"
    )
