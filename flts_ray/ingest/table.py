"""The pure step from segments to table files: Arrow tables in, Arrow tables and bytes out.

Design choices: a row's rank is (offset, partition, index) and of several rows of one moment of a
series the highest stays, so merging is associative, commutative and harmless when repeated: any
number of steps in any order gives the rows of one step over everything; rows are sorted by series
and time, columns by name, so the same rows give the same bytes; a file has the covariates of the
segments that reached it, and one that came as numbers and as text is text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flts_ray.errors import ArtifactError
from flts_ray.ingest.segment import good_rows, segment_schema
from flts_ray.panel import US_PER_DAY
from flts_ray.sources.columns import is_numeric

_BEFORE = (
    pa.field("unique_id", pa.string()),
    pa.field("ds", pa.timestamp("us", "UTC")),
    pa.field("y", pa.float64()),
)
_RANK = (
    pa.field("offset", pa.int64()),
    pa.field("partition", pa.int32()),
    pa.field("index", pa.int32()),
)
_FIXED = frozenset(field.name for field in (*_BEFORE, *_RANK))
_OWN = frozenset(segment_schema({}).names)
_DELTAS = {
    "ds": "DELTA_BINARY_PACKED",
    "offset": "DELTA_BINARY_PACKED",
    "index": "DELTA_BINARY_PACKED",
}


def table_rows(segment: pa.Table, partition: int) -> pa.Table:
    """Good rows of a segment with the columns of a table file, in the segment's order."""
    rows = good_rows(segment)
    rows = rows.append_column("partition", pa.array(np.full(len(rows), partition, np.int32)))
    names = sorted(set(segment.column_names) - _OWN)
    columns = [f.name for f in _BEFORE] + names + [f.name for f in _RANK]
    return rows.select(columns).replace_schema_metadata(None)


def by_date(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each UTC date (YYYY-MM-DD), dates ascending, rows in the order they had."""
    day = rows["ds"].cast(pa.int64()).to_numpy() // US_PER_DAY
    order = np.argsort(day, kind="stable")
    ordered = rows.take(pa.array(order))
    days, first, count = np.unique(day[order], return_index=True, return_counts=True)
    for number, start, length in zip(days, first, count, strict=True):
        yield str(np.datetime64(int(number), "D")), ordered.slice(start, length)


def merge(parts: Sequence[pa.Table]) -> pa.Table:
    """One row a series and moment, that of the highest (offset, partition, index).

    parts: tables as `table_rows` or `merge` give them, in any order, at least one. Sorted by
    unique_id (as bytes), then ds.
    """
    table = united(parts)
    if not len(table):
        return table
    series = _ranks(table["unique_id"])
    ds = table["ds"].cast(pa.int64()).to_numpy()
    rank = [table[field.name].to_numpy() for field in reversed(_RANK)]
    order = np.lexsort((*rank, ds, series))
    series, ds = series[order], ds[order]
    last = np.append((np.diff(series) != 0) | (np.diff(ds) != 0), True)
    return table.take(pa.array(order[last])).combine_chunks()


def united(parts: Sequence[pa.Table]) -> pa.Table:
    """All rows under one schema; covariates that a part does not have are null in its rows."""
    kinds: dict[str, pa.DataType] = {}
    for part in parts:
        for name in set(part.column_names) - _FIXED:
            kind = part.schema.field(name).type
            kinds[name] = kind if kinds.get(name, kind) == kind else pa.string()
    schema = pa.schema([*_BEFORE, *(pa.field(n, kinds[n]) for n in sorted(kinds)), *_RANK])
    return pa.concat_tables([_fitted(part, schema) for part in parts])


def _fitted(part: pa.Table, schema: pa.Schema) -> pa.Table:
    return pa.table(
        [
            part[field.name].cast(field.type)
            if field.name in part.column_names
            else pa.nulls(len(part), field.type)
            for field in schema
        ],
        schema=schema,
    )


def _ranks(names: pa.ChunkedArray) -> np.ndarray:
    """Place of each row's name among the sorted names, int64 [rows]."""
    coded = names.combine_chunks().dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = pa.concat_arrays(coded.unify_dictionaries().chunks)
    place = np.empty(len(coded.dictionary), np.int64)
    place[pc.array_sort_indices(coded.dictionary).to_numpy()] = np.arange(len(place))
    return place[coded.indices.to_numpy()]


def covariate_kinds(rows: pa.Table) -> dict[str, str]:
    """Each covariate and what it holds: `number`, or `text` if any value is no number."""
    found = {}
    for name in rows.column_names:
        if name not in _FIXED:
            values = pc.unique(rows[name])
            found[name] = "number" if is_numeric(values) else "text"
    return found


def encode_rows(rows: pa.Table) -> bytes:
    """Parquet bytes of a table file; the same rows give the same bytes."""
    sink = pa.BufferOutputStream()
    texts = [field.name for field in rows.schema if pa.types.is_string(field.type)]
    pq.write_table(
        rows.combine_chunks(),
        sink,
        compression="zstd",
        use_dictionary=[*texts, "partition"],
        column_encoding=_DELTAS,
    )
    return sink.getvalue().to_pybytes()


def decode_rows(data: bytes, place: str) -> pa.Table:
    """Rows of a table file. Raises ArtifactError naming `place` if it is damaged."""
    try:
        return pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ArtifactError(
            f"{place}: this is no table file ({error}); restore it from a backup"
        ) from None
