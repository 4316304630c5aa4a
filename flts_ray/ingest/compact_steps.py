"""The two steps of compaction that run anywhere: sort segments by date, merge a date.

Design choices: both read and write through the store only, so any node can run them; a step spills
its rows as one object with a part for each date, read back by ranges, because a stream of old data
has many dates; a segment's checksum is taken before its rows enter the table, a table file's
before rows are added to it; files are put, not created, so that one which nobody referred to so
far is young again before an entry names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import pyarrow as pa

from flts_ray.errors import ArtifactError
from flts_ray.ingest.checksum import checksum
from flts_ray.ingest.segment import SegmentInfo, read_table
from flts_ray.ingest.table import (
    by_date,
    covariate_kinds,
    decode_rows,
    encode_rows,
    merge,
    table_rows,
)
from flts_ray.prepare.steps import Report
from flts_ray.sources.table_log import TableFile, table_folder
from flts_ray.store import NotFound, Store

STEP_ROWS = 1_000_000
"""Rows for which segments, or dates, are put into one step; one alone may have more."""
SPILL_BYTES = 128 * 2**20
_Item = TypeVar("_Item")
Piece = tuple[str, int, int]
"""Key, first byte and length."""


@dataclass(frozen=True)
class Plan:
    """What both steps need; travels to the workers. `root` is the store's address."""

    root: str
    topic: str
    epoch: str
    spill: str
    groups: tuple[tuple[SegmentInfo, ...], ...]


@dataclass(frozen=True)
class Job:
    """A date, the file it has so far, and its new rows."""

    date: str
    base: TableFile | None
    rows: int
    pieces: tuple[Piece, ...]

    @property
    def all_rows(self) -> int:
        """Rows that merging it holds at once."""
        return self.rows + (self.base.rows if self.base else 0)


def grouped_segments(infos: Sequence[SegmentInfo]) -> tuple[tuple[SegmentInfo, ...], ...]:
    """Segments by step."""
    return tuple(_grouped(infos, [info.rows + info.bad_rows for info in infos]))


def grouped_dates(jobs: Sequence[Job]) -> tuple[tuple[Job, ...], ...]:
    """Dates by step."""
    return tuple(_grouped(jobs, [job.all_rows for job in jobs]))


def _grouped(items: Sequence[_Item], rows: Sequence[int]) -> Iterator[tuple[_Item, ...]]:
    begin, held = 0, 0
    for index, count in enumerate(rows):
        if held and held + count > STEP_ROWS:
            yield tuple(items[begin:index])
            begin, held = index, 0
        held += count
    if begin < len(items):
        yield tuple(items[begin:])


def split_segments(plan: Plan, index: int) -> Report:
    """Spill the good rows of one group of segments by date.

    Reports pieces: date, rows, key, first byte and length of each.
    """
    store = Store.open(plan.root)
    pieces: list[list[str | int]] = []
    for number, rows in enumerate(_gathered(store, plan.groups[index])):
        key = f"{plan.spill}/{index:06d}-{number:06d}.arrows"
        blob = bytearray()
        for date, part in by_date(rows):
            data = _ipc_bytes(part)
            pieces.append([date, len(part), key, len(blob), len(data)])
            blob += data
        store.put(key, bytes(blob))
    return {"index": index, "pieces": pieces}


def _gathered(store: Store, infos: Iterable[SegmentInfo]) -> Iterator[pa.Table]:
    """Rows of several segments at once, about SPILL_BYTES of them, all with the same columns."""
    held: list[pa.Table] = []
    for info in infos:
        rows = table_rows(_checked(store, info), info.partition)
        # A date's file has the columns of the segments with rows in it, whatever was read together.
        if held and rows.schema != held[0].schema:
            yield pa.concat_tables(held)
            held = []
        held.append(rows)
        if sum(part.nbytes for part in held) >= SPILL_BYTES:
            yield pa.concat_tables(held)
            held = []
    if any(len(part) for part in held):
        yield pa.concat_tables(held)


def _checked(store: Store, info: SegmentInfo) -> pa.Table:
    table = read_table(store, info.key)
    if checksum(table) != info.checksum:
        raise ArtifactError(
            f"{store.uri(info.key)}: its rows are not those that were stored (checksum differs); "
            "restore the object from a backup; `flts ingest verify` looks at all of them"
        )
    return table


def merge_dates(plan: Plan, groups: Sequence[Sequence[Job]], index: int) -> Report:
    """Write the files of one group of dates, one after the other. Reports them."""
    store = Store.open(plan.root)
    folder = table_folder(plan.topic, plan.epoch)
    files = [asdict(_merged(store, folder, job)) for job in groups[index]]
    return {"index": index, "files": files}


def _merged(store: Store, folder: str, job: Job) -> TableFile:
    base = [_base_rows(store, f"{folder}/{job.base.path}", job.base.sha256)] if job.base else []
    new = [pa.ipc.open_stream(store.get_range(*piece)).read_all() for piece in job.pieces]
    rows = merge([*base, *new])
    data = encode_rows(rows)
    sha256 = hashlib.sha256(data).hexdigest()
    path = f"date={job.date}/{sha256[:32]}.parquet"
    made = TableFile(path, job.date, len(rows), len(data), sha256, covariate_kinds(rows))
    if made != job.base:
        store.put(f"{folder}/{path}", data)
    return made


def _base_rows(store: Store, key: str, sha256: str) -> pa.Table:
    try:
        data = store.get(key)
    except NotFound:
        raise ArtifactError(
            f"{store.uri(key)}: a file of the table is gone; restore it from a backup"
        ) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(
            f"{store.uri(key)}: changed since it was written (SHA-256 differs); restore it from a "
            "backup"
        )
    return decode_rows(data, store.uri(key))


def _ipc_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
