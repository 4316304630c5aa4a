"""Compaction loses no row, repeats none, and is the same however it came about."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.errors import ArtifactError, ConfigError, Conflict, DataError
from flts_ray.ingest.compact import compact
from flts_ray.ingest.compact_steps import grouped_dates, grouped_segments
from flts_ray.ingest.faults import Faults
from flts_ray.ingest.segment import SegmentInfo, metadata_of
from flts_ray.ingest.sweep import sweep
from flts_ray.ingest.table import decode_rows
from flts_ray.prepare.steps import Report, Step
from flts_ray.sources.table_log import (
    LogEntry,
    append_entry,
    current_epoch,
    entries_upto,
    entry_key,
    newest_entry,
    read_entry,
    table_folder,
)
from flts_ray.store import Exists, Store
from tests import streamed_load
from tests.segments import EPOCH, START, TOPIC, Racing, bad, good, segment
from tests.streamed_load import ROLES, load_rows, store_rows

FOLDER = table_folder(TOPIC, EPOCH)
LATER = datetime.now(UTC) + timedelta(days=2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def add(
    store: Store,
    begin: int,
    end: int,
    rows: list[dict[str, Any]] | None = None,
    partition: int = 0,
    lost: int = 0,
) -> SegmentInfo:
    data, info = segment(begin, end, rows, partition=partition, lost=lost)
    store.put_new(info.key, data, metadata_of(info))
    return info


def run(store: Store, **other: Any) -> LogEntry:
    return compact(store, TOPIC, EPOCH, **other)


def files_of(store: Store, entry: LogEntry) -> dict[str, bytes]:
    return {file.path: store.get(f"{FOLDER}/{file.path}") for file in entry.files}


def rows_of(store: Store, entry: LogEntry) -> list[dict[str, Any]]:
    tables = [decode_rows(data, path) for path, data in files_of(store, entry).items()]
    return [row for table in tables for row in table.to_pylist()]


def day(number: int) -> datetime:
    return START + timedelta(days=number)


def test_the_entry_says_what_the_table_holds(store: Store) -> None:
    first = add(store, 0, 3, [good(0, unique_id="a", ds=day(0)), bad(1), good(2, ds=day(1))])
    second = add(store, 0, 7, [good(6, unique_id="b", ds=day(0))], partition=3, lost=2)
    entry = run(store)
    assert (entry.number, entry.previous, entry.topic, entry.epoch) == (1, None, TOPIC, EPOCH)
    assert entry.ranges == {0: (0, 3), 3: (0, 7)}
    assert entry.lost == {3: 2}
    assert [(s.key, s.begin, s.end, s.rows, s.bad_rows, s.lost) for s in entry.segments] == [
        (first.key, 0, 3, 2, 1, 0), (second.key, 0, 7, 1, 0, 2)
    ]  # fmt: skip
    assert [(file.date, file.rows) for file in entry.files] == [
        ("2024-01-01", 2), ("2024-01-02", 1)
    ]  # fmt: skip
    for file in entry.files:
        assert file.path == f"date={file.date}/{file.sha256[:32]}.parquet"
        assert file.size == len(store.get(f"{FOLDER}/{file.path}"))
    assert newest_entry(store, TOPIC, EPOCH) == entry == read_entry(store, TOPIC, EPOCH, 1)
    assert not store.list("spill")


def test_running_again_changes_nothing(store: Store) -> None:
    add(store, 0, 5)
    entry = run(store)
    before = {item.key: store.get(item.key) for item in store.list()}
    assert run(store) == entry
    assert {item.key: store.get(item.key) for item in store.list()} == before


def test_late_rows_touch_the_file_of_their_date_alone(store: Store) -> None:
    add(store, 0, 2, [good(0, unique_id="a", ds=day(0)), good(1, unique_id="a", ds=day(1))])
    first = run(store)
    add(store, 2, 3, [good(2, unique_id="a", ds=day(0) + timedelta(hours=1))])
    second = run(store)
    assert second.previous == first.sha256
    assert second.files[1] == first.files[1]
    assert (second.files[0].date, second.files[0].rows) == ("2024-01-01", 2)
    assert len(files_of(store, first)) == 2  # who reads the first entry still can


def test_a_later_value_of_the_same_moment_replaces_the_earlier(store: Store) -> None:
    add(store, 0, 1, [good(0, unique_id="a", ds=day(0), y=1.0)])
    run(store)
    add(store, 1, 2, [good(1, unique_id="a", ds=day(0), y=2.0)])
    add(store, 0, 1, [good(0, unique_id="a", ds=day(0), y=3.0)], partition=1)
    assert [row["y"] for row in rows_of(store, run(store))] == [2.0]


def test_segments_without_new_rows_move_the_ranges_only(store: Store) -> None:
    add(store, 0, 2, [good(1, unique_id="a", ds=day(0), y=1.0)])
    first = run(store)
    add(store, 0, 1, [good(0, unique_id="a", ds=day(0), y=9.0)], partition=1)
    add(store, 2, 4, [bad(2)])
    second = run(store)
    assert (second.files, second.number) == (first.files, 2)
    assert second.ranges == {0: (0, 4), 1: (0, 1)}


def test_bad_messages_alone_make_an_entry_without_files(store: Store) -> None:
    add(store, 0, 2, [bad(0), bad(1)])
    assert run(store).files == ()


def test_nothing_stored_is_an_error_with_a_remedy(store: Store) -> None:
    with pytest.raises(DataError, match="flts ingest run"):
        run(store)


@pytest.mark.parametrize("begin", [4, 2])
def test_gaps_and_overlaps_are_refused(store: Store, begin: int) -> None:
    add(store, 0, 3)
    add(store, begin, 9, [good(8)])
    with pytest.raises(ArtifactError, match=f"begins at offset {begin}"):
        run(store)
    assert newest_entry(store, TOPIC, EPOCH) is None


def test_a_chain_has_to_begin_at_the_first_offset(store: Store) -> None:
    add(store, 1, 3)
    with pytest.raises(ArtifactError, match="begins at offset 1"):
        run(store)


def test_a_damaged_segment_never_enters_the_table(store: Store) -> None:
    info = add(store, 0, 3)
    data, other = segment(0, 3, [good(i, y=99.0) for i in range(3)])
    store.put(info.key, data.replace(other.checksum.encode(), info.checksum.encode()))
    with pytest.raises(ArtifactError, match="checksum differs"):
        run(store)


def test_a_changed_table_file_is_refused(store: Store) -> None:
    add(store, 0, 1, [good(0, ds=day(0))])
    entry = run(store)
    store.put(f"{FOLDER}/{entry.files[0].path}", b"other")
    add(store, 1, 2, [good(1, ds=day(0))])
    with pytest.raises(ArtifactError, match="changed since it was written"):
        run(store)


class Rival:
    """Another compactor that is done while the first is about to write its entry."""

    def __init__(self, store: Store, at: int) -> None:
        self._store = store
        self._left = at

    def at(self, point: str) -> None:
        assert point == "compacting"
        self._left -= 1
        if self._left == 0:
            add(self._store, 5, 8)
            run(self._store)


@pytest.mark.parametrize("at", [1, 2])
def test_the_loser_of_a_race_looks_again(store: Store, at: int) -> None:
    add(store, 0, 5)
    rival: Any = Rival(store, at)
    entry = run(store, faults=rival)
    assert entry == newest_entry(store, TOPIC, EPOCH)
    assert (entry.number, entry.ranges) == (1, {0: (0, 8)})
    offsets = sorted(row["offset"] for row in rows_of(store, entry))
    assert offsets == [i for i in range(8) if i % 5]


def test_the_same_entry_by_two_is_one(store: Store) -> None:
    add(store, 0, 5)
    entry = run(store)
    assert append_entry(store, entry)
    assert len(list(store.list(f"{FOLDER}/log"))) == 1


class Killed(BaseException):
    pass


class Dying(Faults):
    def __init__(self, passing: int) -> None:
        super().__init__()
        self._passing = passing

    def at(self, point: str) -> None:
        self._passing -= 1
        if self._passing == 0:
            raise Killed


def test_columns_of_a_file_do_not_depend_on_what_was_compacted_together(
    store: Store, tmp_path: Path
) -> None:
    other = Store.open(str(tmp_path / "other"))
    without = {name: role for name, role in ROLES.items() if name != "temperature"}
    parts = [(load_rows(0, 30), without), (load_rows(30, 30), ROLES), (load_rows(40, 40), without)]
    ends: dict[int, int] = {}
    for rows, roles in parts:
        for one in (store, other):
            after = store_rows(one, rows, ends, roles)
        ends = after
        entry = compact(store, streamed_load.TOPIC, streamed_load.EPOCH)
    whole = compact(other, streamed_load.TOPIC, streamed_load.EPOCH)
    assert entry.files == whole.files
    assert ["temperature" in file.columns for file in whole.files] == [False, True, True, False]


@pytest.mark.parametrize("passing", [1, 2])
def test_a_compactor_that_dies_leaves_the_table_as_it_was(store: Store, passing: int) -> None:
    add(store, 0, 5)
    first = run(store)
    add(store, 5, 9)
    with pytest.raises(Killed):
        run(store, faults=Dying(passing))
    assert newest_entry(store, TOPIC, EPOCH) == first
    again = run(store)
    assert again.ranges == {0: (0, 9)}
    offsets = sorted(row["offset"] for row in rows_of(store, again))
    assert offsets == [i for i in range(9) if i % 5]


rows_strategy = st.lists(
    st.tuples(
        st.integers(0, 2),  # partition
        st.sampled_from(["a", "b"]),
        st.integers(0, 5),  # moment, two a day
        st.booleans(),  # bad message
    ),
    min_size=1,
    max_size=25,
)


def _segments(
    messages: list[tuple[int, str, int, bool]], cuts: set[int]
) -> Iterator[list[tuple[int, int, int, list[dict[str, Any]]]]]:
    """Per step: (partition, begin, end, rows) of the segments that were stored by then."""
    ends: dict[int, int] = {}
    waiting: dict[int, list[dict[str, Any]]] = {}
    for number, (partition, name, moment, is_bad) in enumerate(messages):
        rows = waiting.setdefault(partition, [])
        offset = ends.get(partition, 0) + len(rows)
        ds = day(0) + timedelta(hours=12 * moment)
        rows.append(bad(offset) if is_bad else good(offset, unique_id=name, ds=ds, y=float(number)))
        if number in cuts or number == len(messages) - 1:
            yield [(p, ends.get(p, 0), ends.get(p, 0) + len(r), r) for p, r in waiting.items()]
            ends |= {p: ends.get(p, 0) + len(r) for p, r in waiting.items()}
            waiting = {}


@settings(max_examples=20, deadline=None)
@given(rows_strategy, st.sets(st.integers(0, 24)), st.sets(st.integers(0, 24)))
def test_any_number_of_steps_gives_the_files_of_one(
    messages: list[tuple[int, str, int, bool]], cuts: set[int], crashes: set[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        steps, once = (Store.open(os.path.join(folder, name)) for name in ("steps", "once"))
        for number, made in enumerate(_segments(messages, cuts)):
            for partition, begin, end, rows in made:
                for store in (steps, once):
                    add(store, begin, end, rows, partition)
            if number in crashes:
                with pytest.raises(Killed):
                    run(steps, faults=Dying(2))
            if number % 3 != 1:
                run(steps)
        entry, whole = run(steps), run(once)
        assert files_of(steps, entry) == files_of(once, whole)
        assert entry.files == whole.files
        assert (entry.ranges, entry.lost) == (whole.ranges, whole.lost)
        held = [s for one in entries_upto(steps, entry) for s in one.segments]
        for partition, limits in entry.ranges.items():
            chain = sorted((s.begin, s.end) for s in held if s.partition == partition)
            assert [begin for begin, _ in chain] == [0, *(end for _, end in chain[:-1])]
            assert chain[-1][1] == limits[1]


def test_the_order_of_workers_and_small_steps_make_no_difference(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store.open(str(tmp_path / "other"))
    for one in (store, other):
        for begin in range(0, 40, 4):
            add(one, begin, begin + 4, [good(i, ds=day(i % 7)) for i in range(begin, begin + 4)])
    whole = run(other)
    monkeypatch.setattr("flts_ray.ingest.compact_steps.STEP_ROWS", 6)
    monkeypatch.setattr("flts_ray.ingest.compact_steps.SPILL_BYTES", 1)

    def backwards(step: Step, count: int) -> Iterator[Report]:
        assert count > 1
        return map(step, reversed(range(count)))

    assert run(store, run=backwards).files == whole.files


def test_groups_hold_every_item_in_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [segment(i * 5, i * 5 + 5)[1] for i in range(7)]
    monkeypatch.setattr("flts_ray.ingest.compact_steps.STEP_ROWS", 12)
    groups = grouped_segments(infos)
    assert [len(group) for group in groups] == [2, 2, 2, 1]
    assert [info for group in groups for info in group] == infos
    assert not grouped_segments(())
    assert not grouped_dates(())


def test_an_altered_entry_is_noticed(store: Store) -> None:
    add(store, 0, 5)
    run(store)
    add(store, 5, 9)
    second = run(store)
    key = entry_key(TOPIC, EPOCH, 1)
    store.put(key, store.get(key).replace(b'"rows": 4', b'"rows": 5'))
    with pytest.raises(ArtifactError, match="altered since entry 2"):
        list(entries_upto(store, second))


def test_damaged_entries_are_no_traceback(store: Store) -> None:
    add(store, 0, 5)
    run(store)
    store.put(entry_key(TOPIC, EPOCH, 1), b'{"number": 1}')
    with pytest.raises(ArtifactError, match="no readable entry"):
        run(store)


def test_the_last_life_of_a_topic_is_the_current_one(store: Store) -> None:
    assert current_epoch(store, TOPIC) is None
    for epoch in ("ffffffffffffffff", "0000000000000000", "ffffffffffffffff"):
        entry = LogEntry(1, None, TOPIC, epoch, {}, {}, (), (), "1")
        assert append_entry(store, entry)
    assert current_epoch(store, TOPIC) == "0000000000000000"
    store.put(f"table/{TOPIC}/epochs/{3:020d}.json", b'{"epoch": "1111111111111111"}')
    assert current_epoch(store, TOPIC) == "0000000000000000"  # it has no table yet


def aged(store: Store) -> None:
    """Everything was written three days before LATER."""
    stamp = (LATER - timedelta(days=3)).timestamp()
    for item in store.list():
        os.utime(Path(store.root, item.key), (stamp, stamp))


def test_sweeping_removes_what_no_kept_entry_names(store: Store) -> None:
    entries = []
    for begin in range(4):
        add(store, begin, begin + 1, [good(begin, unique_id="a", ds=day(0))])
        entries.append(run(store))
    with pytest.raises(Killed):
        add(store, 4, 5, [good(4, unique_id="z", ds=day(0))])
        run(store, faults=Dying(2))
    store.put(f"spill/table/{TOPIC}/{EPOCH}/abc/0.arrows", b"left")
    assert sweep(store, TOPIC, EPOCH, LATER - timedelta(days=1, hours=12), keep=2) == []
    aged(store)
    gone = sweep(store, TOPIC, EPOCH, LATER, keep=2)
    assert len(gone) == 4  # two old states, one never named, one spilled piece
    assert [len(files_of(store, entry)) for entry in entries[2:]] == [1, 1]
    assert not store.exists(f"{FOLDER}/{entries[1].files[0].path}")
    assert len(store.list(f"{FOLDER}/log")) == 4
    assert run(store).ranges == {0: (0, 5)}
    assert sweep(store, TOPIC, EPOCH, LATER, keep=2) == [f"{FOLDER}/{entries[2].files[0].path}"]


def test_an_entry_that_was_replaced_just_now_is_kept(store: Store) -> None:
    for begin in range(2):
        add(store, begin, begin + 1, [good(begin, unique_id="a", ds=day(0))])
        run(store)
    aged(store)
    recent = LATER.timestamp()
    os.utime(Path(store.root, entry_key(TOPIC, EPOCH, 2)), (recent, recent))
    assert sweep(store, TOPIC, EPOCH, LATER, keep=1) == []
    assert len(sweep(store, TOPIC, EPOCH, LATER + timedelta(days=2), keep=1)) == 1


def test_files_about_to_be_named_again_are_young(store: Store) -> None:
    add(store, 0, 1, [good(0, unique_id="a", ds=day(0))])
    with pytest.raises(Killed):
        run(store, faults=Dying(2))
    aged(store)

    class Sweeping(Dying):
        def at(self, point: str) -> None:
            self._passing -= 1
            if self._passing == 0:
                assert sweep(store, TOPIC, EPOCH, datetime.now(UTC)) == []

    assert len(files_of(store, run(store, faults=Sweeping(2)))) == 1


def test_the_newest_snapshot_always_stays(store: Store) -> None:
    with pytest.raises(ConfigError, match="at least the newest"):
        sweep(store, TOPIC, EPOCH, LATER, keep=0)


def test_a_segment_that_the_listing_missed_is_compacted_too(store: Store) -> None:
    for begin in range(0, 12, 3):
        add(store, begin, begin + 3)
    entry = run(Racing(store.root, 3, 6))
    assert entry.ranges == {0: (0, 12)}
    assert [held.begin for held in entry.segments] == [0, 3, 6, 9]


def test_a_life_of_the_topic_gets_the_next_number_whatever_was_removed(store: Store) -> None:
    store.put(f"table/{TOPIC}/epochs/{7:020d}.json", b'{"epoch": "1111111111111111"}')
    assert append_entry(store, LogEntry(1, None, TOPIC, EPOCH, {}, {}, (), (), "1"))
    assert store.exists(f"table/{TOPIC}/epochs/{8:020d}.json")
    assert current_epoch(store, TOPIC) == EPOCH


def test_a_life_of_the_topic_that_cannot_be_registered_is_no_endless_loop(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "put_new", lambda key, *_: Exists(key))
    with pytest.raises(Conflict, match="20 times"):
        append_entry(store, LogEntry(1, None, TOPIC, EPOCH, {}, {}, (), (), "1"))


def test_a_foreign_file_among_the_lives_of_a_topic_is_named(store: Store) -> None:
    store.put(f"table/{TOPIC}/epochs/notes.json", b'{"epoch": "1111111111111111"}')
    with pytest.raises(ArtifactError, match=r"notes\.json.*move it away"):
        append_entry(store, LogEntry(1, None, TOPIC, EPOCH, {}, {}, (), (), "1"))
