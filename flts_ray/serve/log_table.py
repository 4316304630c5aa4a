"""The rows of the forecast log, and its files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flts_ray.serve.log_entry import Entry
from flts_ray.store import Store

STAMP = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "forecast_id": pa.string(),
        "unique_id": pa.string(),
        "origin": STAMP,
        "made_at": STAMP,
        "version": pa.string(),
        "digest": pa.string(),
        "role": pa.dictionary(pa.int8(), pa.string()),
        "degraded": pa.bool_(),
        "horizon": pa.int32(),
        "mean": pa.list_(pa.float32()),
        "levels": pa.list_(pa.float64()),
        "quantiles": pa.list_(pa.float32()),
        "latency_ms": pa.float32(),
    }
)
"""A row is one series of one answer. `quantiles` holds all levels of the first step, then those of
the second; `row` counts the rows of one replica from 0."""

REPEATED = ["unique_id", "version", "digest", "role"]
"""Columns that pay for a dictionary; building one of forecasts takes longer than all the rest."""


class LogFile:
    """A Parquet file in memory: entries are added as rows, `body` ends it.

    first_row: the number of its first row; made_us: when its first entry was made.
    """

    def __init__(self, first_row: int, made_us: int) -> None:
        self.first_row = first_row
        self.made_us = made_us
        self.rows = 0
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(
            self._sink, SCHEMA, compression="snappy", use_dictionary=REPEATED
        )

    def add(self, entries: Sequence[Entry]) -> None:
        """Encode entries. If it raises, none of them is in the file."""
        table = table_of(entries, self.first_row + self.rows)
        self._writer.write_table(table)
        self.rows += table.num_rows

    @property
    def size(self) -> int:
        """Bytes so far."""
        return int(self._sink.tell())

    def body(self) -> bytes:
        """The whole file; nothing can be added any more."""
        self._writer.close()
        body: bytes = self._sink.getvalue().to_pybytes()
        return body


def table_of(entries: Sequence[Entry], first_row: int) -> pa.Table:
    """Entries as rows of `SCHEMA`, one a series; `first_row` is the number of the first one."""
    counts = [entry.rows for entry in entries]
    total = sum(counts)

    def spread(values: list[str]) -> list[str] | np.ndarray:
        if total == len(values) and min(counts) == 1:
            return values
        return np.repeat(np.array(values, dtype=object), counts)

    def lists(parts: Sequence[np.ndarray], kind: np.dtype) -> pa.ListArray:
        """parts: [rows, ...] each; a row becomes a list."""
        widths = [math.prod(part.shape[1:]) for part in parts]
        borders = np.concatenate([[0], np.cumsum(np.repeat(widths, counts))]).astype(np.int32)
        flat = np.concatenate([part.ravel() for part in parts]).astype(kind)
        return pa.ListArray.from_arrays(pa.array(borders), pa.array(flat))

    forecasts = [entry.forecast for entry in entries]
    steps = [entry.horizon for entry in entries]
    columns = {
        "row": np.arange(first_row, first_row + total),
        "forecast_id": spread([entry.forecast_id for entry in entries]),
        "unique_id": [name for f in forecasts for name in f.ids],
        "origin": pa.array(np.concatenate([f.origin_us for f in forecasts]), STAMP),
        "made_at": pa.array(np.repeat([entry.made_us for entry in entries], counts), STAMP),
        "version": spread([entry.version for entry in entries]),
        "digest": spread([entry.digest for entry in entries]),
        "role": pa.array(spread([entry.role for entry in entries])).dictionary_encode().cast(
            SCHEMA.field("role").type
        ),
        "degraded": np.repeat([entry.degraded for entry in entries], counts),
        "horizon": np.repeat(np.array(steps, np.int32), counts),
        "mean": lists(
            [_first(f.mean, h) for f, h in zip(forecasts, steps, strict=True)],
            np.dtype(np.float32),
        ),
        "levels": _levels([f.levels for f in forecasts], counts),
        "quantiles": lists(
            [_first(f.quantiles, h) for f, h in zip(forecasts, steps, strict=True)],
            np.dtype(np.float32),
        ),
        "latency_ms": np.repeat(np.array([e.seconds * 1e3 for e in entries], np.float32), counts),
    }  # fmt: skip
    return pa.table(columns, schema=SCHEMA)


def _first(array: np.ndarray, steps: int) -> np.ndarray:
    """Steps of a horizon; a slice costs as much as all else that is done with an answer."""
    return array if array.shape[1] == steps else array[:, :steps]


def _levels(levels: Sequence[tuple[float, ...]], counts: Sequence[int]) -> pa.Array:
    """A list for each row."""
    known = list(dict.fromkeys(levels))
    at = {each: i for i, each in enumerate(known)}
    rows = np.repeat([at[each] for each in levels], counts)
    return pa.array(known, SCHEMA.field("levels").type).take(pa.array(rows, pa.int64()))


def read_log(store: Store, name: str, day: str | None = None) -> pa.Table:
    """Everything recorded for a model, or that of one UTC day (YYYY-MM-DD), file by file."""
    prefix = f"forecasts/{name}" + (f"/date={day}" if day else "")
    tables = [
        pq.read_table(pa.BufferReader(store.get(found.key)))
        for found in store.list(prefix)
        if found.key.endswith(".parquet")
    ]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()
