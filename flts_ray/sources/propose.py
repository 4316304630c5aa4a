"""A commented configuration for a file nobody has described yet.

Design choices: names and values decide (a column that parses as time, a column of repeated
text, the numbers), and every guess is written down as one, for the user to correct.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from flts_ray.errors import DataError
from flts_ray.panel import Frequency
from flts_ray.sources.infer import infer_frequency
from flts_ray.sources.stamps import parse_stamps

ROWS = 20_000
TIME_NAMES = ("ds", "time", "timestamp", "date", "datetime", "ts")
ID_NAMES = ("unique_id", "id", "series", "cell", "site", "feeder", "station", "meter")
TARGET_NAMES = ("y", "value", "load", "target", "demand", "traffic", "down")


@dataclass(frozen=True)
class Guess:
    """What the columns of a file seem to mean. `targets` has one entry in the long layout."""

    time: str
    id: str | None
    targets: tuple[str, ...]
    others: tuple[str, ...]
    frequency: Frequency


def guess_columns(path: Path) -> Guess:
    """Look at the first rows of a CSV or Parquet file. Raises DataError if it has no time or no
    number column."""
    table = _head(path)
    names = table.column_names
    time = _first(names, TIME_NAMES, lambda name: _is_time(table[name]))
    if time is None:
        raise DataError(f"{path}: no column holds time stamps, among {', '.join(names)}")
    text = [n for n in names if n != time and pa.types.is_string(table[n].type)]
    series = _first(text, ID_NAMES, lambda name: True)
    numbers = [n for n in names if n != time and _is_number(table[n].type) and n != series]
    if not numbers:
        raise DataError(f"{path}: no column holds numbers, among {', '.join(names)}")
    target = _first(numbers, TARGET_NAMES, lambda name: True) or numbers[0]
    others = tuple(n for n in numbers if n != target)
    stamps, _ = parse_stamps(table[time], "UTC")
    ids = table[series].to_pylist() if series else ["series"] * len(stamps)
    frequency = infer_frequency(np.asarray(ids, dtype=object), stamps)
    return Guess(time, series, (target,), others, frequency)


def model_name(path: Path) -> str:
    """A registry name made of the file's."""
    return re.sub(r"[^a-z0-9_-]+", "-", path.name.split(".")[0].lower()).strip("-_") or "loads"


def propose(path: Path, name: str) -> str:
    """The YAML text of a configuration for `path`."""
    guess = guess_columns(path)
    covariates = "".join(f"  #   {other}: past\n" for other in guess.others)
    season = guess.frequency.default_season
    return f"""# Forecasts of {path.name}. Every line below `data` is a guess to check.
name: {name}
root: .flts/{name}            # everything is kept here; or s3://bucket/prefix

data:
  path: {path}                # file, folder or glob; CSV or Parquet; or s3://...
  time: {guess.time}
  id: {guess.id or "null"}                # column that names the series; null: one series a file
  target: {guess.targets[0]}
  frequency: {guess.frequency.text}          # step of the grid
  time_zone: UTC            # local zone of the load, such as Europe/Berlin
  # covariates:             # past: measured; known_future: known ahead; static: one a series
{covariates}
prepare:
  max_gap: 6                # longest run of missing steps that is filled
  # holidays: DE            # country, or country-subdivision such as AU-VIC

split: {{validation: 0.15, test: 0.15}}

task:
  horizon: {season}               # steps ahead (here one season of {season})

models:                     # trials of each kind; params take values or search spaces
  seasonal_naive: {{}}
  ar: {{}}
  gru: {{trials: 2}}
  lstm: {{trials: 2}}
  prophet: {{}}

tune: {{budget_s: 600}}       # seconds for the study
serve: {{min_replicas: 1, max_replicas: 2}}
"""


def _head(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            batches = pq.ParquetFile(path).iter_batches(ROWS)
            return pa.Table.from_batches([next(batches)])
        with pa.csv.open_csv(path) as reader:
            return pa.Table.from_batches([reader.read_next_batch()]).slice(0, ROWS)
    except (pa.ArrowException, StopIteration, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as CSV or Parquet: {error}") from None


def _first(names: list[str], preferred: tuple[str, ...], fits: Callable[[str], bool]) -> str | None:
    ranked = sorted(names, key=lambda n: (n.lower() not in preferred, names.index(n)))
    return next((name for name in ranked if fits(name)), None)


def _is_time(column: pa.ChunkedArray) -> bool:
    if pa.types.is_temporal(column.type):
        return True
    if not pa.types.is_string(column.type) or not len(column):
        return False
    _, bad = parse_stamps(column, "UTC")
    return not bad.any()


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)
