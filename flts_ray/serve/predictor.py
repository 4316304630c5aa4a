"""From a request to windows, and from a forecast to an answer; pure, no HTTP.

Design choices: a request with one bad series is refused as a whole, naming it, because a caller
who reads only the good ones would never notice; the model always forecasts its whole horizon and
a shorter one is cut from it, so that the same history gives the same numbers; quantiles are
those of the model, linear between its levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from msgspec import Struct

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import DataError
from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.rows import AskedSeries, asked_series
from flts_ray.serve.schemas import PackedSeries, SeriesRequest
from flts_ray.serve.stamps import step_stamps

DEFAULT_LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
_SERIES_FIELDS = SeriesRequest.__struct_fields__


@dataclass(frozen=True)
class Question:
    """What a request asks: windows of the model's horizon, the steps and levels wanted."""

    windows: Windows
    horizon: int
    levels: tuple[float, ...]


def wanted_horizon(horizon: int | None, model: ServedModel, field: str) -> int:
    """The steps wanted, all by default. Raises DataError above the model's horizon."""
    most = model.fitted.spec.task.horizon
    if horizon is not None and not 1 <= horizon <= most:
        raise DataError(
            f"{field}: {horizon} steps are more than the model's {most}; ask for at most {most}"
            if horizon > most
            else f"{field}: {horizon} steps; ask for 1 to {most}",
            field=field,
        )
    return horizon or most


def wanted_levels(
    wanted: Sequence[float] | None, model: ServedModel, field: str
) -> tuple[float, ...]:
    """Quantile levels wanted, by default both usual bands. Raises DataError for one outside."""
    levels = model.fitted.spec.task.levels
    low, high = levels[0], levels[-1]
    if wanted is None:
        return tuple(q for q in DEFAULT_LEVELS if low <= q <= high)
    for i, level in enumerate(wanted):
        if not low <= level <= high:
            raise DataError(
                f"{field}[{i}]: {level} lies outside the model's levels, {low} to {high}",
                field=f"{field}[{i}]",
            )
    return tuple(wanted)


class SentRequest(Protocol):
    """A decoded request of any wire."""

    @property
    def alone(self) -> SeriesRequest | PackedSeries: ...
    @property
    def series(self) -> Sequence[SeriesRequest | PackedSeries] | None: ...
    @property
    def horizon(self) -> int | None: ...
    @property
    def quantiles(self) -> Sequence[float] | None: ...


def asked_of(request: SentRequest, limits: ServeConfig) -> list[AskedSeries]:
    """The series of a request. Raises DataError for too many of them or of their points."""
    if request.series is None:
        asked = [asked_series(request.alone, "", 0)]
    else:
        for name in _SERIES_FIELDS:
            if getattr(request.alone, name):
                raise DataError(f"{name}: move it into `series`, which is given too", field=name)
        check_count(len(request.series), limits.max_series)
        asked = [asked_series(one, f"series[{i}].", i) for i, one in enumerate(request.series)]
    for one in asked:
        check_points(one, limits.max_points)
    return asked


def check_count(count: int, most: int, field: str = "series") -> None:
    if not 1 <= count <= most:
        raise DataError(f"{field}: {count} of them; send 1 to {most}", field=field)


def check_points(one: AskedSeries, most: int) -> None:
    """Raises DataError for a history longer than `most` points."""
    count = 0 if one.y is None else len(one.y)
    if count > most:
        raise DataError(
            f"{one.field}y: {count} points; send the last {most} at most", field=f"{one.field}y"
        )


class Made(Struct, frozen=True, kw_only=True):
    """A forecast cut to what was asked, in the input's units, every number finite.

    mean, median: float64 [n, H]; quantiles: float64 [n, Q, H]; cold: bool [n].
    """

    ids: tuple[str, ...]
    origin_us: np.ndarray
    levels: tuple[float, ...]
    mean: np.ndarray
    median: np.ndarray
    quantiles: np.ndarray
    cold: list[bool]


def made_of(
    forecast: Forecast, horizon: int, levels: tuple[float, ...], model: ServedModel
) -> Made:
    """Cut a forecast. Raises DataError when it is not finite."""
    quantiles = _quantiles(forecast, horizon, (*levels, 0.5))
    mean = np.ascontiguousarray(forecast.mean[:, :horizon])
    check_finite(mean, quantiles, forecast.ids)
    return Made(
        ids=forecast.ids,
        origin_us=forecast.origin_us,
        levels=levels,
        mean=mean,
        median=np.ascontiguousarray(quantiles[:, -1]),
        quantiles=np.ascontiguousarray(quantiles[:, :-1]),
        cold=[name not in model.position for name in forecast.ids],
    )


def _quantiles(forecast: Forecast, horizon: int, levels: tuple[float, ...]) -> np.ndarray:
    """float64 [n, Q, H] at these levels; those that the model has are read, not interpolated."""
    known = forecast.quantiles[:, :horizon]
    places = _places(forecast.levels, levels)
    if places is None:
        return replace(forecast, quantiles=known).at(levels).transpose(0, 2, 1)
    return known.transpose(0, 2, 1).take(places, axis=1)


@lru_cache
def _places(known: tuple[float, ...], levels: tuple[float, ...]) -> np.ndarray | None:
    """Where the levels stand among the known ones; None unless all do."""
    if not set(levels) <= set(known):
        return None
    return np.array([known.index(level) for level in levels])


@lru_cache
def _names(levels: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(repr(level) for level in levels)


def answer_of(
    forecast: Forecast,
    horizon: int,
    levels: tuple[float, ...],
    model: ServedModel,
    forecast_id: str,
) -> dict[str, Any]:
    """The answer, JSON-ready for an encoder that knows arrays.

    Raises DataError when a forecast is not finite.
    """
    made = made_of(forecast, horizon, levels, model)
    return {
        "forecast_id": forecast_id,
        "model": model_of(model),
        "units": model.fitted.spec.contract.units,
        "forecasts": forecasts_of(made, model),
    }


def forecasts_of(made: Made, model: ServedModel) -> list[dict[str, Any]]:
    """The entry of each series."""
    contract = model.fitted.spec.contract
    steps = made.mean.shape[1]
    names = _names(made.levels)
    return [
        {
            "unique_id": name,
            "cold_start": made.cold[i],
            "ds": step_stamps(origin, steps, contract),
            "mean": made.mean[i],
            "median": made.median[i],
            "quantiles": dict(zip(names, made.quantiles[i], strict=True)),
        }
        for i, (name, origin) in enumerate(zip(made.ids, made.origin_us.tolist(), strict=True))
    ]


def check_finite(mean: np.ndarray, quantiles: np.ndarray, ids: tuple[str, ...]) -> None:
    """mean: [n, H]; quantiles: [n, ...]. Raises DataError naming the series."""
    if _surely_finite(mean) and _surely_finite(quantiles):
        return
    finite = np.isfinite(mean).all(axis=1) & np.isfinite(quantiles).all(axis=(1, 2))
    if not finite.all():
        raise not_finite(ids[int(finite.argmin())])


def _surely_finite(values: np.ndarray) -> bool:
    """Their squares have a finite sum: one pass, where asking each number takes three."""
    flat = values.reshape(-1)
    return math.isfinite(np.vdot(flat, flat))


def not_finite(unique_id: str) -> DataError:
    """Why a series has no forecast though the model made one."""
    return DataError(
        f"y: the forecast of series {unique_id[:60]!r} is not finite; its values are too extreme "
        "for the model",
        field="y",
    )


def model_of(model: ServedModel) -> dict[str, str]:
    return {"name": model.name, "version": model.version, "kind": model.fitted.spec.kind}


def describe(model: ServedModel) -> dict[str, Any]:
    """What `GET /v1/model` tells."""
    spec = model.fitted.spec
    return {
        **model_of(model),
        "digest": model.digest,
        "contract": spec.contract.to_json(),
        "horizon": spec.task.horizon,
        "lookback": spec.lookback,
        "quantiles": list(spec.task.levels),
        "series": len(model.position),
        "needs_known_series": spec.needs_known_series,
    }
