from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.errors import ArtifactError, ConfigError
from flts_ray.ingest.checksum import schema_name
from flts_ray.ingest.segment import (
    Batch,
    SegmentKey,
    bad_rows,
    decode_info,
    decode_table,
    encode,
    good_rows,
    info_from_metadata,
    metadata_of,
    parse_key,
    read_info,
    read_table,
    segment_key,
    segment_schema,
)
from flts_ray.store import NotFound, Store
from tests.segments import EPOCH, SCHEMA, TOPIC, bad, batch, good, segment, stored

NAMES: dict[str, Any] = {"topic": TOPIC, "epoch": EPOCH, "partition": 3, "writer": "w1"}
LAST = 2**63 - 1
ZERO = datetime(1970, 1, 1, tzinfo=UTC)

values = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=5)


@st.composite
def messages(draw: st.DrawFn, offset: int) -> list[dict[str, Any]]:
    if draw(st.booleans()):
        headers = st.lists(st.tuples(texts, st.none() | st.binary(max_size=3)), max_size=3)
        return [bad(offset, raw=draw(st.binary(max_size=9)), headers=draw(headers), detail=None)]
    count = draw(st.integers(1, 3))
    return [
        good(offset, i, y=draw(values), unique_id=draw(texts), temp=draw(st.none() | values))
        for i in range(count)
    ]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    begin = draw(st.integers(0, LAST - 100))
    end = begin + draw(st.integers(1, 12))
    used = draw(st.sets(st.integers(begin, end - 1)))
    rows = [row for offset in sorted(used) for row in draw(messages(offset))]
    return Batch(begin, end, pa.Table.from_pylist(rows, schema=SCHEMA), draw(st.integers(0, 9999)))


def split(whole: Batch, cuts: list[int]) -> list[Batch]:
    edges = sorted({whole.begin, whole.end, *(c for c in cuts if whole.begin < c < whole.end)})
    parts = []
    for begin, end in pairwise(edges):
        rest = whole.after(begin)
        assert rest is not None
        count = sum(begin <= o < end for o in rest.table.column("offset").to_pylist())
        parts.append(Batch(begin, end, rest.table.slice(0, count), 0))
    return parts


@given(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    st.integers(0, 10**5),
    st.integers(0, LAST),
)
def test_a_key_can_be_read_back(topic: str, epoch: str, partition: int, begin: int) -> None:
    key = segment_key(topic, epoch, partition, begin)
    assert parse_key(key) == SegmentKey(topic, epoch, partition, begin)


@given(st.lists(st.integers(0, LAST)))
def test_keys_sort_by_offset(begins: list[int]) -> None:
    keys = [segment_key("t", "e", 0, begin) for begin in sorted(begins)]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    "key",
    [
        "raw/t/e/p=0/0.parquet",
        "raw/t/e/p=00/00000000000000000001.parquet",
        "raw/t/e/0/00000000000000000001.parquet",
        "raw/t/e/p=0/00000000000000000001.csv",
        "raw/t/e/p=0/0000000000000000000x.parquet",
        "raw/t/e/p=0/x/00000000000000000001.parquet",
        "table/t/e/p=0/00000000000000000001.parquet",
        "",
    ],
)
def test_foreign_keys_are_refused(key: str) -> None:
    with pytest.raises(ArtifactError, match="no segment"):
        parse_key(key)


def test_covariates_have_their_kind_and_their_own_names() -> None:
    schema = segment_schema({"a": "past", "b": "static", "c": "known_future"})
    assert [schema.field(n).type for n in "abc"] == [pa.float64(), pa.string(), pa.float64()]
    assert schema.names[5:9] == ["a", "b", "c", "error"]
    with pytest.raises(ConfigError, match=r"covariates\.raw"):
        segment_schema({"raw": "past"})


@given(batches(), st.integers(0, 5))
def test_what_is_encoded_can_be_read(whole: Batch, lost: int) -> None:
    data, info = encode([whole], whole.begin, whole.end, lost=lost, **NAMES)
    table = decode_table(data, "here")
    assert table.to_pylist() == whole.table.to_pylist()
    assert schema_name(table.schema) == schema_name(SCHEMA) == info.schema
    assert decode_info(data, "here") == info
    assert info_from_metadata(metadata_of(info), len(data)) == info
    assert (info.begin, info.end, info.lost) == (whole.begin, whole.end, lost)
    assert (info.rows, info.bad_rows) == (whole.rows, whole.bad_rows)
    assert good_rows(table).num_rows == whole.rows
    assert bad_rows(table).column("raw").null_count == 0
    assert bad_rows(table).num_rows == whole.bad_rows
    times = [(t - ZERO) // timedelta(microseconds=1) for t in good_rows(table)["ds"].to_pylist()]
    assert (info.min_us, info.max_us) == ((min(times), max(times)) if times else (None, None))


@given(batches(), st.lists(st.integers(0, LAST)), st.data())
def test_bytes_follow_the_content_not_its_cuts(
    whole: Batch, cuts: list[int], data: st.DataObject
) -> None:
    near = st.integers(whole.begin, whole.end)
    parts = split(whole, data.draw(st.lists(near)) + cuts)
    together = encode([whole], whole.begin, whole.end, **NAMES)
    assert encode(parts, whole.begin, whole.end, **NAMES) == together


def test_pages_follow_the_content_not_its_cuts() -> None:
    rows = [bad(i, raw=bytes(1000)) for i in range(4000)]
    whole = batch(0, 4000, rows)
    parts = split(whole, [7, 1500])
    assert encode(parts, 0, 4000, **NAMES)[0] == encode([whole], 0, 4000, **NAMES)[0]


@given(batches(), st.integers(-3, 15))
def test_after_drops_exactly_what_is_covered(whole: Batch, ahead: int) -> None:
    at = max(0, whole.begin + ahead)
    rest = whole.after(at)
    if at >= whole.end:
        assert rest is None
        return
    assert rest is not None
    assert (rest.begin, rest.end) == (max(at, whole.begin), whole.end)
    kept = [row for row in whole.table.to_pylist() if row["offset"] >= at]
    assert rest.table.to_pylist() == kept
    assert 0 <= rest.nbytes <= whole.nbytes
    if at <= whole.begin:
        assert rest is whole


def test_a_range_without_messages_is_a_segment() -> None:
    data, info = segment(5, 9, [], lost=4)
    assert (info.rows, info.bad_rows, info.lost, info.min_us) == (0, 0, 4, None)
    assert decode_table(data, "x").schema.names == SCHEMA.names


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([good(4)], "do not belong"),
        ([good(10)], "do not belong"),
        ([good(6), good(5)], "offset 5"),
        ([good(6), good(6)], "offset 6"),
        ([good(6, 1), good(6, 0)], "offset 6"),
    ],
)
def test_rows_out_of_range_or_order_are_not_stored(rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        segment(5, 10, rows)


def test_an_empty_range_is_not_stored() -> None:
    with pytest.raises(ArtifactError, match="empty"):
        segment(5, 5, [])


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    info = stored(store, 0, 10)
    table = read_table(store, info.key, ["unique_id", "y"])
    assert table.column_names == ["unique_id", "y"]
    assert table.num_rows == 10


def test_facts_come_from_the_footer_where_no_metadata_is_kept(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    info = stored(store, 0, 10)
    assert dict(store.head(info.key).metadata) == {}
    assert read_info(store, info.key) == info


def test_a_footer_larger_than_the_first_read(tmp_path: Path) -> None:
    schema = segment_schema({f"{i}{'x' * 200}": "past" for i in range(200)})
    empty = Batch(0, 1, schema.empty_table(), 0)
    data, info = encode([empty], 0, 1, **NAMES)
    assert int.from_bytes(data[-8:-4], "little") > 1 << 16
    store = Store.open(str(tmp_path))
    store.put(info.key, data)
    assert read_info(store, info.key) == info


def test_damaged_foreign_and_moved_objects_are_named(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    data, info = segment(0, 10)
    key = info.key
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1]}), sink)
    wrong = [b"", b"short", data[:-1], data[: len(data) // 2], sink.getvalue().to_pybytes()]
    for body in wrong:
        store.put(key, body)
        with pytest.raises(ArtifactError, match=rf"{key}.*restore"):
            read_info(store, key)
    for body in wrong[:4]:
        store.put(key, body)
        with pytest.raises(ArtifactError, match=rf"{key}.*restore"):
            read_table(store, key)
    other = segment_key(TOPIC, EPOCH, 0, 10)
    store.put(other, data)
    with pytest.raises(ArtifactError, match=rf"{other}.*{key}"):
        read_info(store, other)
    with pytest.raises(NotFound):
        read_info(store, segment_key(TOPIC, EPOCH, 0, 20))


@pytest.mark.parametrize("name", ["flts-begin", "flts-rows", "flts-checksum"])
def test_metadata_that_lacks_a_fact_is_refused(name: str) -> None:
    _, info = segment(0, 10)
    facts = metadata_of(info)
    assert info_from_metadata({**facts, "flts-min-us": "none"}, 1) is not None
    del facts[name]
    with pytest.raises(KeyError):
        info_from_metadata(facts, 1)
    with pytest.raises(ValueError, match="none"):
        info_from_metadata({**facts, "flts-checksum": "", "flts-rows": "none", name: "none"}, 1)


def test_metadata_fits_a_store(tmp_path: Path) -> None:
    _, info = encode(
        [batch(0, 10)], 0, 10, topic="t" * 200, epoch=EPOCH, partition=9999, writer="w" * 200
    )
    facts = metadata_of(info)
    assert sum(len(name) + len(value) for name, value in facts.items()) < 2048
    assert all(value and value.isascii() for value in facts.values())
    assert all(name == name.lower() and "_" not in name for name in facts)
