"""Forecast answers as flat rows, for files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from flts_ray.errors import DataError

SUFFIXES = (".csv", ".parquet")


def check_output(path: Path) -> None:
    """Raises DataError for a file that could not be written at the end of the work."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"--output {path}: the suffix must be .csv or .parquet", field="output")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise DataError(f"--output {path}: no such folder; make it first", field="output")


def write_answers(answers: Sequence[dict[str, Any]], path: Path) -> int:
    """Write forecasts as CSV or Parquet (by suffix), one row a step. Returns the rows.

    Raises DataError like `check_output`, or if the file cannot be written.
    """
    check_output(path)
    rows = list(answer_rows(answers))
    try:
        if path.suffix.lower() == ".parquet":
            _write_parquet(rows, path)
        else:
            with path.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    except OSError as error:
        raise DataError(f"--output {path}: {error.strerror or error}", field="output") from None
    return len(rows)


def answer_rows(answers: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One flat row a series and step, with who made it, and whether the model knew the series."""
    for answer in answers:
        for one in answer["forecasts"]:
            for h, ds in enumerate(one["ds"]):
                levels = {f"q{level}": values[h] for level, values in one["quantiles"].items()}
                yield {
                    "unique_id": one["unique_id"],
                    "ds": ds,
                    "mean": one["mean"][h],
                    "median": one["median"][h],
                    **levels,
                    "cold_start": bool(one.get("cold_start", False)),
                    "model_version": answer["model"]["version"],
                    "forecast_id": answer["forecast_id"],
                }


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    stamps = [datetime.fromisoformat(row["ds"]) for row in rows]
    at = table.schema.get_field_index("ds")
    pq.write_table(table.set_column(at, "ds", pa.array(stamps, pa.timestamp("us", tz="UTC"))), path)
