"""A bucket of raw rows to a table of forecasts; pure, no store, no Ray.

Design choices: windows are laid and forecasts cut by the code that answers
`POST /v1/forecast:batch`, in batches of the same size and order, so that the numbers are the same;
a series that cannot be forecast is a row of a second table, and a model call that fails is halved
until it is known which series are to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa

from flts_ray.errors import FltsError
from flts_ray.jobs.histories import About
from flts_ray.jobs.raw_series import RawSeries
from flts_ray.models.base import Forecast
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.bulk_made import finite_rows, made_of_many
from flts_ray.serve.bulk_parts import rows_of
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.laying import lay
from flts_ray.serve.predictor import Made, not_finite
from flts_ray.serve.problems import field_of

REFUSED = pa.schema([("unique_id", pa.string()), ("field", pa.string()), ("reason", pa.string())])
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Wanted:
    """What is asked of every series; `max_batch` series go through the model at once."""

    horizon: int
    levels: tuple[float, ...]
    max_batch: int


@dataclass(frozen=True)
class Forecasts:
    """`table` has the columns of `forecast_schema`, `refused` those of REFUSED; `series` is how
    many are forecast, `cold` how many of them the model has never seen."""

    table: pa.Table
    refused: pa.Table
    series: int
    cold: int


def forecast_schema(levels: tuple[float, ...]) -> pa.Schema:
    """One row a series and step, in the input's units."""
    numbers = ["mean", *(f"q{level!r}" for level in levels)]
    return pa.schema(
        [
            ("unique_id", pa.string()),
            ("ds", pa.timestamp("us", tz="UTC")),
            *((name, pa.float64()) for name in numbers),
            ("version", pa.string()),
            ("cold_start", pa.bool_()),
        ]
    )


def forecast_bucket(table: pa.Table, model: ServedModel, wanted: Wanted) -> Forecasts:
    """Forecasts of all series of a bucket, sorted by name, from the step after each one's last
    value.

    table: rows as `read_batches` gives them. Raises DataError for a column that the model cannot
    use; what is wrong with a series is told in `refused`.
    """
    spec = model.fitted.spec
    series = RawSeries(table, About(spec.task.horizon, spec.lookback, spec.contract))
    made: list[Made] = []
    refused: dict[int, Exception] = {}
    for begin in range(0, series.count, wanted.max_batch):
        part, failed = _forecast_part(series, begin, model, wanted)
        made += part
        refused |= failed
    return Forecasts(
        _table(made, model, wanted),
        _told(refused, series.ids),
        sum(len(one.ids) for one in made),
        sum(sum(one.cold) for one in made),
    )


def _forecast_part(
    series: RawSeries, begin: int, model: ServedModel, wanted: Wanted
) -> tuple[list[Made], dict[int, Exception]]:
    """Forecasts of one batch, and errors by position in `series`."""
    part = series.part(begin, begin + wanted.max_batch)
    refused: dict[int, Exception] = {begin + i: error for i, error in part.refused.items()}
    if not len(part.at):
        return [], refused
    laid = lay(part.asked, model)
    at = begin + np.asarray(part.at)
    refused |= {int(at[i]): error for i, error in laid.refused.items()}
    failed: dict[int, Exception] = {}
    made = [] if laid.windows is None else list(_answers(laid.windows, model, wanted, failed))
    return made, refused | {int(at[laid.rows[i]]): error for i, error in failed.items()}


def _answers(
    windows: Windows, model: ServedModel, wanted: Wanted, failed: dict[int, Exception]
) -> Iterator[Made]:
    """Forecasts of the windows in order; those without one go to `failed`, by position."""
    asked = partial(_forecast, windows, model)
    for within, forecast in in_halves(asked, 0, len(windows), failed):
        made = made_of_many(forecast, wanted.horizon, wanted.levels, model)
        finite = finite_rows(forecast, made)
        if finite is None:
            yield made
            continue
        for i in np.flatnonzero(~finite).tolist():
            failed[within.start + i] = not_finite(forecast.ids[i])
        if finite.any():
            kept = rows_of(forecast, np.flatnonzero(finite))
            yield made_of_many(kept, wanted.horizon, wanted.levels, model)


def _forecast(windows: Windows, model: ServedModel, some: slice) -> Forecast:
    return model.fitted.forecast(windows.part(some))


def in_halves(
    work: Callable[[slice], _Made], begin: int, end: int, failed: dict[int, Exception]
) -> Iterator[tuple[slice, _Made]]:
    """What `work` makes of `begin` to `end`, in order; where it raises, of each half by itself.

    What a single one raises goes to `failed`, by position.
    """
    try:
        made = work(slice(begin, end))
    except Exception as error:  # noqa: BLE001 -- repeated in halves to find whose it is
        if end - begin == 1:
            failed[begin] = error
            return
    else:
        yield slice(begin, end), made
        return
    middle = begin + (end - begin) // 2
    yield from in_halves(work, begin, middle, failed)
    yield from in_halves(work, middle, end, failed)


def _table(made: list[Made], model: ServedModel, wanted: Wanted) -> pa.Table:
    schema = forecast_schema(wanted.levels)
    if not made:
        return schema.empty_table()
    ids = [name for one in made for name in one.ids]
    steps = wanted.horizon
    row = np.repeat(np.arange(len(ids), dtype=np.int32), steps)
    origins = np.concatenate([one.origin_us for one in made])
    contract = model.fitted.spec.contract
    ds_us = steps_after(origins[:, None], np.arange(steps), contract).ravel()
    numbers = [np.concatenate([one.mean for one in made])]
    numbers += [np.concatenate([one.quantiles[:, q] for one in made])
                for q in range(len(wanted.levels))]  # fmt: skip
    cold = np.repeat([cold for one in made for cold in one.cold], steps)
    columns = [
        pa.array(ids, pa.string()).take(pa.array(row)),
        pa.array(ds_us).cast(schema.field("ds").type),
        *(pa.array(values.ravel()) for values in numbers),
        pa.repeat(pa.scalar(model.version), len(row)),
        pa.array(cold),
    ]
    return pa.table(columns, schema=schema)


def _told(refused: dict[int, Exception], ids: list[str]) -> pa.Table:
    rows = sorted(refused.items())
    errors = [error for _, error in rows]
    columns = [
        [ids[i] for i, _ in rows],
        [field_of(error) if isinstance(error, FltsError) else None for error in errors],
        [
            str(error) if isinstance(error, FltsError) else f"{type(error).__name__}: {error}"
            for error in errors
        ],
    ]
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=REFUSED)
