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


def encoded(entries: Sequence[Entry], first_row: int) -> bytes:
    """A Parquet file of `table_of`."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table_of(entries, first_row),
        sink,
        compression="snappy",
        use_dictionary=REPEATED,
    )
    body: bytes = sink.getvalue().to_pybytes()
    return body


def table_of(entries: Sequence[Entry], first_row: int) -> pa.Table:
    """Entries as rows of `SCHEMA`, one a series; `first_row` is the number of the first one."""
    counts = [entry.rows for entry in entries]
    total = sum(counts)

    def spread(values: Sequence[object]) -> np.ndarray:
        return np.repeat(np.array(values, dtype=object), counts)

    def lists(parts: Sequence[np.ndarray], kind: np.dtype) -> pa.ListArray:
        """parts: [rows, ...] each; a row becomes a list."""
        widths = [math.prod(part.shape[1:]) for part in parts]
        borders = np.concatenate([[0], np.cumsum(np.repeat(widths, counts))]).astype(np.int32)
        flat = np.concatenate([part.ravel() for part in parts]).astype(kind)
        return pa.ListArray.from_arrays(pa.array(borders), pa.array(flat))

    forecasts = [entry.forecast for entry in entries]
    steps = [entry.horizon for entry in entries]
    mean = [f.mean[:, :h] for f, h in zip(forecasts, steps, strict=True)]
    quantiles = [f.quantiles[:, :h] for f, h in zip(forecasts, steps, strict=True)]
    known = {levels: np.asarray(levels)[None] for levels in {f.levels for f in forecasts}}
    levels = [known[f.levels].repeat(len(f.ids), axis=0) for f in forecasts]
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
        "mean": lists(mean, np.dtype(np.float32)),
        "levels": lists(levels, np.dtype(np.float64)),
        "quantiles": lists(quantiles, np.dtype(np.float32)),
        "latency_ms": np.repeat(np.array([e.seconds * 1e3 for e in entries], np.float32), counts),
    }  # fmt: skip
    return pa.table(columns, schema=SCHEMA)


def read_log(store: Store, name: str, day: str | None = None) -> pa.Table:
    """Everything recorded for a model, or that of one UTC day (YYYY-MM-DD), file by file."""
    prefix = f"forecasts/{name}" + (f"/date={day}" if day else "")
    tables = [
        pq.read_table(pa.BufferReader(store.get(found.key)))
        for found in store.list(prefix)
        if found.key.endswith(".parquet")
    ]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()
