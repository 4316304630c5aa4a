from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flts_ray.errors import ArtifactError
from flts_ray.ingest.checksum import checksum
from flts_ray.ingest.segment import (
    SegmentInfo,
    count_bad,
    decode_table,
    metadata_of,
    segment_key,
    time_span,
)
from flts_ray.ingest.verify import Checked, VerifyReport, verify, verify_store
from flts_ray.store import NotFound, Store
from tests.segments import EPOCH, SCHEMA, TOPIC, Racing, bad, good, segment, stored

Held = dict[str, tuple[bytes, SegmentInfo]]


def held(*ranges: tuple[int, int], partition: int = 0) -> Held:
    made = (segment(begin, end, partition=partition) for begin, end in ranges)
    return {info.key: (data, info) for data, info in made}


def checked(objects: Held, committed: Mapping[int, int] | None = None) -> VerifyReport:
    return verify([(key, info) for key, (_, info) in objects.items()], committed or {})


def checked_deep(objects: Held) -> VerifyReport:
    listing = [(key, info) for key, (_, info) in objects.items()]
    return verify(listing, {}, lambda key: objects[key][0])


def codes(report: VerifyReport) -> list[str]:
    return [problem.code for problem in report.problems]


def forged(content: list[dict[str, Any]], **facts: Any) -> Held:
    """A segment of [0, 10) whose bytes and facts agree with each other but not with the rules."""
    table = pa.Table.from_pylist(content, schema=SCHEMA)
    _, info = segment(0, 10)
    lies = {
        "rows": table.num_rows - count_bad(table),
        "bad_rows": count_bad(table),
        "checksum": checksum(table),
        **dict(zip(("min_us", "max_us"), time_span(table), strict=True)),
        **facts,
    }
    data, info = written(table, replace(info, **lies))
    return {info.key: (data, info)}


def written(table: pa.Table, info: SegmentInfo) -> tuple[bytes, SegmentInfo]:
    names = metadata_of(info).items()
    footer = {name.replace("-", "_").replace("flts_", "flts."): text for name, text in names}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(footer)
    data = sink.getvalue().to_pybytes()
    return data, replace(info, size=len(data))


def test_a_whole_chain_has_no_problem() -> None:
    objects = held((0, 10), (10, 11), (11, 40)) | held((0, 6), partition=12)
    for report in (checked(objects, {0: 40, 12: 6}), checked_deep(objects)):
        assert report.problems == () and report.ok
        assert list(report.partitions) == [0, 12]
        assert (report.segments, report.rows, report.bad_rows, report.lost) == (4, 36, 10, 0)
    size = sum(info.size for _, info in objects.values() if info.partition == 12)
    assert checked(objects, {12: 5}).partitions[12] == Checked(1, 6, 4, 2, 0, size, 5, None)
    assert checked_deep(objects).partitions[12].unused == 0


def test_nothing_stored_and_nothing_committed_is_whole() -> None:
    assert checked({}, {0: 0}) == VerifyReport((), {}, False)


def test_the_order_of_the_listing_makes_no_difference() -> None:
    objects = held((0, 5), (5, 9), (9, 12))
    turned = dict(reversed(objects.items()))
    assert checked(turned) == checked(objects)


def test_a_gap_and_what_lies_beyond_it() -> None:
    report = checked(held((0, 5), (7, 9), (9, 12)), {0: 5})
    assert codes(report) == ["gap", "beyond_gap", "beyond_gap"]
    gap = report.problems[0]
    assert (gap.begin, gap.end, gap.key) == (5, 7, segment_key(TOPIC, EPOCH, 0, 7))
    assert [p.begin for p in report.problems[1:]] == [7, 9]
    assert report.partitions[0].frontier == 5


def test_a_chain_that_does_not_begin_at_0() -> None:
    report = checked(held((3, 5), (5, 6)), {0: 0})
    assert codes(report) == ["gap", "beyond_gap", "beyond_gap"]
    assert (report.problems[0].begin, report.problems[0].end) == (0, 3)
    assert report.partitions[0].frontier == 0


def test_a_gap_in_one_partition_is_none_in_another() -> None:
    report = checked(held((0, 5), (7, 9)) | held((0, 5), (5, 9), partition=1))
    assert {problem.partition for problem in report.problems} == {0}
    assert report.partitions[1].frontier == 9


@pytest.mark.parametrize(
    ("ranges", "where"),
    [
        ([(0, 5), (4, 9)], (4, 5)),
        ([(0, 9), (2, 5), (9, 10)], (2, 5)),
    ],
)
def test_an_offset_in_two_segments(ranges: list[tuple[int, int]], where: tuple[int, int]) -> None:
    report = checked(held(*ranges))
    assert codes(report) == ["overlap"]
    assert (report.problems[0].begin, report.problems[0].end) == where


def test_a_commit_beyond_the_chain() -> None:
    objects = held((0, 5)) | held((0, 5), (6, 9), partition=1)
    report = checked(objects, {0: 6, 1: 9, 2: 1, 3: 0})
    beyond = [p for p in report.problems if p.code == "commit_beyond"]
    assert [(p.partition, p.begin, p.end) for p in beyond] == [(0, 5, 6), (1, 5, 9), (2, 0, 1)]
    assert codes(checked(objects, {0: 5, 1: 5})) == ["gap", "beyond_gap"]


def test_a_foreign_object() -> None:
    objects = held((0, 5))
    report = verify(
        [("raw/load/e/notes.txt", ArtifactError("x")), *((k, i) for k, (_, i) in objects.items())],
        {},
    )
    assert codes(report) == ["foreign"]
    assert report.partitions[0].frontier == 5


def test_an_unreadable_segment_is_a_problem_and_a_gap() -> None:
    listing: list[tuple[str, SegmentInfo | ArtifactError]] = [
        (key, info) for key, (_, info) in held((0, 5), (5, 7), (7, 9)).items()
    ]
    listing[1] = (listing[1][0], ArtifactError("damaged"))
    assert codes(verify(listing, {})) == ["unreadable", "gap", "beyond_gap"]


def test_a_segment_under_another_key() -> None:
    (data, info) = next(iter(held((0, 5)).values()))
    assert codes(checked({segment_key(TOPIC, EPOCH, 0, 1): (data, info)})) == ["misplaced"]


def test_forged_segments_without_a_fault_have_no_problem() -> None:
    rows = [good(0), good(0, 1), bad(1), good(7)]
    report = checked_deep(forged(rows, lost=2))
    assert report.problems == ()
    assert report.partitions[0].unused == 5


@pytest.mark.parametrize(
    ("code", "rows", "facts"),
    [
        ("rows", [good(0), bad(1)], {"rows": 2}),
        ("rows", [good(0), bad(1)], {"bad_rows": 0}),
        ("rows", [good(0), bad(1)], {"lost": 9}),
        ("checksum", [good(0), bad(1)], {"checksum": "0" * 64}),
        ("schema", [good(0), bad(1)], {"schema": "0" * 16}),
        ("times", [good(0), good(1)], {"min_us": 0}),
        ("times", [bad(0)], {"max_us": 0}),
        ("outside", [good(10)], {}),
        ("order", [good(1), good(0)], {}),
        ("order", [good(0, 1), good(0, 0)], {}),
        ("repeated", [good(0), good(0)], {}),
        ("repeated", [bad(0), bad(0)], {}),
        ("repeated", [bad(0), good(0, 1)], {}),
    ],
)
def test_bytes_that_break_one_rule(
    code: str, rows: list[dict[str, Any]], facts: dict[str, Any]
) -> None:
    objects = forged(rows, **facts)
    report = checked_deep(objects)
    assert codes(report) == [code]
    assert report.problems[0].key == next(iter(objects))
    assert (report.problems[0].begin, report.problems[0].end) == (0, 10)
    assert checked(objects).ok


def test_a_repetition_that_is_not_beside_its_first() -> None:
    assert codes(checked_deep(forged([good(0), good(1), good(0)]))) == ["order", "repeated"]


def test_metadata_that_is_not_the_footers() -> None:
    objects = {key: (data, replace(i, writer="x")) for key, (data, i) in held((0, 5)).items()}
    assert codes(checked_deep(objects)) == ["footer"]


@pytest.mark.parametrize("error", [NotFound("gone"), None])
def test_bytes_that_cannot_be_read(error: NotFound | None) -> None:
    objects = held((0, 5), (5, 9))
    first = next(iter(objects))

    def read(key: str) -> bytes:
        if key != first:
            return objects[key][0]
        if error is None:
            return objects[key][0][:-20]
        raise error

    report = verify([(key, info) for key, (_, info) in objects.items()], {}, read)
    assert codes(report) == ["unreadable"]
    assert report.problems[0].key == first


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def test_a_store_is_listed_and_read(store: Store) -> None:
    stored(store, 0, 5)
    stored(store, 5, 9)
    stored(store, 0, 3, partition=1)
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    shallow = verify_store(store, TOPIC, EPOCH, {0: 9}, progress=progress)
    assert shallow.ok and not shallow.deep and shallow.rows + shallow.bad_rows == 12
    assert told == []
    deep = verify_store(store, TOPIC, EPOCH, {0: 9}, deep=True, progress=progress)
    assert deep.ok and deep.deep and deep.partitions[0].frontier == 9
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert verify_store(store, TOPIC, "another", {}).segments == 0


def _cut(store: Store, info: SegmentInfo) -> None:
    store.put(info.key, store.get(info.key)[:-5])


def _lose(store: Store, info: SegmentInfo) -> None:
    store.delete(info.key)


def _flip(store: Store, info: SegmentInfo) -> None:
    table = decode_table(store.get(info.key), "")
    changed = pa.array([1e9, *table.column("y").to_pylist()[1:]])
    store.put(info.key, written(table.set_column(4, SCHEMA.field("y"), changed), info)[0])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_cut, ["unreadable", "gap", "beyond_gap"]),
        (_lose, ["gap", "beyond_gap"]),
        (_flip, ["checksum"]),
    ],
)
def test_damage_in_a_store_is_found(
    store: Store, damage: Callable[[Store, SegmentInfo], None], expected: list[str]
) -> None:
    stored(store, 0, 5)
    middle = stored(store, 5, 9)
    stored(store, 9, 12)
    damage(store, middle)
    assert codes(verify_store(store, TOPIC, EPOCH, {}, deep=True)) == expected


def test_foreign_objects_in_a_store_are_problems(store: Store) -> None:
    stored(store, 0, 5)
    store.put(f"raw/{TOPIC}/{EPOCH}/p=0/notes.txt", b"")
    assert codes(verify_store(store, TOPIC, EPOCH, {}, deep=True)) == ["foreign"]


def test_a_segment_that_the_listing_missed_is_no_gap(store: Store) -> None:
    for begin, end in ((0, 5), (5, 9), (9, 12), (12, 20)):
        stored(store, begin, end)
    report = verify_store(Racing(store.root, 0, 9), TOPIC, EPOCH, {0: 20}, deep=True)
    assert report.ok and report.partitions[0].frontier == 20 and report.segments == 4
    store.delete(segment_key(TOPIC, EPOCH, 0, 9))
    again = verify_store(Racing(store.root, 5), TOPIC, EPOCH, {})
    assert codes(again) == ["gap", "beyond_gap"] and again.segments == 3
