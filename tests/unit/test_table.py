"""One row a moment of a series, whatever the order and the number of steps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.errors import ArtifactError
from flts_ray.ingest.segment import segment_schema
from flts_ray.ingest.table import (
    by_date,
    covariate_kinds,
    decode_rows,
    encode_rows,
    merge,
    table_rows,
)
from tests.segments import SCHEMA, bad, good

DAY = datetime(2024, 1, 1, tzinfo=UTC)


def table(*rows: dict[str, Any], partition: int = 0) -> pa.Table:
    return table_rows(pa.Table.from_pylist(list(rows), schema=SCHEMA), partition)


def test_bad_rows_stay_out_and_rows_without_a_value_stay_in() -> None:
    rows = table(good(1, y=None), bad(2), good(3), partition=5)
    assert rows.column_names == [
        "unique_id", "ds", "y", "site", "temp", "offset", "partition", "index"
    ]  # fmt: skip
    assert rows["y"].to_pylist() == [None, 3 / 7]
    assert rows["partition"].to_pylist() == [5, 5]


def test_dates_are_those_of_utc_before_1970_too() -> None:
    stamps = [
        DAY - timedelta(microseconds=1),
        DAY,
        DAY + timedelta(hours=23, minutes=59),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ]
    parts = dict(by_date(table(*(good(i, ds=ds) for i, ds in enumerate(stamps)))))
    assert {date: part["offset"].to_pylist() for date, part in parts.items()} == {
        "1969-12-31": [3], "2023-12-31": [0], "2024-01-01": [1, 2]
    }  # fmt: skip
    assert dict(by_date(table())) == {}


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        ((9, 0, 0), (8, 5, 7)),
        ((9, 1, 0), (9, 0, 7)),
        ((9, 1, 2), (9, 1, 1)),
    ],
)
def test_the_highest_offset_then_partition_then_index_stays(
    winner: tuple[int, int, int], loser: tuple[int, int, int]
) -> None:
    parts = [
        table(good(offset, index, unique_id="a", ds=DAY, y=y), partition=partition)
        for y, (offset, partition, index) in ((1.0, winner), (2.0, loser))
    ]
    for order in (parts, parts[::-1], [*parts, *parts]):
        assert merge(order)["y"].to_pylist() == [1.0]


def test_rows_are_sorted_by_bytes_of_the_name_then_time() -> None:
    names = ["b", "a", "é", "Z", "a"]
    rows = [good(i, unique_id=n, ds=DAY - timedelta(hours=i)) for i, n in enumerate(names)]
    merged = merge([table(*rows)])
    assert merged["unique_id"].to_pylist() == ["Z", "a", "a", "b", "é"]
    assert merged["offset"].to_pylist() == [3, 4, 1, 0, 2]


def test_covariates_of_other_segments_are_missing_not_lost() -> None:
    other = segment_schema({"wind": "past", "temp": "static"})
    second = pa.Table.from_pylist(
        [{**good(2, unique_id="b"), "wind": 1.5, "temp": "warm"}], schema=other
    )
    merged = merge([table_rows(second, 0), table(good(1, unique_id="a", temp=20.5))])
    rows = merged.select(["site", "temp", "wind"]).to_pylist()
    assert rows == [
        {"site": "north", "temp": "20.5", "wind": None},
        {"site": None, "temp": "warm", "wind": 1.5},
    ]
    assert covariate_kinds(merged) == {"site": "text", "temp": "text", "wind": "number"}


def test_text_that_is_always_a_number_counts_as_number() -> None:
    rows = table(good(1, site="3"), good(2, site=None), good(3, site="4.5"))
    assert covariate_kinds(rows) == {"site": "number", "temp": "number"}


samples = st.lists(
    st.fixed_dictionaries({
        "unique_id": st.sampled_from(["a", "b", "ab"]),
        "ds": st.integers(0, 3).map(lambda hours: DAY + timedelta(hours=hours)),
        "y": st.none() | st.floats(allow_nan=False, width=32),
        "index": st.integers(0, 2),
        "offset": st.integers(0, 4),
        "partition": st.integers(0, 2),
    }),
    unique_by=lambda row: (row["offset"], row["partition"], row["index"]),
    min_size=1,
)  # fmt: skip


@given(samples, st.data())
def test_merging_in_any_steps_gives_the_bytes_of_merging_once(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    parts = [table(good(**row), partition=row["partition"]) for row in map(_own, rows)]
    once = encode_rows(merge(parts))
    left = list(data.draw(st.permutations(parts)))
    state = merge([left.pop()])
    while left:
        taken = data.draw(st.integers(1, len(left)))
        # Some rows arrive again, as after a crash.
        state = merge([decode_rows(encode_rows(state), "state"), *left[:taken], parts[0]])
        left = left[taken:]
    assert encode_rows(merge([state, parts[0]])) == once
    best = {}
    for row in sorted(rows, key=lambda r: (r["offset"], r["partition"], r["index"])):
        best[row["unique_id"], row["ds"]] = row["y"]
    stored = decode_rows(once, "once").to_pylist()
    assert {(r["unique_id"], r["ds"]): r["y"] for r in stored} == best


def _own(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "temp": None}


def test_bytes_do_not_depend_on_how_columns_are_cut() -> None:
    rows = [good(i, temp=None if i % 3 else 1.0) for i in range(50)]
    whole = table(*rows)
    pieces = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 1), whole.slice(8)])
    assert encode_rows(pieces) == encode_rows(whole)
    stored = pq.read_table(pa.BufferReader(encode_rows(whole)))
    assert stored.equals(whole)


def test_damaged_bytes_are_refused() -> None:
    with pytest.raises(ArtifactError, match="place: this is no table file"):
        decode_rows(encode_rows(table(good(1)))[:-9], "place")
