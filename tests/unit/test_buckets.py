"""Splitting by series: every row in one bucket, one bucket a series, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.errors import DataError
from flts_ray.prepare.buckets import BUCKET_BYTES, bucket_count, bucket_of, split_batches, unite
from tests.raw_tables import raw_table

ROWS = st.lists(st.sampled_from(["a", "b", "ü", "long name", "", "e/f"]), min_size=1, max_size=30)


def test_bucket_of_a_series_never_changes() -> None:
    assert [bucket_of(name, 16) for name in ("a", "b", "MT_001", "Köln")] == [15, 5, 1, 0]


@pytest.mark.parametrize(
    ("total", "wanted", "count"),
    [(0, None, 1), (BUCKET_BYTES, None, 1), (BUCKET_BYTES + 1, None, 2), (10**12, 3, 3)],
)
def test_bucket_count(total: int, wanted: int | None, count: int) -> None:
    assert bucket_count(total, wanted) == count


@given(st.lists(ROWS, max_size=5), st.integers(1, 5), st.sampled_from([1, 500, 10**9]))
def test_every_row_lands_once_in_the_bucket_of_its_series(
    batches: list[list[str]], buckets: int, spill_bytes: int
) -> None:
    tables = [pa.table({"unique_id": names, "row": range(len(names))}) for names in batches]
    parts = list(split_batches(tables, buckets, spill_bytes))
    for bucket, part in parts:
        assert {bucket_of(name, buckets) for name in part["unique_id"].to_pylist()} == {bucket}
    got = sorted(str(row) for _, part in parts for row in part.to_pylist())
    assert got == sorted(str(row) for table in tables for row in table.to_pylist())


def test_rows_are_let_go_before_the_next_batch_is_read() -> None:
    read = []

    def batches() -> Iterator[pa.Table]:
        for i in range(3):
            read.append(i)
            yield raw_table({"a": [1.0] * 10})

    parts = split_batches(batches(), 1, spill_bytes=1)
    next(parts)
    assert read == [0]


def test_an_empty_static_column_takes_the_kind_of_the_others() -> None:
    text = raw_table({"a": [1.0]}, region=pa.array(["x"]))
    empty = raw_table({"b": [1.0]}, region=pa.array([float("nan")]))
    number = raw_table({"c": [1.0]}, region=pa.array([2.0]))
    assert unite([empty, text], ["region"])["region"].to_pylist() == [None, "x"]
    assert len(unite([empty, number], ["region"])) == 2
    with pytest.raises(DataError, match="column region: text in some files"):
        unite([number, text], ["region"])


def test_columns_of_unlike_files_are_united() -> None:
    tables = [raw_table({"a": [1.0]}, k=pa.array([None])), raw_table({"a": [1.0]}, k=pa.array([2]))]
    ((_, part),) = split_batches(tables, 1)
    assert part["k"].to_pylist() == [None, 2]
