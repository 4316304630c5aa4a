"""Samples of known types to Arrow columns, and which of their values break the contract.

Design choices: one list a column, since that is what Arrow converts fastest; values are checked on
whole columns, and only what fails is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from operator import attrgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flts_ray.ingest.decode_sample import Refusal, Sample, shown
from flts_ray.ingest.stamps_fast import sample_stamps
from flts_ray.panel import BASE_SCHEMA, Role
from flts_ray.sources.columns import labels, names

MAX_ID_BYTES = 512
_UTC = BASE_SCHEMA.field("ds").type


@dataclass(frozen=True)
class Checked:
    """`table`: the data columns [rows]; `problems`: the first problem of each bad row.

    The detail of a problem begins with the field's name.
    """

    table: pa.Table
    problems: dict[int, Refusal]


def read_columns(samples: Sequence[Sample], covariates: Mapping[str, Role], zone: str) -> Checked:
    """Columns unique_id, ds, y and the covariates. Bad stamps are null."""
    stamps = [sample.ds for sample in samples]
    us, bad = sample_stamps(stamps, zone)
    problems = {
        int(row): Refusal(
            "bad_time",
            f"ds: {shown(stamps[row])} is no time; write ISO 8601, or s, ms, us or ns since 1970 "
            "(years 1800-2199)",
        )
        for row in np.flatnonzero(bad)
    }
    made = {
        "unique_id": _names([sample.unique_id for sample in samples]),
        "ds": pa.array(us, pa.int64(), mask=bad if problems else None).cast(_UTC),
        "y": pa.array([sample.y for sample in samples], pa.float64()),
    }
    for at, (name, role) in enumerate(covariates.items()):
        values = list(map(attrgetter(f"c{at}"), samples))
        if role == "static":
            made[name] = _labels(values, name, problems)
        else:
            made[name] = pa.array(values, pa.float64())
    found = check_columns(pa.table(made), covariates)
    return Checked(found.table, problems | found.problems)


def check_columns(table: pa.Table, covariates: Mapping[str, Role]) -> Checked:
    """Names must be there and short, numbers finite; null is a missing number."""
    problems: dict[int, Refusal] = {}
    for row, refusal in _found(table, covariates):
        problems.setdefault(row, refusal)
    return Checked(table, problems)


def label(value: str | int | float | None) -> str | None:
    """Text of a category that was written as a number: without a point where it is whole."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return value if value is None or isinstance(value, str) else str(value)


def _found(table: pa.Table, covariates: Mapping[str, Role]) -> Iterator[tuple[int, Refusal]]:
    ids = table.column("unique_id")
    for row in _rows(pc.equal(ids, "").fill_null(True)):
        yield row, Refusal("missing_field", "unique_id is blank; every sample names its series")
    size = pc.binary_length(ids)
    for row in _rows(pc.greater(size, MAX_ID_BYTES)):
        yield (
            row,
            Refusal(
                "id_too_long",
                f"unique_id: {shown(ids[row].as_py())} has {size[row].as_py()} bytes of at most "
                f"{MAX_ID_BYTES}",
            ),
        )
    for name in ("y", *(name for name, role in covariates.items() if role != "static")):
        values = table.column(name)
        for row in _rows(pc.invert(pc.is_finite(values))):
            said = f"{name}: {values[row].as_py()} is not finite; write null for a missing value"
            yield row, Refusal("not_finite", said)


def _rows(mask: pa.ChunkedArray) -> list[int]:
    if not pc.any(mask).as_py():
        return []
    return np.flatnonzero(mask.fill_null(False).to_numpy()).tolist()


def _names(values: list[str | int]) -> pa.Array:
    try:
        column = pa.array(values, pa.string())
    except pa.ArrowTypeError:
        column = pa.array([str(value) for value in values], pa.string())
    return names(column)[0]


def _labels(
    values: list[str | int | float | None], name: str, problems: dict[int, Refusal]
) -> pa.Array:
    try:
        return labels(pa.array(values, pa.string()))
    except pa.ArrowTypeError:
        for row, value in enumerate(values):
            if isinstance(value, float) and not isfinite(value):
                problems.setdefault(row, Refusal("not_finite", f"{name}: {value} is not finite"))
        return labels(pa.array(list(map(label, values)), pa.string()))
