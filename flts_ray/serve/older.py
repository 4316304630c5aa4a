"""The older `/predict` body, in terms of the newer one.

Design choices: every column that is a target of the champion becomes one series, other columns
serve as covariates where the contract knows them; a model with known-future covariates reads
them from the last rows of the table, whose targets are empty, because all columns of a table
have the same length.
"""

from __future__ import annotations

from typing import Any

from flts_ray.errors import DataError
from flts_ray.models.base import Forecast
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.laying import windows_of
from flts_ray.serve.predictor import Question, check_finite, wanted_horizon
from flts_ray.serve.rows import AskedSeries
from flts_ray.serve.schemas import Column, PredictRequest
from flts_ray.serve.stamps import step_stamps


def older_question(
    request: PredictRequest, model: ServedModel, max_points: int
) -> tuple[Question, tuple[str, ...]]:
    """The question, and the column that each of its windows forecasts.

    Raises DataError naming the field.
    """
    horizon = wanted_horizon(request.inference_length, model, "inference_length")
    spec = model.fitted.spec
    columns = _targets(request, model)
    stamps = _index(request, max_points)
    for name, values in request.data.items():
        if len(values) != len(stamps):
            raise DataError(
                f"data.{name[:60]}: {len(values)} values for {len(stamps)} stamps",
                field=f"data.{name[:60]}",
            )
    targets = {name: _numbers(request, name) for name in columns}
    ahead = spec.task.horizon if spec.contract.known_future else 0
    end = _history_end(targets, len(stamps), ahead)
    asked = [
        _series(request, model, stamps, name, values[:end]) for name, values in targets.items()
    ]
    try:
        windows = windows_of(asked, model)
    except DataError as error:
        raise _in_older_words(error, request.index_col, columns) from None
    return Question(windows, horizon, ()), columns


def first_series(request: PredictRequest, champion: ServedModel) -> str:
    """The series that says which model answers the table: that of its first target column.

    Raises DataError for a table without one.
    """
    return _id(_targets(request, champion)[0], champion)


def _targets(request: PredictRequest, model: ServedModel) -> tuple[str, ...]:
    targets = model.fitted.spec.contract.targets
    columns = tuple(name for name in request.data if name in targets)
    if not columns:
        raise DataError(
            f"data: none of its columns is a target; the model forecasts {', '.join(targets)}",
            field="data",
        )
    return columns


def _index(request: PredictRequest, max_points: int) -> list[str]:
    field = f"data.{request.index_col[:60]}"
    values = request.data.get(request.index_col)
    if values is None:
        raise DataError(f"{field}: `index_col` names no column of `data`", field="index_col")
    stamps = [value for value in values if isinstance(value, str)]
    if len(stamps) != len(values) or not stamps:
        raise DataError(f"{field}: must hold ISO 8601 stamps and nothing else", field=field)
    if len(stamps) > max_points:
        raise DataError(
            f"{field}: {len(stamps)} rows; send the last {max_points} at most", field=field
        )
    return stamps


def _numbers(request: PredictRequest, name: str) -> Column:
    values = request.data.get(name)
    field = f"data.{name[:60]}"
    if values is None:
        raise DataError(f"{field}: required by the model, but not given", field=field)
    found = [value for value in values if not isinstance(value, str)]
    if len(found) != len(values):
        raise DataError(f"{field}: must hold numbers or null and nothing else", field=field)
    return found


def _history_end(targets: dict[str, Column], rows: int, ahead: int) -> int:
    """Where the history ends and the rows of the horizon begin."""
    if not ahead:
        return rows
    end = rows - ahead
    if end < 1 or any(value is not None for values in targets.values() for value in values[end:]):
        raise DataError(
            f"data: the model needs its covariates {ahead} steps ahead; add {ahead} rows with "
            "stamps and covariates after the history and leave the targets null there",
            field="data",
        )
    return end


def _series(
    request: PredictRequest, model: ServedModel, stamps: list[str], name: str, values: Column
) -> AskedSeries:
    contract, end = model.fitted.spec.contract, len(values)
    return AskedSeries(
        field=f"{name}.",
        id=_id(name, model),
        named=False,
        ds=stamps[:end],
        y=values,
        known_future={name: _numbers(request, name) for name in contract.known_future},
        past={name: _numbers(request, name)[:end] for name in contract.past},
        static={
            name: value
            for name in contract.static
            if name in request.data and (value := request.data[name][0]) is not None
        },
    )


def _id(column: str, model: ServedModel) -> str:
    """The known series that a column means, if it can mean only one."""
    known = model.fitted.stats.ids
    if len(model.fitted.spec.contract.targets) == 1 and len(known) == 1:
        return known[0]
    same = [name for name in known if name == column or name.endswith(f"/{column}")]
    return same[0] if len(same) == 1 else column


def _in_older_words(error: DataError, index_col: str, columns: tuple[str, ...]) -> DataError:
    """The same refusal, naming the column of the table: `down.y[3]` is `data.down[3]`."""
    field = error.field or ""
    target = next((name for name in columns if field.startswith(f"{name}.")), None)
    if target is None:
        return error
    place, bracket, index = field.removeprefix(f"{target}.").partition("[")
    names = {"y": target, "ds": index_col, "unique_id": target}
    older = f"data.{names.get(place, place.partition('.')[2])}{bracket}{index}"
    return DataError(str(error).replace(field, older, 1), field=older)


def older_answer(
    question: Question,
    columns: tuple[str, ...],
    forecast: Forecast,
    model: ServedModel,
    forecast_id: str,
) -> dict[str, Any]:
    """Rows of stamp and expected value of each column."""
    steps = question.horizon
    mean = forecast.mean[:, :steps]
    check_finite(mean, forecast.quantiles[:, :steps], forecast.ids)
    stamps = step_stamps(int(forecast.origin_us[0]), steps, model.fitted.spec.contract)
    rows = zip(stamps, mean.T.tolist(), strict=True)
    return {
        "status": "SUCCESS",
        "run_id": forecast_id,
        "predictions": [{"ts": ts, **dict(zip(columns, row, strict=True))} for ts, row in rows],
    }
