"""From a request to windows, and from a forecast to an answer; pure, no HTTP.

Design choices: a request with one bad series is refused as a whole, naming it, because a caller
who reads only the good ones would never notice; the model always forecasts its whole horizon and
a shorter one is cut from it, so that the same history gives the same numbers; quantiles are
those of the model, linear between its levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flts_ray.config_serve import ServeConfig
from flts_ray.errors import DataError, Unavailable
from flts_ray.models.base import Forecast
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import SeriesArrays, Windows
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.history import calendar_of, stamps_text
from flts_ray.serve.rows import Named, Row, needs_prepared, row_of
from flts_ray.serve.schemas import ForecastRequest, SeriesRequest

DEFAULT_LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)


@dataclass(frozen=True)
class Question:
    """What a request asks: windows of the model's horizon, the steps and levels wanted."""

    windows: Windows
    horizon: int
    levels: tuple[float, ...]


def question_of(request: ForecastRequest, model: ServedModel, limits: ServeConfig) -> Question:
    """Check a request against the champion. Raises DataError naming the field."""
    horizon = wanted_horizon(request.horizon, model, "horizon")
    levels = _levels(request, model)
    asked = _series(request, limits)
    return Question(windows_of(asked, model), horizon, levels)


def wanted_horizon(horizon: int | None, model: ServedModel, field: str) -> int:
    """The steps wanted, all by default. Raises DataError above the model's horizon."""
    most = model.fitted.spec.task.horizon
    if horizon is not None and horizon > most:
        raise DataError(
            f"{field}: {horizon} steps are more than the model's {most}; ask for at most {most}",
            field=field,
        )
    return horizon or most


def _levels(request: ForecastRequest, model: ServedModel) -> tuple[float, ...]:
    levels = model.fitted.spec.task.levels
    low, high = levels[0], levels[-1]
    if request.quantiles is None:
        return tuple(q for q in DEFAULT_LEVELS if low <= q <= high)
    for i, level in enumerate(request.quantiles):
        if not low <= level <= high:
            raise DataError(
                f"quantiles[{i}]: {level} lies outside the model's levels, {low} to {high}",
                field=f"quantiles[{i}]",
            )
    return tuple(request.quantiles)


def _series(request: ForecastRequest, limits: ServeConfig) -> list[Named]:
    asked: list[tuple[str, SeriesRequest]]
    if request.series is None:
        asked = [("", request)]
    else:
        both = request.model_fields_set & set(SeriesRequest.model_fields)
        if both:
            name = sorted(both)[0]
            raise DataError(f"{name}: move it into `series`, which is given too", field=name)
        asked = [(f"series[{i}].", one) for i, one in enumerate(request.series)]
    if not 1 <= len(asked) <= limits.max_series:
        raise DataError(
            f"series: {len(asked)} of them; send 1 to {limits.max_series}", field="series"
        )
    for field, one in asked:
        if len(one.y or ()) > limits.max_points:
            raise DataError(
                f"{field}y: {len(one.y or ())} points; send the last {limits.max_points} at most",
                field=f"{field}y",
            )
    return [
        Named(one, field, str(i) if one.unique_id is None else one.unique_id)
        for i, (field, one) in enumerate(asked)
    ]


def windows_of(asked: list[Named], model: ServedModel) -> Windows:
    """Windows of all series of a request, in its order."""
    spec = model.fitted.spec
    for one in asked:
        _check_known(one, model)
    prepared = _prepared(asked, model)
    rows = [row_of(one, model, prepared.get(one.id)) for one in asked]
    return _stack(rows, model, np.arange(-spec.lookback, spec.task.horizon))


def _check_known(one: Named, model: ServedModel) -> None:
    spec = model.fitted.spec
    if one.id in model.position:
        return
    field = f"{one.field}unique_id"
    if one.request.y is None:
        give = "give a history (`ds` and `y`), or the name of a series the model was fitted on"
        if one.request.unique_id is None:
            raise DataError(f"{one.field}y: {give}", field=f"{one.field}y")
        raise DataError(f"{field}: {give}; {one.id[:60]!r} is none", field=field)
    if spec.needs_known_series:
        raise DataError(
            f"{field}: this model ({spec.kind}) forecasts only the {len(model.position)} series "
            f"it was fitted on; {one.id[:60]!r} is none of them",
            field=field,
        )


def _prepared(asked: list[Named], model: ServedModel) -> dict[str, SeriesArrays]:
    contract = model.fitted.spec.contract
    wanted = [one for one in asked if one.id in model.position and needs_prepared(one, contract)]
    if not wanted:
        return {}
    if model.known is None:
        raise Unavailable(
            f"{wanted[0].field}unique_id: the prepared data of this champion cannot be read "
            "now; send the history (`ds`, `y` and covariates)"
        )
    return model.known.series(list(dict.fromkeys(one.id for one in wanted)))


def _stack(rows: list[Row], model: ServedModel, span: np.ndarray) -> Windows:
    """span: int64 [L + H], steps relative to the origin."""
    contract = model.fitted.spec.contract
    origin_us = np.array([row.origin_us for row in rows], dtype=np.int64)
    calendar = calendar_of(steps_after(origin_us[:, None], span, contract), contract)
    return Windows(
        contract=contract,
        ids=tuple(row.id for row in rows),
        origin_us=origin_us,
        y=np.stack([row.y for row in rows]),
        observed=np.stack([row.observed for row in rows]),
        past=np.stack([row.past for row in rows]),
        future=np.concatenate([calendar, np.stack([row.known for row in rows])], axis=-1),
        static=np.stack([row.static for row in rows]),
        scale=np.array([row.scale for row in rows], dtype=np.float64),
    )


def answer_of(
    question: Question, forecast: Forecast, model: ServedModel, forecast_id: str
) -> dict[str, Any]:
    """The JSON-ready answer. Raises DataError when a forecast is not finite."""
    contract, steps = model.fitted.spec.contract, question.horizon
    stamps = stamps_of(forecast, steps, model)
    mean = forecast.mean[:, :steps]
    median = forecast.median[:, :steps]
    quantiles = forecast.at(question.levels)[:, :steps]
    check_finite(mean, quantiles, forecast.ids)
    names = [repr(level) for level in question.levels]
    return {
        "forecast_id": forecast_id,
        "model": model_of(model),
        "units": contract.units,
        "forecasts": [
            {
                "unique_id": name,
                "ds": stamps[i],
                "mean": mean[i].tolist(),
                "median": median[i].tolist(),
                "quantiles": dict(zip(names, quantiles[i].T.tolist(), strict=True)),
            }
            for i, name in enumerate(forecast.ids)
        ],
    }


def stamps_of(forecast: Forecast, steps: int, model: ServedModel) -> list[list[str]]:
    """ISO stamps of the forecast steps, one list a series."""
    contract = model.fitted.spec.contract
    ds_us = steps_after(forecast.origin_us[:, None], np.arange(steps), contract)
    text = stamps_text(ds_us.ravel())
    return [text[at : at + steps] for at in range(0, len(text), steps)]


def check_finite(mean: np.ndarray, quantiles: np.ndarray, ids: tuple[str, ...]) -> None:
    """mean: [n, H]; quantiles: [n, H, Q]. Raises DataError naming the series."""
    finite = np.isfinite(mean).all(axis=1) & np.isfinite(quantiles).all(axis=(1, 2))
    if not finite.all():
        name = ids[int(finite.argmin())]
        raise DataError(
            f"y: the forecast of series {name[:60]!r} is not finite; its values are too extreme "
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
