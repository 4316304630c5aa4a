"""One series of a request into one row of `Windows`.

Design choices: a series comes either with its history or as the name of a series that the
champion was fitted on, whose prepared data are the history then; nothing the model needs is made
up, what is missing is named. The scale and the clipping bounds of a known series apply to a
history that is sent under its name too, as they did in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.base import ModelSpec
from flts_ray.panel import Contract, steps_after, to_local_us
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.history import (
    RawHistory,
    lay_history,
    numbers,
    parse_stamps,
    stamps_text,
)
from flts_ray.serve.schemas import Column, SeriesRequest


@dataclass(frozen=True)
class Row:
    """One window: lookback L, horizon H; `known` float32 [L + H, K], the rest as in `Windows`."""

    id: str
    origin_us: int
    y: np.ndarray
    observed: np.ndarray
    past: np.ndarray
    known: np.ndarray
    static: np.ndarray
    scale: float


@dataclass(frozen=True)
class Named:
    """A series of a request. `field` is its path with a dot at the end, or empty."""

    request: SeriesRequest
    field: str
    id: str


def needs_prepared(series: Named, contract: Contract) -> bool:
    """True when the row takes something from the champion's prepared data."""
    return series.request.y is None or (
        series.request.unique_id is not None
        and not set(contract.static) <= {*series.request.static}
    )


def row_of(series: Named, model: ServedModel, prepared: SeriesArrays | None) -> Row:
    """The row of one series; `prepared` holds it alone where `needs_prepared` says so.

    Raises DataError naming the field.
    """
    contract = model.fitted.spec.contract
    for kind, given, known in (
        ("known_future", series.request.known_future, contract.known_future),
        ("past", series.request.past, contract.past),
        ("static", series.request.static, contract.static),
    ):
        for name in given:
            if name not in known:
                raise _refused(
                    series, f"{kind}.{name[:60]}", f"the model has {_columns(known)} of this role"
                )
    if series.request.y is not None:
        return _row_from_history(series, model, prepared)
    if prepared is None:
        raise _refused(series, "y", "required, but not given")
    return _row_from_prepared(series, model.fitted.spec, prepared)


def _refused(series: Named, field: str, problem: str) -> DataError:
    place = series.field + field
    return DataError(f"{place}: {problem}", field=place)


def _columns(names: tuple[str, ...]) -> str:
    return f"the columns {', '.join(names)}" if names else "no column"


def _row_from_history(series: Named, model: ServedModel, prepared: SeriesArrays | None) -> Row:
    spec, request = model.fitted.spec, series.request
    if request.origin is not None:
        raise _refused(series, "origin", "belongs to a series without a history; leave one out")
    raw, ahead = _raw_history(series, spec)
    history = lay_history(raw, spec.contract, spec.lookback)
    at = model.position.get(series.id)
    stats = model.fitted.stats
    y = history.y if at is None else np.clip(history.y, stats.clip_lo[at], stats.clip_hi[at])
    return Row(
        id=series.id,
        origin_us=history.origin_us,
        y=y,
        observed=history.observed,
        past=history.past,
        known=np.concatenate([history.known_future, ahead]),
        static=_static(series, spec.contract, prepared),
        scale=float("nan") if at is None else float(stats.scale[at]),
    )


def _raw_history(series: Named, spec: ModelSpec) -> tuple[RawHistory, np.ndarray]:
    """The rows as sent, and the known-future values of the horizon, float32 [H, K]."""
    request, contract, horizon = series.request, spec.contract, spec.task.horizon
    y = numbers(request.y or [], series.field + "y")
    if not len(y):
        raise _refused(
            series, "y", f"needs {spec.lookback} points at {contract.freq}, got 0: all are missing"
        )
    stamps = _stamps(series, len(y), contract)
    observed = np.ones(len(y), dtype=bool)
    if request.observed is not None:
        _check_length(series, "observed", len(request.observed), len(y), "the history")
        observed = np.asarray(request.observed)
    known, ahead = {}, np.zeros((horizon, len(contract.known_future)), dtype=np.float32)
    for i, name in enumerate(contract.known_future):
        field = f"known_future.{name}"
        column = _column(series, request.known_future, name, field)
        _check_length(
            series,
            field,
            len(column),
            len(y) + horizon,
            f"the history, then {horizon} of the horizon",
        )
        _check_finite(series, field, column[-horizon:], len(y))
        known[name], ahead[:, i] = column[:-horizon], column[-horizon:]
    past = {}
    for name in contract.past:
        past[name] = _column(series, request.past, name, f"past.{name}")
        _check_length(series, f"past.{name}", len(past[name]), len(y), "the history")
    return RawHistory(series.field + "y", stamps, y, observed, known, past), ahead


def _stamps(series: Named, count: int, contract: Contract) -> np.ndarray:
    request = series.request
    if (request.ds is None) == (request.start is None):
        raise _refused(series, "ds", "give either the stamps `ds` or the first one as `start`")
    if request.ds is not None:
        _check_length(series, "ds", len(request.ds), count, "y")
        return parse_stamps(request.ds, contract.time_zone, series.field + "ds")
    start = _stamp(series, "start", request.start or "", contract)
    return steps_after(np.asarray(start), np.arange(count), contract)


def _stamp(series: Named, field: str, text: str, contract: Contract) -> int:
    try:
        return int(parse_stamps([text], contract.time_zone, series.field + field)[0])
    except DataError as error:
        raise DataError(str(error).replace("[0]:", ":", 1), field=series.field + field) from None


def _column(series: Named, columns: Mapping[str, Column], name: str, field: str) -> np.ndarray:
    if name not in columns:
        raise _refused(series, field, "required by the model, but not given")
    return numbers(columns[name], series.field + field)


def _check_length(series: Named, field: str, got: int, wanted: int, of: str) -> None:
    if got != wanted:
        raise _refused(series, field, f"needs {wanted} values (one for each of {of}), got {got}")


def _check_finite(series: Named, field: str, values: np.ndarray, offset: int) -> None:
    missing = np.flatnonzero(np.isnan(values))
    if len(missing):
        raise _refused(
            series,
            f"{field}[{offset + missing[0]}]",
            f"no value for step {missing[0] + 1} of the horizon; it must be known beforehand",
        )


def _static(series: Named, contract: Contract, prepared: SeriesArrays | None) -> np.ndarray:
    values = np.zeros(len(contract.static), dtype=np.float32)
    for i, name in enumerate(contract.static):
        if name in series.request.static:
            given = numbers([series.request.static[name]], f"{series.field}static.{name}")
            if np.isnan(given[0]):
                raise _refused(series, f"static.{name}", "must be a finite number")
            values[i] = given[0]
        elif prepared is not None:
            values[i] = prepared.static[0, i]
        else:
            raise _refused(series, f"static.{name}", "required by the model, but not given")
    return values


def _row_from_prepared(series: Named, spec: ModelSpec, data: SeriesArrays) -> Row:
    request, contract = series.request, spec.contract
    for field in ("ds", "start", "observed", "past"):
        if getattr(request, field):
            raise _refused(series, field, "belongs to a history; send its values as `y`")
    origin = _origin(series, spec, data)
    window = slice(origin - spec.lookback, origin)
    if np.isnan(data.y[window]).any():
        raise _refused(
            series,
            "origin" if request.origin is not None else "unique_id",
            f"a gap longer than {contract.max_gap} steps lies in the {spec.lookback} steps before "
            "the origin; choose another origin or send the history",
        )
    known = data.future[:, len(contract.calendar) :]
    stats = data.stats
    return Row(
        id=series.id,
        origin_us=int(steps_after(data.start_us[:1], np.asarray(origin), contract)[0]),
        y=np.clip(data.y[window], stats.clip_lo[0], stats.clip_hi[0]),
        observed=data.observed[window],
        past=data.past[window],
        known=np.concatenate([known[window], _ahead(series, spec, known[origin:])]),
        static=_static(series, contract, data),
        scale=float(stats.scale[0]),
    )


def _origin(series: Named, spec: ModelSpec, data: SeriesArrays) -> int:
    """Position of the first step to forecast; by default the one after the last known step."""
    contract, length = spec.contract, len(data.y)
    if series.request.origin is None:
        origin = length
    else:
        moment = _stamp(series, "origin", series.request.origin, contract)
        zone = contract.time_zone if contract.frequency.wall_clock else "UTC"
        begin, end = to_local_us(np.array([data.start_us[0], moment]), zone)
        origin = round((int(end) - int(begin)) / contract.frequency.step_us)
    if not spec.lookback <= origin <= length:
        first, last = stamps_text(
            steps_after(data.start_us[:1], np.array([spec.lookback, length]), contract)
        )
        raise _refused(
            series, "origin", f"must lie from {first} to {last}, or send the history yourself"
        )
    return origin


def _ahead(series: Named, spec: ModelSpec, inside: np.ndarray) -> np.ndarray:
    """Known-future values of the horizon, float32 [H, K]: as sent, else from the prepared data.

    inside: float32 [m, K], the prepared values from the origin on.
    """
    names, horizon = spec.contract.known_future, spec.task.horizon
    ahead = np.full((horizon, len(names)), np.nan, dtype=np.float32)
    ahead[: len(inside)] = inside[:horizon]
    for i, name in enumerate(names):
        field = f"known_future.{name}"
        if name in series.request.known_future:
            column = _column(series, series.request.known_future, name, field)
            _check_length(series, field, len(column), horizon, "the model's horizon")
            _check_finite(series, field, column, 0)
            ahead[:, i] = column
        elif len(inside) < horizon:
            raise _refused(
                series,
                field,
                f"the prepared data end before step {len(inside) + 1} of the horizon; send "
                f"{horizon} values",
            )
    return ahead
