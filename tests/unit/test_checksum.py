from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.ingest.checksum import checksum, schema_name
from tests.segments import SCHEMA, bad, good

ROWS = [good(0), good(1, y=None), bad(2), good(3, unique_id="")]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@given(st.lists(st.integers(0, 4)), st.integers(0, 4))
def test_cuts_and_slices_make_no_difference(cuts: list[int], ahead: int) -> None:
    longer = table([bad(9)] * ahead + ROWS + [good(9)])
    edges = sorted({0, 4, *cuts})
    parts = [longer.slice(ahead + a, b - a) for a, b in pairwise(edges)]
    assert checksum(pa.concat_tables(parts)) == checksum(table(ROWS))


@pytest.mark.parametrize(
    "other",
    [
        [good(0), good(1), bad(2), good(3, unique_id="")],
        [good(0), good(1, y=0.0), bad(2), good(3, unique_id="")],
        [good(0), good(1, y=None), bad(2), good(3, unique_id=None)],
        [good(0), good(1, y=None), bad(2, headers=None), good(3, unique_id="")],
        [good(0), good(1, y=None), bad(2, headers=[]), good(3, unique_id="")],
        [
            good(0),
            good(1, y=None),
            bad(2, headers=[("trace", b"\x00"), ("trace", b"")]),
            good(3, unique_id=""),
        ],
        [good(0), good(1, y=None), bad(2, raw=b"{\xfe"), good(3, unique_id="")],
        [ROWS[1], ROWS[0], ROWS[2], ROWS[3]],
        ROWS[:3],
        [],
    ],
)
def test_every_difference_counts(other: list[dict[str, Any]]) -> None:
    assert checksum(table(other)) != checksum(table(ROWS))


def test_bytes_do_not_move_between_neighbours() -> None:
    sums = {
        checksum(pa.table({"a": a, "b": b}))
        for a, b in ([["xy", ""], ["", ""]], [["x", "y"], ["", ""]], [["x", ""], ["y", ""]])
    }
    assert len(sums) == 3


def test_what_lies_below_a_null_makes_no_difference() -> None:
    valid = pa.py_buffer(bytes([0b101]))
    below = [
        pa.Array.from_buffers(pa.float64(), 3, [valid, pa.array([1.0, x, 3.0]).buffers()[1]])
        for x in (2.0, 9.0)
    ]
    assert below[0].to_pylist() == below[1].to_pylist() == [1.0, None, 3.0]
    assert checksum(pa.table({"y": below[0]})) == checksum(pa.table({"y": below[1]}))


def test_names_and_types_count() -> None:
    numbers = pa.array([1, 2])
    sums = {
        checksum(pa.table({"a": numbers})),
        checksum(pa.table({"b": numbers})),
        checksum(pa.table({"a": numbers.cast(pa.timestamp("us"))})),
    }
    assert len(sums) == 3


def test_a_schema_is_named_by_columns_and_types() -> None:
    assert schema_name(SCHEMA) == schema_name(SCHEMA.with_metadata({"x": "y"}))
    names = {schema_name(s) for s in (SCHEMA, SCHEMA.remove(3), pa.schema(list(SCHEMA)[::-1]))}
    assert len(names) == 3
