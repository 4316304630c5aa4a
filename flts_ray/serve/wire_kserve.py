"""KServe's time-series forecast protocol, in terms of ours.

Source: TimeSeries LLM Forecast API, https://kserve.github.io/website/docs/reference/time_series/api

Beyond it, in fields that the protocol leaves open: `step` of an input is how many units of
`frequency` lie between two points (30 for half-hourly data in minutes); `known_future`, `past` and
`static` carry covariates.

Design choices: an input that cannot be forecast is an output with status `error`, the others are
answered; a name that the champion knows brings its scale and bounds; without `start_timestamp` the
last point is taken to be of the present step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from flts_ray.errors import DataError, FltsError
from flts_ray.panel import US_PER_SECOND, Contract
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.predictor import Made
from flts_ray.serve.problems import field_of
from flts_ray.serve.rows import AskedSeries
from flts_ray.serve.schemas import MAX_SERIES, Columns, Name, Statics
from flts_ray.serve.stamps import step_stamps

UNIVARIATE, MULTIVARIATE = "univariate_time_series", "multivariate_time_series"
Type = Literal["univariate_time_series", "multivariate_time_series"]
Frequency = Literal[
    "second", "S", "minute", "T", "hour", "H", "day", "D",
    "week", "W", "month", "M", "quarter", "Q", "year", "Y",
]  # fmt: skip
Status = Literal["completed", "error", "pending", "partial"]
MAX_VARIABLES = 1000
_STEP_US = {
    "second": US_PER_SECOND, "S": US_PER_SECOND,
    "minute": 60 * US_PER_SECOND, "T": 60 * US_PER_SECOND,
    "hour": 3600 * US_PER_SECOND, "H": 3600 * US_PER_SECOND,
    "day": 86_400 * US_PER_SECOND, "D": 86_400 * US_PER_SECOND,
    "week": 604_800 * US_PER_SECOND, "W": 604_800 * US_PER_SECOND,
}  # fmt: skip


class TimeSeriesInput(Struct, kw_only=True):
    """One observed series: numbers, or for a multivariate one a list of numbers for each step."""

    type: Type
    name: Name
    series: list[float | list[float | None] | None]
    frequency: Frequency
    start_timestamp: str | None = None
    step: Annotated[int, Meta(ge=1, le=10_000_000)] = 1
    known_future: Columns = {}
    past: Columns = {}
    static: Statics = {}


class ForecastOptions(Struct):
    horizon: Annotated[int, Meta(ge=1, le=1_000_000)]
    quantiles: Annotated[list[float], Meta(max_length=200)] | None = None


class TimeSeriesRequest(Struct, kw_only=True):
    """Series to forecast with one model."""

    model: str
    inputs: Annotated[list[TimeSeriesInput], Meta(min_length=1, max_length=MAX_SERIES)]
    options: ForecastOptions
    metadata: dict[str, Any] | None = None


class TimeSeriesError(Struct):
    code: str | None
    message: str
    param: str | None
    type: str


class TimeSeriesErrorAnswer(Struct):
    error: TimeSeriesError


class TimeSeriesForecast(Struct, kw_only=True):
    type: Type
    name: str
    mean_forecast: list[float | list[float]]
    frequency: Frequency
    start_timestamp: str
    quantiles: dict[str, list[float | list[float]]] | None
    cold_start: bool
    step: int


class ForecastOutput(Struct, kw_only=True):
    type: Literal["time_series_forecast"]
    id: str
    status: Status
    content: list[TimeSeriesForecast]
    error: TimeSeriesError | None


class TimeSeriesAnswer(Struct, kw_only=True, omit_defaults=True):
    id: str
    created_at: int
    status: Status
    error: TimeSeriesError | None
    model: str
    outputs: list[ForecastOutput]
    usage: None
    model_version: str
    metadata: dict[str, Any] | None
    degraded: bool = False
    degraded_reason: Literal["overloaded", "expired", "unavailable"] | None = None
    degraded_method: Literal["seasonal_naive", "last_forecast"] | None = None


@dataclass(frozen=True)
class Inputs:
    """The series of a request: `owner` names the input of each, `refused` those without any."""

    asked: list[AskedSeries]
    owner: list[int]
    refused: dict[int, FltsError]


def inputs_of(
    request: TimeSeriesRequest, contract: Contract, max_points: int, now_us: int
) -> Inputs:
    """The series of all inputs that can be read. now_us: the present, UTC microseconds."""
    asked: list[AskedSeries] = []
    owner: list[int] = []
    refused: dict[int, FltsError] = {}
    for i, one in enumerate(request.inputs):
        try:
            found = _series_of(one, f"inputs[{i}].", contract, max_points, now_us)
        except DataError as error:
            refused[i] = error
            continue
        asked += found
        owner += [i] * len(found)
    return Inputs(asked, owner, refused)


def _series_of(
    one: TimeSeriesInput, field: str, contract: Contract, max_points: int, now_us: int
) -> list[AskedSeries]:
    step_us = _STEP_US.get(one.frequency, 0) * one.step
    if step_us != contract.frequency.step_us:
        raise _refused(
            field, "frequency", f"the model's step is {contract.freq}; give its unit, and in "
            "`step` how many of it",
        )  # fmt: skip
    if len(one.series) > max_points:
        raise _refused(field, "series", f"{len(one.series)} points; send the last {max_points}")
    start: str | int | None = one.start_timestamp
    if start is None:
        start = (now_us // step_us - len(one.series) + 1) * step_us
    columns = _variables(one, field)
    names = [one.name]
    if one.type == MULTIVARIATE:
        targets = contract.targets if len(contract.targets) == len(columns) else range(len(columns))
        names = [f"{one.name}/{target}" for target in targets]
    return [
        AskedSeries(
            field=field,
            id=name,
            named=True,
            start=start,
            y=values,
            known_future=one.known_future,
            past=one.past,
            static=one.static,
        )
        for name, values in zip(names, columns, strict=True)
    ]


def _refused(field: str, name: str, problem: str) -> DataError:
    return DataError(f"{field}{name}: {problem}", field=f"{field}{name}")


def _variables(one: TimeSeriesInput, field: str) -> Sequence[np.ndarray]:
    """The values of each variable, float64 [steps], NaN where missing."""
    if one.type == UNIVARIATE:
        for i, value in enumerate(one.series):
            if isinstance(value, list):
                raise _refused(field, f"series[{i}]", "a list, but the series is univariate")
        return [np.array(one.series, dtype=np.float64)]
    rows = [value for value in one.series if isinstance(value, list)]
    width = len(rows[0]) if rows else 0
    if len(rows) != len(one.series) or not 1 <= width <= MAX_VARIABLES:
        raise _refused(
            field, "series", f"a multivariate series is one list a step of 1 to {MAX_VARIABLES} "
            "numbers",
        )  # fmt: skip
    for i, row in enumerate(rows):
        if len(row) != width:
            raise _refused(field, f"series[{i}]", f"{len(row)} numbers, the first step has {width}")
    return list(np.array(rows, dtype=np.float64).T)


def error_of(error: FltsError) -> dict[str, Any]:
    """A refusal in the protocol's words; their fields are `series` where ours is `y`."""
    param = field_of(error)
    message = str(error)
    if param is not None and param.startswith("inputs["):
        place, _, name = param.partition("].")
        theirs = _THEIRS.get(name.partition("[")[0])
        if theirs is not None:
            param = f"{place}].{theirs}" + name[len(name.partition("[")[0]) :]
            message = message.replace(f"{place}].{name}", param, 1)
    kind = "BadRequestError" if error.status < 500 else "ServiceUnavailableError"
    return {"code": str(error.status), "message": message, "param": param, "type": kind}


_THEIRS = {"y": "series", "ds": "start_timestamp", "start": "start_timestamp", "unique_id": "name"}


def time_series_answer(
    request: TimeSeriesRequest,
    found: Inputs,
    made: Made | None,
    rows: Mapping[int, int],
    refused: Mapping[int, FltsError],
    model: ServedModel,
) -> dict[str, Any]:
    """The answer but for its id. rows: position in `made` of each series; refused: by input."""
    members: dict[int, list[int]] = {}
    for position, input_at in enumerate(found.owner):
        members.setdefault(input_at, []).append(position)
    outputs = []
    for i, one in enumerate(request.inputs):
        error = refused.get(i)
        content: list[dict[str, Any]] = []
        if error is None and made is not None:
            at = [rows[position] for position in members[i]]
            content = [_content(one, made, at, model.fitted.spec.contract, request.options)]
        outputs.append(
            {
                "type": "time_series_forecast",
                "id": f"ts_{token_hex(16)}",
                "status": "error" if error is not None else "completed",
                "content": content,
                "error": None if error is None else error_of(error),
            }
        )
    failed = [output for output in outputs if output["error"] is not None]
    whole = "completed" if not failed else "partial" if len(failed) < len(outputs) else "error"
    return {
        "created_at": int(time.time()),
        "status": whole,
        "error": failed[0]["error"] if whole == "error" else None,
        "model": request.model,
        "outputs": outputs,
        "usage": None,
        "model_version": model.version,
        "metadata": request.metadata,
    }


def _content(
    one: TimeSeriesInput, made: Made, at: list[int], contract: Contract, options: ForecastOptions
) -> dict[str, Any]:
    single = one.type == UNIVARIATE

    def laid(values: np.ndarray) -> np.ndarray:
        """[variables, steps] as the protocol wants it: steps first, one variable plain."""
        return np.ascontiguousarray(values[0] if single else values.T)

    quantiles = None
    if options.quantiles is not None:
        names = [repr(level) for level in made.levels]
        quantiles = {name: laid(made.quantiles[at, q]) for q, name in enumerate(names)}
    return {
        "type": one.type,
        "name": one.name,
        "mean_forecast": laid(made.mean[at]),
        "frequency": one.frequency,
        "start_timestamp": step_stamps(int(made.origin_us[at[0]]), 1, contract)[0],
        "quantiles": quantiles,
        "cold_start": all(made.cold[i] for i in at),
        "step": one.step,
    }
