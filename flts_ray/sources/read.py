"""One file to panel rows, in bounded memory, with every problem of the file in one error.

Design choices: once a problem is found no more rows are handed on, but the rest of the file is
still checked; rows of the repeated hour in autumn are held back to the end, when the order of all
of them tells the two passes apart (they are a few rows a year); static columns are looked through
first, so that all batches of a file agree on their type.

Rows come out as `unique_id: string, ds: timestamp[us, UTC], y: double`, the declared covariates
(double; a static one that is not numeric is string), `is_test: bool` and `order: int64`, the row's
place in its file plus `order_base`. Missing values are NaN, missing labels null.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flts_ray.config import DataConfig
from flts_ray.panel import BASE_SCHEMA
from flts_ray.sources.columns import is_numeric, labels, names, number_advice, numbers
from flts_ray.sources.files import CsvFile, ParquetFile, RawBatch, no_rows, open_file
from flts_ray.sources.inputs import Input, file_series
from flts_ray.sources.problems import Problems
from flts_ray.sources.stamps import (
    Stamps,
    read_stamps,
    repeated_hours,
    resolve_ambiguous,
    to_utc_us,
)

_UTC = BASE_SCHEMA.field("ds").type
_RESERVED = ("unique_id", "ds", "y", "is_test", "order")


@dataclass(frozen=True)
class _Plan:
    """What is read: `used` maps each column to the configuration field that names it."""

    item: Input
    data: DataConfig
    used: dict[str, str]
    targets: tuple[str, ...]
    texts: frozenset[str]
    series: str
    zone: str


@dataclass(frozen=True)
class _Rows:
    """Converted rows before targets become series: columns `id`, `row`, `t0`.., covariates."""

    table: pa.Table
    stamps: Stamps


def read_input(item: Input, data: DataConfig, order_base: int = 0) -> pa.Table:
    """All rows of a file, in file order (a wide file: one target after the other).

    Raises DataError with every problem of the file: place, column, value and what to do.
    """
    table = pa.concat_tables(read_batches(item, data, order_base))
    if data.layout == "wide":
        return table.sort_by([("unique_id", "ascending"), ("order", "ascending")])
    order = table.column("order").to_numpy()
    return table if (np.diff(order) >= 0).all() else table.sort_by("order")


def read_batches(item: Input, data: DataConfig, order_base: int = 0) -> Iterator[pa.Table]:
    """The rows of a file as a stream of tables; the rows of repeated hours come last.

    Raises DataError like `read_input`, after the good rows before the first problem.
    """
    file = open_file(item, data.time)
    plan = _planned(item, data, file)
    problems = Problems(item.uri, file.place)
    held: list[_Rows] = []
    count = 0
    for raw in file.batches(list(plan.used)):
        rows = _converted(raw, plan, problems)
        count += raw.rows.size
        if not problems.count:
            ready, late = _split(rows, plan.zone)
            held.extend([late] if late.stamps.us.size else [])
            yield _finished(ready.table, to_utc_us(ready.stamps, plan.zone), plan, order_base)
    _report_broken(file, problems)
    problems.raise_any()
    if not count:
        raise no_rows(item)
    if held:
        yield _late(held, plan, order_base)


def _planned(item: Input, data: DataConfig, file: CsvFile | ParquetFile) -> _Plan:
    targets = data.targets if data.layout == "wide" else (data.target,)
    used = {data.time: "data.time"}
    if data.id is not None:
        used[data.id] = "data.id"
    used |= dict.fromkeys(targets, "data.targets" if data.layout == "wide" else "data.target")
    used |= dict.fromkeys(data.covariates, "data.covariates")
    problems = Problems(item.uri, str)
    for text in _header_problems(used, file.header, data):
        problems.add(text)
    problems.raise_any()
    return _Plan(
        item,
        data,
        used,
        targets,
        _text_columns(file, data),
        "" if data.id is not None else _series(item, data),
        data.stamp_time_zone or data.time_zone,
    )


def _series(item: Input, data: DataConfig) -> str:
    """Name for a file without an id column; "" for a wide file whose targets are names enough."""
    if item.series or (data.layout == "wide" and data.id_from_path is None):
        return item.series
    return file_series(item, data)


def _header_problems(used: dict[str, str], header: list[str], data: DataConfig) -> Iterator[str]:
    for column, option in used.items():
        if column not in header:
            near = difflib.get_close_matches(column, header, 1, 0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            have = ", ".join(map(repr, header[:30])) + (", ..." if len(header) > 30 else "")
            yield f"column {column!r} ({option}) is missing; {hint}set {option}; columns: {have}"
        elif header.count(column) > 1:
            yield (
                f"column {column!r} ({option}) is there {header.count(column)} times; rename all "
                "but one"
            )
    for name in set(data.covariates) & set(_RESERVED):
        yield f"covariate {name!r} has a name the panel uses itself; rename the column"


def _text_columns(file: CsvFile | ParquetFile, data: DataConfig) -> frozenset[str]:
    """Static columns that hold labels, not numbers."""
    static = [name for name, role in data.covariates.items() if role == "static"]
    if file.item.labels is not None:
        return file.item.labels & frozenset(static)
    found: set[str] = set()
    for batch in file.batches(static) if static else ():
        found |= {name for name, values in batch.columns.items() if not is_numeric(values)}
        if len(found) == len(static):
            break
    return frozenset(found)


def _converted(raw: RawBatch, plan: _Plan, problems: Problems) -> _Rows:
    data, columns = plan.data, raw.columns
    stamps = read_stamps(columns[data.time])
    problems.add_rows(data.time, columns[data.time], stamps.bad, raw.rows, _stamp_advice)
    made: dict[str, pa.Array] = {"row": pa.array(raw.rows)}
    if data.id is not None:
        made["id"], bad = names(columns[data.id])
        problems.add_rows(data.id, columns[data.id], bad, raw.rows, _id_advice)
    for at, target in enumerate(plan.targets):
        made[f"t{at}"], bad = numbers(columns[target])
        problems.add_rows(target, columns[target], bad, raw.rows, number_advice)
    for at, name in enumerate(data.covariates):
        if name in plan.texts:
            made[f"c{at}"] = labels(columns[name])
        else:
            made[f"c{at}"], bad = numbers(columns[name], allow_bool=True)
            problems.add_rows(name, columns[name], bad, raw.rows, number_advice)
    return _Rows(pa.table(made), stamps)


def _split(rows: _Rows, zone: str) -> tuple[_Rows, _Rows]:
    """Rows whose instant is certain, and those of a repeated hour."""
    late = repeated_hours(rows.stamps.us, zone)[0] & rows.stamps.naive
    if not late.any():
        return rows, _Rows(rows.table.slice(0, 0), rows.stamps.take(np.zeros(0, np.int64)))
    return _taken(rows, np.flatnonzero(~late)), _taken(rows, np.flatnonzero(late))


def _taken(rows: _Rows, index: np.ndarray) -> _Rows:
    return _Rows(rows.table.take(pa.array(index)), rows.stamps.take(index))


def _late(held: list[_Rows], plan: _Plan, order_base: int) -> pa.Table:
    table = pa.concat_tables([rows.table for rows in held]).combine_chunks()
    wall_us = np.concatenate([rows.stamps.us for rows in held])
    series = np.zeros(wall_us.size, np.int64)
    if plan.data.id is not None:
        encoded = pc.dictionary_encode(table.column("id")).combine_chunks()
        series = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return _finished(table, resolve_ambiguous(wall_us, series, plan.zone), plan, order_base)


def _finished(table: pa.Table, us: np.ndarray, plan: _Plan, order_base: int) -> pa.Table:
    """Each target becomes series; us: int64 UTC microseconds [rows]."""
    rows = table.num_rows
    shared = {name: table.column(f"c{at}") for at, name in enumerate(plan.data.covariates)}
    shared["is_test"] = pa.array(np.full(rows, plan.item.is_test))
    shared["order"] = pa.array(table.column("row").to_numpy() + order_base)
    ds = pa.array(us, pa.int64()).cast(_UTC)
    parts = [
        pa.table({"unique_id": _ids(table, target, plan), "ds": ds, "y": table.column(f"t{at}")})
        for at, target in enumerate(plan.targets)
    ]
    for name, values in shared.items():
        parts = [part.append_column(name, values) for part in parts]
    return pa.concat_tables(parts)


def _ids(table: pa.Table, target: str, plan: _Plan) -> pa.Array | pa.ChunkedArray:
    wide = plan.data.layout == "wide"
    if plan.data.id is not None:
        ids = table.column("id")
        return pc.binary_join_element_wise(ids, target, "/") if wide else ids
    name = "/".join(filter(None, (plan.series, target))) if wide else plan.series
    return pa.repeat(pa.scalar(name), table.num_rows)


def _report_broken(file: CsvFile | ParquetFile, problems: Problems) -> None:
    if isinstance(file, CsvFile):
        for number, what in filter(lambda line: line[1], file.skipped):
            problems.add(f"line {number}: {what}; correct the line or quote the field")


def _stamp_advice(value: str) -> str:
    if value == "empty":
        return "every row needs a time; fill it in or remove the row"
    return (
        "is no time; write 2014-01-31 13:30, 2014-01-31T13:30:00+11:00, or whole seconds, ms, us "
        "or ns since 1970 (years 1800-2199)"
    )


def _id_advice(value: str) -> str:
    if value == "empty":
        return "every row needs a series name; fill it in or remove the row"
    return "series names are text or whole numbers; convert the column"
