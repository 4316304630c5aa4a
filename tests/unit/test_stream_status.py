from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flts_ray.config import parse_config
from flts_ray.ingest.restarts import note_failure, note_start, starts_key
from flts_ray.ingest.worker_status import COUNTS, PartitionStatus, WorkerStatus, status_key
from flts_ray.jobs import stream_status as looks
from flts_ray.jobs.stream_status import StreamStatus, stream_status
from flts_ray.report_stream import duration_text, partitions_table, status_rows, worries
from flts_ray.store import Store
from tests.segments import EPOCH, segment, stored

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
CONFIG = parse_config({"name": "demo", "data": {"snapshot": "latest"}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def say(
    store: Store, index: int, ends: dict[int, int], age_s: float = 1.0, epoch: str = EPOCH,
    halted: str = "", waits: str = "", ended: bool = False,
) -> None:  # fmt: skip
    """A worker leaves its status; it thinks that nothing is stored."""
    parts = {
        p: PartitionStatus(end, 0, None, end, end, 0, 0, False, halted, waits)
        for p, end in ends.items()
    }
    at = (NOW - timedelta(seconds=age_s)).isoformat()
    status = WorkerStatus(
        "w", "load", epoch, index, 2, parts, dict.fromkeys(COUNTS, 0), False, False, at, at, ended
    )
    store.put(status_key("load", epoch, index), status.as_json())


def look(store: Store) -> StreamStatus:
    found = stream_status(CONFIG, store, NOW)
    assert found is not None
    return found


def test_nothing_was_ingested(store: Store) -> None:
    assert stream_status(CONFIG, store, NOW) is None
    assert status_rows(None) == []


def test_the_store_says_what_is_durable_and_workers_how_long_the_log_is(store: Store) -> None:
    stored(store, 0, 10)
    stored(store, 10, 20)
    stored(store, 0, 5, partition=1)
    say(store, 0, {0: 25})
    say(store, 1, {1: 5, 3: 7})
    found = look(store)
    lines = [
        (p.partition, p.segments, p.frontier, p.lag, p.rows, p.dead_letters)
        for p in found.partitions
    ]
    assert lines == [(0, 2, 20, 5, 16, 4), (1, 1, 5, 0, 4, 1), (3, 0, 0, 7, 0, 0)]
    assert (found.epoch, found.lag, found.table) == (EPOCH, 12, None)
    assert worries(found) == []
    assert status_rows(found)[0][1].plain == (
        "load: 3 partition(s), 3 segments, lag 12, 5 dead letters"
    )
    assert partitions_table(found).row_count == 3


def test_an_old_status_is_said_to_be_old(store: Store) -> None:
    stored(store, 0, 10)
    say(store, 0, {0: 10}, age_s=CONFIG.ingest.status_s)
    assert worries(look(store)) == []
    say(store, 1, {0: 10}, age_s=720)
    found = look(store)
    assert [(one.index, one.of, one.age_s, one.old) for one in found.workers] == [
        (0, 2, 5.0, False), (1, 2, 720.0, True),
    ]  # fmt: skip
    assert worries(found)[0].startswith("the status of worker 1 is 12 min old")


def test_without_a_status_nobody_knows_the_lag(store: Store) -> None:
    stored(store, 0, 10)
    found = look(store)
    assert (found.lag, found.partitions[0].frontier) == (None, 10)
    assert "lag is not known" in worries(found)[0]


def test_of_a_topic_that_was_made_again_the_life_at_work_is_shown(store: Store) -> None:
    stored(store, 0, 10)
    say(store, 0, {0: 10}, age_s=3600)
    say(store, 0, {0: 3}, epoch="f" * 16)
    found = look(store)
    assert (found.epoch, found.lag) == ("f" * 16, 3)


def test_a_worker_that_ended_is_not_missed(store: Store) -> None:
    say(store, 0, {0: 5}, age_s=700.0, ended=True)
    found = look(store)
    assert [one.old for one in found.workers] == [False]
    assert worries(found) == []


def test_what_a_partition_waits_for_is_told(store: Store) -> None:
    say(store, 0, {0: 5}, waits="s3://claims: the object store cannot be used")
    assert worries(look(store)) == [
        "partition 0 waits: s3://claims: the object store cannot be used"
    ]


def test_restarts_and_halts_are_told(store: Store) -> None:
    key = starts_key("load", "demo", 1)
    note_start(store, key, NOW.timestamp() - 30)
    assert stream_status(CONFIG, store, NOW) is None
    note_start(store, key, NOW.timestamp() - 20)
    assert "started 2 times in the last 10 min: its process was killed" in worries(look(store))[0]
    note_failure(store, key, "no broker")
    say(store, 0, {0: 0}, halted="a gap")
    told = worries(look(store))
    assert told == [
        "demo-1 was started 2 times in the last 10 min: no broker",
        "partition 0 halted: a gap",
    ]


def test_a_damaged_segment_leaves_question_marks(store: Store) -> None:
    stored(store, 0, 10)
    _, info = segment(10, 20)
    store.put(info.key, b"not Parquet")
    line = look(store).partitions[0]
    assert (line.segments, line.frontier, line.rows) == (2, None, None)
    store.put("raw/load/notes.txt", b"")
    store.put(status_key("load", EPOCH, 0), b"{")
    assert look(store).partitions[0] == line


def test_of_very_many_segments_only_the_last_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "SUMMED", 1)
    stored(store, 0, 10)
    stored(store, 10, 20)
    line = look(store).partitions[0]
    assert (line.frontier, line.rows, line.dead_letters) == (20, None, None)
    assert "? dead letters" in status_rows(look(store))[0][1].plain


def test_durations_are_in_the_largest_unit_that_fits() -> None:
    assert [duration_text(s) for s in (0, 59, 60, 3600, 90000)] == [
        "0 s", "59 s", "1 min", "1 h", "1 d",
    ]  # fmt: skip
