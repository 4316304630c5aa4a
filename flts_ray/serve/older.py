"""The older `/predict` body, in terms of the newer one.

Design choices: every column that is a target of the champion becomes one series, other columns
serve as covariates where the contract knows them; rows are sorted by their stamps first, and a
stamp that comes twice is refused, because nothing says which of its rows is meant; a stamp without
a zone is UTC whatever the contract's zone is, because that is what callers of this body mean; a
model with known-future covariates reads them from the last rows of the table, whose targets are
empty, because all columns of a table have the same length.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.base import Forecast
from flts_ray.panel import Contract
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.history import numbers, stamps_text
from flts_ray.serve.laying import windows_of
from flts_ray.serve.predictor import Question, check_finite, wanted_horizon
from flts_ray.serve.rows import AskedSeries
from flts_ray.serve.schemas import MAX_LENGTH, Cells, PredictRequest, parse_body
from flts_ray.serve.stamps import read_stamps, step_stamps

LENGTH = "inference_length"
INDEX_COLUMNS = ("ts", "timestamp", "time", "date")
ONLY_TARGET = "value"
"""Column that stands for the target of a model that has one."""
FEW = 5
_STEPS = re.compile(r"[0-9]{1,9}")
_PLACE = re.compile(r"(.*?)(?:\[(\d+)\])?", re.S)


@dataclass(frozen=True)
class _Table:
    """The rows of a request by their stamps.

    index: the column of the stamps; order: row of the request at each position, int64 [n]; ds_us:
    int64 [n] UTC, rising.
    """

    data: Mapping[str, Cells]
    index: str
    order: np.ndarray
    ds_us: np.ndarray

    def numbers(self, name: str) -> np.ndarray:
        """A column, float64 [n], NaN where missing. Raises DataError for anything but numbers."""
        values, field = self.data.get(name), _field(name)
        if values is None:
            raise DataError(f"{field}: required by the model, but not given", field=field)
        if any(isinstance(value, str) for value in values):
            raise DataError(f"{field}: must hold numbers or null and nothing else", field=field)
        return numbers(values, field)[self.order]  # type: ignore[arg-type]  # no text is left

    def first(self, name: str) -> str | float | None:
        """The value of the earliest row."""
        return self.data[name][self.order[0]]


def parse_older(body: bytes, max_depth: int) -> PredictRequest:
    """Read a body. Raises DataError that names the first offending field."""
    try:
        return parse_body(PredictRequest, body, max_depth)
    except DataError as error:
        if error.field != "data":
            raise
        told = f"{error}; send the history as `data`, columns of one length: none is kept here"
        raise DataError(told, field="data") from None


def asked_length(request: PredictRequest, query: Mapping[str, str]) -> int:
    """The steps wanted: by the query, else by the body, else 1. Raises DataError."""
    given = query.get(LENGTH)
    if given is None:
        return request.inference_length or 1
    if not _STEPS.fullmatch(given) or not 1 <= int(given) <= MAX_LENGTH:
        raise DataError(f"{LENGTH}: {given[:60]!r} is none from 1 to {MAX_LENGTH}", field=LENGTH)
    return int(given)


def older_question(
    request: PredictRequest, steps: int, model: ServedModel, max_points: int
) -> tuple[Question, tuple[str, ...]]:
    """The question, and the column that each of its windows forecasts.

    Raises DataError naming the field.
    """
    horizon = wanted_horizon(steps, model, LENGTH)
    spec = model.fitted.spec
    targets = _targets(request, spec.contract)
    table = _table(request, max_points)
    columns = {name: table.numbers(name) for name in targets}
    end = _history_end(columns, spec.task.horizon if spec.contract.known_future else 0)
    asked = [
        _series(
            table,
            model,
            name,
            model.series_of_target.get(targets[name], targets[name]),
            values[:end],
        )
        for name, values in columns.items()
    ]
    try:
        windows = windows_of(asked, model)
    except DataError as error:
        raise _in_older_words(error, table, tuple(columns)) from None
    return Question(windows, horizon, ()), tuple(columns)


def first_series(request: PredictRequest, champion: ServedModel) -> str:
    """The series that says which model answers the table: that of its first target column.

    Raises DataError for a table without one.
    """
    target = next(iter(_targets(request, champion.fitted.spec.contract).values()))
    return champion.series_of_target.get(target, target)


def _targets(request: PredictRequest, contract: Contract) -> dict[str, str]:
    """The target that each column stands for, by column."""
    targets = contract.targets
    found = {name: name for name in request.data if name in targets}
    known = (*contract.known_future, *contract.past, *contract.static)
    if not found and len(targets) == 1 and ONLY_TARGET in request.data.keys() - set(known):
        return {ONLY_TARGET: targets[0]}
    if not found:
        raise DataError(
            f"data: none of its columns is a target; the model forecasts {', '.join(targets)}",
            field="data",
        )
    return found


def _field(column: str) -> str:
    return f"data.{column[:60]}"


def _table(request: PredictRequest, max_points: int) -> _Table:
    index = _index(request)
    field, values = _field(index), request.data[index]
    stamps = [value for value in values if isinstance(value, str)]
    if len(stamps) != len(values) or not stamps:
        raise DataError(f"{field}: must hold ISO 8601 stamps and nothing else", field=field)
    if len(stamps) > max_points:
        raise DataError(
            f"{field}: {len(stamps)} rows; send the last {max_points} at most", field=field
        )
    for name, column in request.data.items():
        if len(column) != len(stamps):
            at = _field(name)
            raise DataError(f"{at}: {len(column)} values for {len(stamps)} stamps", field=at)
    ds_us = read_stamps(stamps, "UTC", field)
    order = np.argsort(ds_us, kind="stable")
    _check_single(ds_us[order], field)
    return _Table(request.data, index, order, ds_us[order])


def _index(request: PredictRequest) -> str:
    """The column of the stamps."""
    for name in (request.index_col, *INDEX_COLUMNS):
        if name is not None and name in request.data:
            return name
    given = "" if request.index_col is None else f"{request.index_col[:60]!r} is no column and "
    raise DataError(
        f"index_col: {given}`data` has none of {', '.join(INDEX_COLUMNS)}; name the column of the "
        "stamps",
        field="index_col",
    )


def _check_single(ds_us: np.ndarray, field: str) -> None:
    """ds_us: int64 [n], sorted."""
    twice = np.unique(ds_us[1:][ds_us[1:] == ds_us[:-1]])
    if len(twice):
        more = ", ..." if len(twice) > FEW else ""
        raise DataError(
            f"{field}: {len(twice)} stamps stand in more than one row "
            f"({', '.join(stamps_text(twice[:FEW]))}{more}); send one row for each stamp",
            field=field,
        )


def _history_end(targets: Mapping[str, np.ndarray], ahead: int) -> int:
    """Where the history ends and the rows of the horizon begin."""
    rows = len(next(iter(targets.values())))
    end = rows - ahead
    given = ahead and any(np.isfinite(values[max(end, 0) :]).any() for values in targets.values())
    if end < 1 or given:
        raise DataError(
            f"data: the model needs its covariates {ahead} steps ahead; add {ahead} rows with "
            "stamps and covariates after the history and leave the targets null there",
            field="data",
        )
    return end


def _series(
    table: _Table, model: ServedModel, column: str, unique_id: str, y: np.ndarray
) -> AskedSeries:
    """y: float64 [n] of the history alone."""
    contract, end = model.fitted.spec.contract, len(y)
    return AskedSeries(
        field=f"{column}.",
        id=unique_id,
        named=False,
        ds=table.ds_us[:end],
        y=y,
        known_future={name: table.numbers(name) for name in contract.known_future},
        past={name: table.numbers(name)[:end] for name in contract.past},
        static={
            name: value
            for name in contract.static
            if name in table.data and (value := table.first(name)) is not None
        },
    )


def _in_older_words(error: DataError, table: _Table, columns: tuple[str, ...]) -> DataError:
    """The same refusal, naming the table: `down.past.wind[3]` is `data.wind[7]` where the fourth
    row by its stamp is the eighth as sent."""
    field = error.field or ""
    column = max((c for c in columns if field.startswith(f"{c}.")), key=len, default=None)
    if column is None:
        return error
    found = _PLACE.fullmatch(field.removeprefix(f"{column}."))
    place, position = (found[1], found[2]) if found else ("", None)
    names = {"y": column, "ds": table.index, "unique_id": column}
    older = f"data.{names.get(place, place.partition('.')[2])}"
    if position is not None:
        older += f"[{table.order[int(position)]}]"
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
        "identifier": model.name,
        "run_id": model.run_id,
        "predictions": [{"ts": ts, **dict(zip(columns, row, strict=True))} for ts, row in rows],
        "req_id": forecast_id,
        "cached": False,
    }
