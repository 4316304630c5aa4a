"""One series of a request into one row of `Windows`.

Design choices: a series comes either with its history or as the name of a series that the
champion was fitted on, whose prepared data are the history then; nothing the model needs is made
up, what is missing is named. The scale and the clipping bounds of a known series apply to a
history that is sent under its name too, as they did in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import Struct

from flts_ray.errors import DataError
from flts_ray.models.base import ModelSpec
from flts_ray.panel import Contract, steps_after, to_local_us
from flts_ray.prepare.arrays import SeriesArrays, bounded
from flts_ray.prepare.clean import EARLIEST_US, LATEST_US
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.history import (
    RawHistory,
    lay_history,
    numbers,
    parse_stamps,
    stamps_text,
)
from flts_ray.serve.schemas import PackedSeries, SeriesRequest
from flts_ray.serve.stamps import read_stamps


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


Numbers = Sequence[float | None] | np.ndarray
Stamps = Sequence[str] | np.ndarray


class AskedSeries(Struct, frozen=True, kw_only=True):
    """A series of a request, whatever wire it came over.

    `field` is its path with a dot at the end, or empty; `named` tells whether `id` was sent.
    Stamps are ISO 8601 texts or int64 UTC microseconds; numbers may be arrays, NaN is missing.
    """

    field: str
    id: str
    named: bool
    ds: Stamps | None = None
    start: str | int | None = None
    y: Numbers | None = None
    observed: Sequence[bool] | np.ndarray | None = None
    origin: str | None = None
    known_future: Mapping[str, Numbers] = {}
    past: Mapping[str, Numbers] = {}
    static: Mapping[str, float | str] = {}


def asked_series(request: SeriesRequest | PackedSeries, field: str, position: int) -> AskedSeries:
    """A decoded series; one without a name is called by its position.

    Raises DataError for raw bytes of a wrong length.
    """
    name = request.unique_id
    y, known, past = _columns_sent(request, field)
    return AskedSeries(
        field=field,
        id=str(position) if name is None else name,
        named=name is not None,
        ds=request.ds,
        start=request.start,
        y=y,
        observed=request.observed,
        origin=request.origin,
        known_future=known,
        past=past,
        static=request.static,
    )


def _columns_sent(
    request: SeriesRequest | PackedSeries, field: str
) -> tuple[Numbers | None, Mapping[str, Numbers], Mapping[str, Numbers]]:
    if isinstance(request, SeriesRequest):
        return request.y, request.known_future, request.past

    def read(place: str, column: list[float | None] | bytes) -> Numbers:
        return _unpacked(column, request.dtype, f"{field}{place}")

    return (
        None if request.y is None else read("y", request.y),
        {n: read(f"known_future.{n[:60]}", c) for n, c in request.known_future.items()},
        {n: read(f"past.{n[:60]}", c) for n, c in request.past.items()},
    )


def _unpacked(column: list[float | None] | bytes, dtype: str, place: str) -> Numbers:
    if not isinstance(column, bytes):
        return column
    kind = np.dtype(dtype).newbyteorder("<")
    if len(column) % kind.itemsize:
        raise DataError(
            f"{place}: {len(column)} bytes are no whole number of {dtype}; check `dtype`",
            field=place,
        )
    return np.frombuffer(column, dtype=kind)


def needs_prepared(series: AskedSeries, contract: Contract) -> bool:
    """True when the row takes something from the champion's prepared data."""
    return series.y is None or (series.named and not set(contract.static) <= {*series.static})


def row_of(series: AskedSeries, model: ServedModel, prepared: SeriesArrays | None) -> Row:
    """The row of one series; `prepared` holds it alone where `needs_prepared` says so.

    Raises DataError naming the field.
    """
    contract = model.fitted.spec.contract
    for kind, given, known in (
        ("known_future", series.known_future, contract.known_future),
        ("past", series.past, contract.past),
        ("static", series.static, contract.static),
    ):
        for name in given:
            if name not in known:
                raise _refused(
                    series, f"{kind}.{name[:60]}", f"the model has {_columns(known)} of this role"
                )
    if series.y is not None:
        return _row_from_history(series, model, prepared)
    if prepared is None:
        raise _refused(series, "y", "required, but not given")
    return _row_from_prepared(series, model.fitted.spec, prepared)


def _refused(series: AskedSeries, field: str, problem: str) -> DataError:
    place = series.field + field
    return DataError(f"{place}: {problem}", field=place)


def _columns(names: tuple[str, ...]) -> str:
    return f"the columns {', '.join(names)}" if names else "no column"


def _row_from_history(
    series: AskedSeries, model: ServedModel, prepared: SeriesArrays | None
) -> Row:
    spec = model.fitted.spec
    if series.origin is not None:
        raise _refused(series, "origin", "belongs to a series without a history; leave one out")
    raw, ahead = _raw_history(series, spec)
    history = lay_history(raw, spec.contract, spec.lookback)
    at = model.position.get(series.id)
    stats = model.fitted.stats
    y = history.y if at is None else bounded(history.y, stats.clip_lo[at], stats.clip_hi[at])
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


def _raw_history(series: AskedSeries, spec: ModelSpec) -> tuple[RawHistory, np.ndarray]:
    """The rows as sent, and the known-future values of the horizon, float32 [H, K]."""
    contract, horizon = spec.contract, spec.task.horizon
    y = numbers(() if series.y is None else series.y, series.field + "y")
    if not len(y):
        raise _refused(
            series, "y", f"needs {spec.lookback} points at {contract.freq}, got 0: all are missing"
        )
    stamps = _stamps(series, len(y), contract)
    observed = np.ones(len(y), dtype=bool)
    if series.observed is not None:
        _check_length(series, "observed", len(series.observed), len(y), "the history")
        observed = np.asarray(series.observed)
    known, ahead = {}, np.zeros((horizon, len(contract.known_future)), dtype=np.float32)
    for i, name in enumerate(contract.known_future):
        field = f"known_future.{name}"
        column = _column(series, series.known_future, name, field)
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
        past[name] = _column(series, series.past, name, f"past.{name}")
        _check_length(series, f"past.{name}", len(past[name]), len(y), "the history")
    return RawHistory(series.field + "y", stamps, y, observed, known, past), ahead


def _stamps(series: AskedSeries, count: int, contract: Contract) -> np.ndarray:
    if (series.ds is None) == (series.start is None):
        raise _refused(series, "ds", "give either the stamps `ds` or the first one as `start`")
    if series.ds is not None:
        _check_length(series, "ds", len(series.ds), count, "y")
        return _instants(series, "ds", series.ds, contract)
    start = _stamp(series, "start", "" if series.start is None else series.start, contract)
    return steps_after(np.asarray(start), np.arange(count), contract)


def _instants(series: AskedSeries, field: str, stamps: Stamps, contract: Contract) -> np.ndarray:
    """int64 UTC microseconds. Raises DataError for a stamp out of range or not readable."""
    if not isinstance(stamps, np.ndarray):
        return read_stamps(stamps, contract.time_zone, series.field + field)
    outside = np.flatnonzero((stamps < EARLIEST_US) | (stamps >= LATEST_US))
    if len(outside):
        raise _refused(series, f"{field}[{outside[0]}]", "lies outside the years 1678 to 2261")
    return stamps


def _stamp(series: AskedSeries, field: str, text: str | int, contract: Contract) -> int:
    if isinstance(text, int):
        return int(_instants(series, field, np.array([text]), contract)[0])
    try:
        return int(parse_stamps([text], contract.time_zone, series.field + field)[0])
    except DataError as error:
        raise DataError(str(error).replace("[0]:", ":", 1), field=series.field + field) from None


def _column(
    series: AskedSeries, columns: Mapping[str, Numbers], name: str, field: str
) -> np.ndarray:
    if name not in columns:
        raise _refused(series, field, "required by the model, but not given")
    return numbers(columns[name], series.field + field)


def _check_length(series: AskedSeries, field: str, got: int, wanted: int, of: str) -> None:
    if got != wanted:
        raise _refused(series, field, f"needs {wanted} values (one for each of {of}), got {got}")


def _check_finite(series: AskedSeries, field: str, values: np.ndarray, offset: int) -> None:
    missing = np.flatnonzero(np.isnan(values))
    if len(missing):
        raise _refused(
            series,
            f"{field}[{offset + missing[0]}]",
            f"no value for step {missing[0] + 1} of the horizon; it must be known beforehand",
        )


def _static(series: AskedSeries, contract: Contract, prepared: SeriesArrays | None) -> np.ndarray:
    values = np.zeros(len(contract.static), dtype=np.float32)
    for i, name in enumerate(contract.static):
        if name in series.static:
            values[i] = static_value(series, name, contract)
        elif prepared is not None:
            values[i] = prepared.static[0, i]
        else:
            raise _refused(series, f"static.{name}", "required by the model, but not given")
    return values


def static_value(series: AskedSeries, name: str, contract: Contract) -> float:
    """What stands in arrays for a static value: a number, or the code of a label."""
    value = series.static[name]
    if not isinstance(value, str):
        given = numbers([value], f"{series.field}static.{name}")[0]
        if np.isnan(given):
            raise _refused(series, f"static.{name}", "must be a finite number")
        return float(given)
    if name not in contract.labels:
        raise _refused(series, f"static.{name}", f"must be a number, not {value[:60]!r}")
    return contract.code_of(name, value)


def _row_from_prepared(series: AskedSeries, spec: ModelSpec, data: SeriesArrays) -> Row:
    contract = spec.contract
    for field in ("ds", "start", "observed", "past"):
        given = getattr(series, field)
        if given is not None and (isinstance(given, int) or len(given)):
            raise _refused(series, field, "belongs to a history; send its values as `y`")
    origin = _origin(series, spec, data)
    window = slice(origin - spec.lookback, origin)
    if np.isnan(data.y[window]).any():
        raise _refused(
            series,
            "origin" if series.origin is not None else "unique_id",
            f"a gap longer than {contract.max_gap} steps lies in the {spec.lookback} steps before "
            "the origin; choose another origin or send the history",
        )
    known = data.future[:, len(contract.calendar) :]
    stats = data.stats
    return Row(
        id=series.id,
        origin_us=int(steps_after(data.start_us[:1], np.asarray(origin), contract)[0]),
        y=bounded(data.y[window], stats.clip_lo[0], stats.clip_hi[0]),
        observed=data.observed[window],
        past=data.past[window],
        known=np.concatenate([known[window], _ahead(series, spec, known[origin:])]),
        static=_static(series, contract, data),
        scale=float(stats.scale[0]),
    )


def _origin(series: AskedSeries, spec: ModelSpec, data: SeriesArrays) -> int:
    """Position of the first step to forecast; by default the one after the last known step."""
    contract, length = spec.contract, len(data.y)
    if series.origin is None:
        origin = length
    else:
        moment = _stamp(series, "origin", series.origin, contract)
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


def _ahead(series: AskedSeries, spec: ModelSpec, inside: np.ndarray) -> np.ndarray:
    """Known-future values of the horizon, float32 [H, K]: as sent, else from the prepared data.

    inside: float32 [m, K], the prepared values from the origin on.
    """
    names, horizon = spec.contract.known_future, spec.task.horizon
    ahead = np.full((horizon, len(names)), np.nan, dtype=np.float32)
    ahead[: len(inside)] = inside[:horizon]
    for i, name in enumerate(names):
        field = f"known_future.{name}"
        if name in series.known_future:
            column = _column(series, series.known_future, name, field)
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
