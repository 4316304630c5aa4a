"""The two steps of preparation that run anywhere: split an input, prepare a bucket.

Design choices: both steps read and write through the store only, so any node can run them; an
input is split by a hash of its series names while it streams, in memory bounded by
`SPILL_BYTES`; a file is written whole and its SHA-256 is taken from the same bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flts_ray.config import DataConfig
from flts_ray.errors import DataError
from flts_ray.prepare.kernel import (
    REPAIRS,
    STATIC_PREFIX,
    Bucket,
    Rules,
    count_codes,
    prepare_bucket,
)
from flts_ray.sources.inputs import Input
from flts_ray.sources.read import read_batches
from flts_ray.store import Store

BUCKET_BYTES = 64 * 2**20
BUCKET_ROWS = 2**23
"""Rows of a bucket, about, however well they are packed: preparing them takes 200 bytes a row."""
SPILL_BYTES = 128 * 2**20
ORDER_PER_INPUT = 2**40
"""More rows than one input holds: keeps the reading order distinct across inputs."""


@dataclass(frozen=True)
class Plan:
    """Everything both steps need; travels to the workers. `root` is the store's address."""

    root: str
    folder: str
    spill: str
    buckets: int
    inputs: tuple[Input, ...]
    data: DataConfig
    rules: Rules


def bucket_count(total_bytes: int, wanted: int | None, rows: int = 0) -> int:
    """Configured number of buckets, else one for each 64 MiB or `BUCKET_ROWS` rows of input."""
    return wanted or max(1, math.ceil(total_bytes / BUCKET_BYTES), math.ceil(rows / BUCKET_ROWS))


def bucket_of(unique_id: str, buckets: int) -> int:
    """Bucket of a series: the same on every machine and in every run."""
    digest = hashlib.blake2b(unique_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % buckets


def split_input(plan: Plan, index: int) -> dict[str, Any]:
    """Spill one input into pieces by bucket. Returns its pieces and rows, JSON-ready."""
    store = Store.open(plan.root)
    batches = before(
        read_batches(plan.inputs[index], plan.data, order_base=index * ORDER_PER_INPUT), plan.data
    )
    pieces, rows = [], 0
    for number, (bucket, table) in enumerate(split_batches(batches, plan.buckets)):
        key = f"{plan.spill}/{bucket:05d}/{index:06d}-{number:06d}.arrow"
        store.put(key, _ipc_bytes(table))
        pieces.append([bucket, key])
        rows += len(table)
    return {"index": index, "rows": rows, "pieces": pieces}


def before(batches: Iterable[pa.Table], data: DataConfig) -> Iterator[pa.Table]:
    """Only rows before `data.until`, all of them without one."""
    if data.until is None:
        yield from batches
        return
    moment = datetime.fromisoformat(data.until)
    end = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(data.time_zone))
    limit = pa.scalar(end, pa.timestamp("us", tz="UTC"))
    for batch in batches:
        # A row without a stamp stays, to be counted where rows are repaired.
        kept = pc.fill_null(pc.less(batch["ds"], limit), True)
        yield batch.filter(kept)


def split_batches(
    batches: Iterable[pa.Table], buckets: int, spill_bytes: int = SPILL_BYTES
) -> Iterator[tuple[int, pa.Table]]:
    """Yield (bucket, rows) so that every row comes once; holds about `spill_bytes` at most."""
    waiting: dict[int, list[pa.Table]] = {}
    held = 0
    for batch in batches:
        for bucket, part in _by_bucket(batch, buckets):
            waiting.setdefault(bucket, []).append(part)
        held += batch.nbytes
        if held >= spill_bytes:
            yield from _drain(waiting)
            held = 0
    yield from _drain(waiting)


def _by_bucket(batch: pa.Table, buckets: int) -> Iterator[tuple[int, pa.Table]]:
    if not len(batch):
        return
    if buckets == 1:
        yield 0, batch
        return
    names = pc.unique(batch["unique_id"])
    codes = pc.index_in(batch["unique_id"], value_set=names).to_numpy()
    target = np.array([bucket_of(name, buckets) for name in names.to_pylist()])[codes]
    # Sorted once: a look at all rows for each bucket would cost the square of a set's size.
    order = np.argsort(target, kind="stable")
    found, begins = np.unique(target[order], return_index=True)
    for bucket, rows in zip(found.tolist(), np.split(order, begins[1:]), strict=True):
        yield bucket, batch.take(pa.array(rows))


def _drain(waiting: dict[int, list[pa.Table]]) -> Iterator[tuple[int, pa.Table]]:
    for bucket in sorted(waiting):
        yield bucket, pa.concat_tables(waiting[bucket], promote_options="permissive")
    waiting.clear()


def prepare_pieces(plan: Plan, bucket: int, keys: list[str]) -> dict[str, Any]:
    """Prepare one bucket from its pieces and write its files. Returns counts, JSON-ready."""
    store = Store.open(plan.root)
    pieces = (pa.ipc.open_stream(store.get(key)).read_all() for key in sorted(keys))
    tables = [unite(list(pieces), plan.rules.contract.static)]
    arrived = {
        "input_rows": len(tables[0]),
        "input_series": pc.count_distinct(tables[0]["unique_id"]).as_py(),
    }
    # Nobody else holds the rows, so the kernel is rid of them as soon as it has sorted them.
    made = prepare_bucket(tables.pop(), plan.rules)
    quarantine = f"{plan.spill}/quarantine/{bucket:05d}.arrow"
    store.put(quarantine, _ipc_bytes(made.quarantine))
    files = []
    if len(made.series):
        for kind, part in (("data", made.data), ("series", made.series)):
            name = f"{kind}/bucket-{bucket:05d}.parquet"
            files.append(write_parquet(store, plan.folder, name, part))
    return {
        "bucket": bucket,
        **arrived,
        "quarantine_key": quarantine,
        "files": files,
        **_counts(made, plan.rules),
    }


def unite(pieces: Sequence[pa.Table], static: Sequence[str]) -> pa.Table:
    """Rows of all pieces; a static column without values takes the type of the others.

    Raises DataError for a static column with text in some pieces and numbers in others.
    """
    for name in static:
        if any(_is_text(piece[name].type) for piece in pieces):
            pieces = [_as_text(piece, name) for piece in pieces]
    return pa.concat_tables(pieces, promote_options="permissive")


def _as_text(piece: pa.Table, name: str) -> pa.Table:
    column = piece[name]
    if _is_text(column.type):
        return piece
    if not pc.all(pc.is_null(column, nan_is_null=True)).as_py():
        raise mixed_kinds(name)
    empty = pa.nulls(len(piece), pa.string())
    return piece.set_column(piece.column_names.index(name), name, empty)


def mixed_kinds(name: str) -> DataError:
    """The error for a static column that is text in some files and numbers in others."""
    return DataError(
        f"column {name}: text in some files, numbers in others; write one kind in all", field=name
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def write_parquet(store: Store, folder: str, name: str, table: pa.Table) -> dict[str, Any]:
    """Write one Parquet file of a set. Returns its path in the folder, sha256 and size."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    store.put(f"{folder}/{name}", data)
    return {"path": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def _ipc_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")
    ) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _counts(made: Bucket, rules: Rules) -> dict[str, Any]:
    series = made.series
    total = {name: int(pc.sum(series[name]).as_py() or 0) for name in REPAIRS}
    train, valid = (int(pc.sum(series[n]).as_py() or 0) for n in ("train_end", "valid_end"))
    return {
        "rows": len(made.data),
        "series": len(series),
        "splits": {"train": train, "validation": valid - train, "test": len(made.data) - valid},
        "repairs": total,
        "quarantine": count_codes(made.quarantine),
        "categories": _categories(series, rules.contract.static),
    }


def _categories(series: pa.Table, names: Sequence[str]) -> dict[str, list[str] | None]:
    """Distinct values of static text columns; None for numbers, no entry where all is missing."""
    found: dict[str, list[str] | None] = {}
    for name in names:
        values = series[f"{STATIC_PREFIX}{name}"].drop_null()
        if _is_text(values.type):
            found[name] = sorted(values.unique().to_pylist())
        elif len(values):
            found[name] = None
    return found
