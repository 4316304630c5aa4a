"""What is wrong inside of one segment: its rows against what it says of itself.

Design choices: every rule is checked whatever broke before it, so that one reading tells all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa

from flts_ray.ingest.checksum import checksum, schema_name
from flts_ray.ingest.segment import SegmentInfo, count_bad, time_span

RowCode = Literal["footer", "rows", "checksum", "schema", "order", "outside", "repeated", "times"]
Fault = tuple[RowCode, str]


def faults(table: pa.Table, info: SegmentInfo, footer: SegmentInfo) -> Iterator[Fault]:
    """Each rule that the rows break: its code and what was found.

    `info` are the facts in the listing, `footer` those in the file.
    """
    if footer != info:
        yield "footer", "the footer and the object's metadata differ"
    bad = count_bad(table)
    if (table.num_rows - bad, bad) != (info.rows, info.bad_rows):
        told = f"{info.rows} and {info.bad_rows}"
        yield "rows", f"it holds {table.num_rows - bad} good and {bad} bad rows instead of {told}"
    if info.lost + used_offsets(table) > info.end - info.begin:
        yield "rows", "offsets that it counts as lost have rows"
    if schema_name(table.schema) != info.schema:
        yield "schema", "its columns are not those that it says"
    if checksum(table) != info.checksum:
        yield "checksum", "its rows are not those that were written"
    if time_span(table) != (info.min_us, info.max_us):
        yield "times", "its earliest or latest time is not the one that it says"
    yield from _misplaced_rows(table, info)


def used_offsets(table: pa.Table) -> int:
    """How many offsets have rows."""
    return len(np.unique(table.column("offset").to_numpy()))


def _misplaced_rows(table: pa.Table, info: SegmentInfo) -> Iterator[Fault]:
    offset, index = (table.column(name).to_numpy() for name in ("offset", "index"))
    outside = offset[(offset < info.begin) | (offset >= info.end)]
    if len(outside):
        yield "outside", f"offset {outside[0]} is not in its range"
    order = np.lexsort((index, offset))
    back = np.flatnonzero(order != np.arange(len(order)))
    if len(back):
        yield "order", f"offset {offset[back[0]]} is out of order"
    # An error row stands for its whole message, so it has the offset for itself.
    bad = table.column("error").is_valid().to_numpy()[order]
    same = np.diff(offset[order]) == 0
    twice = same & ((np.diff(index[order]) == 0) | bad[1:] | bad[:-1])
    if twice.any():
        yield "repeated", f"offset {offset[order][1:][twice][0]} stands in it twice"
