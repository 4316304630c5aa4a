from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.config import Config, DataConfig, parse_config
from flts_ray.errors import ConfigError, DataError
from flts_ray.jobs import replay as module
from flts_ray.jobs.replay import (
    Pace,
    owner_of_rows,
    read_rows,
    replay,
    replayed_data,
    rows_left,
    samples,
    schedule,
)
from flts_ray.streams.records import Headers

A = "time,id,load,temperature\n2024-01-01T00:00Z,a,1,5\n2024-01-01T01:00Z,a,2,\n"
B = "time,id,load,temperature\n2024-01-01T00:00Z,b,3,7\n2024-01-01T01:00Z,b,,8\n"


@dataclass
class Topic:
    """A producer that keeps what it is given."""

    sent: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    flushed: int = 0
    closed: bool = False

    def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
        timestamp_ms: int | None = None,
    ) -> None:
        assert topic == "load"
        assert value is not None and key is not None and partition is not None
        self.sent.append((partition, key, value))

    def flush(self, timeout_s: float) -> None:
        self.flushed = len(self.sent)

    def close(self) -> None:
        self.closed = True

    def ends(self, partitions: int) -> list[int]:
        return [sum(p == one for p, _, _ in self.sent) for one in range(partitions)]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "a.csv").write_text(A)
    (tmp_path / "b.csv").write_text(B)
    data = {
        "path": str(tmp_path), "time": "time", "id": "id", "target": "load",
        "covariates": {"temperature": "past"},
    }  # fmt: skip
    return parse_config({"name": "c", "data": data})


def run(
    config: Config,
    topic: Topic,
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None = None,
    pace: Pace | None = None,
) -> module.Replayed:
    monkeypatch.setattr(module, "_topic_ends", lambda *_: (2, topic.ends(2)))
    return replay(config, "h:1", limit=limit, producer=topic, pace=pace)


def test_rows_are_sent_in_the_order_of_time_as_samples(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = Topic()
    done = run(config, topic, monkeypatch)
    assert (done.sent, done.already, topic.flushed) == (4, 0, 4)
    assert not topic.closed
    assert [json.loads(value) for _, _, value in topic.sent] == [
        {"unique_id": "a", "ds": "2024-01-01T00:00:00Z", "y": 1.0, "temperature": 5.0},
        {"unique_id": "b", "ds": "2024-01-01T00:00:00Z", "y": 3.0, "temperature": 7.0},
        {"unique_id": "a", "ds": "2024-01-01T01:00:00Z", "y": 2.0},
        {"unique_id": "b", "ds": "2024-01-01T01:00:00Z", "y": None, "temperature": 8.0},
    ]
    owners = {key: partition for partition, key, _ in topic.sent}
    assert [(p, k) for p, k, _ in topic.sent] == [(owners[k], k) for k in (b"a", b"b", b"a", b"b")]


def test_a_repeated_run_goes_on_where_the_topic_ends(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Topic()
    run(config, whole, monkeypatch)
    for cut in range(5):
        topic = Topic(sent=whole.sent[:cut])
        done = run(config, topic, monkeypatch)
        assert (done.sent, done.already) == (4 - cut, cut)
        assert topic.sent == whole.sent


def test_a_limit_counts_what_is_there_already(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = Topic()
    assert run(config, topic, monkeypatch, limit=3).sent == 3
    assert run(config, topic, monkeypatch, limit=3).sent == 0
    assert run(config, topic, monkeypatch, limit=1).sent == 0
    assert run(config, topic, monkeypatch).sent == 1


def test_progress_counts_all_messages(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = Topic()
    run(config, topic, monkeypatch, limit=1)
    monkeypatch.setattr(module, "_topic_ends", lambda *_: (2, topic.ends(2)))
    seen: list[tuple[int, int]] = []
    replay(config, "h:1", producer=topic, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 4)]


def test_rows_wait_until_they_are_due(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        now[0] += seconds

    run(config, Topic(), monkeypatch, pace=Pace(1800.0, lambda: now[0], sleep))
    assert sleeps == pytest.approx([2.0])


def test_an_interrupt_is_passed_on_and_the_next_run_completes(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    topic = Topic()
    with pytest.raises(KeyboardInterrupt):
        run(config, topic, monkeypatch, pace=Pace(1.0, lambda: 0.0, interrupt))
    assert len(topic.sent) == 2
    assert run(config, topic, monkeypatch).sent == 2


def test_a_topic_with_other_content_is_refused(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = Topic(sent=[(0, b"x", b"x")] * 9)
    with pytest.raises(DataError, match="partition 0 of the topic holds 9"):
        run(config, topic, monkeypatch)


def test_a_speed_is_positive() -> None:
    for speed in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="speed"):
            Pace(speed)


def test_other_files_replace_the_configured_ones() -> None:
    data = DataConfig(snapshot="latest", time="t", id="i")
    assert replayed_data(data, "x.csv").path == "x.csv"
    assert replayed_data(data, "x.csv").snapshot is None
    with pytest.raises(ConfigError, match="--input"):
        replayed_data(data, None)


def test_files_are_read_in_the_order_of_time(config: Config) -> None:
    rows = read_rows(config.data)
    assert rows.column("unique_id").to_pylist() == ["a", "b", "a", "b"]
    assert rows.column_names == ["unique_id", "ds", "y", "temperature"]


def test_fractions_of_a_second_are_kept() -> None:
    stamp = datetime.fromisoformat("2024-01-01T00:00:00.250+00:00")
    rows = pa.table(
        {
            "unique_id": ["a"],
            "ds": pa.array([stamp], pa.timestamp("us", "UTC")),
            "y": [1.0],
            "region": pa.array([None], pa.string()),
        }
    )
    [(key, value)] = samples(rows)
    assert (key, json.loads(value)) == (
        b"a",
        {"unique_id": "a", "ds": "2024-01-01T00:00:00.250000Z", "y": 1.0},
    )


def test_a_series_stays_in_one_partition_in_every_process() -> None:
    rows = pa.table({"unique_id": pa.chunked_array([["MT_001", "MT_002"], ["MT_001", "ä"]])})
    assert owner_of_rows(rows, 4).tolist() == [3, 1, 3, 3]
    assert owner_of_rows(rows, 1).tolist() == [0, 0, 0, 0]


owners_and_cut = st.integers(1, 4).flatmap(
    lambda partitions: st.lists(st.integers(0, partitions - 1), max_size=40).flatmap(
        lambda owners: st.tuples(
            st.just(owners),
            st.tuples(*(st.integers(0, owners.count(p)) for p in range(partitions))),
        )
    )
)


@given(owners_and_cut)
def test_what_is_left_completes_each_partition(given: tuple[list[int], tuple[int, ...]]) -> None:
    owners, ends = given
    left = rows_left(np.array(owners, np.int64), ends).tolist()
    assert left == sorted(set(left))
    for partition, end in enumerate(ends):
        mine = [row for row, owner in enumerate(owners) if owner == partition]
        assert [row for row in left if owners[row] == partition] == mine[end:]


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=60).map(sorted),
    st.floats(0.001, 1e6) | st.none(),
)
def test_steps_cover_all_rows_and_none_is_late(us: list[int], speed: float | None) -> None:
    steps = list(schedule(np.array(us, np.int64), speed))
    assert (steps[0].begin, steps[0].at_s, steps[-1].end) == (0, 0.0, len(us))
    assert all(one.end == two.begin and one.at_s <= two.at_s for one, two in pairwise(steps))
    for step in steps:
        for row in range(step.begin, step.end):
            due_s = 0.0 if speed is None else (us[row] - us[0]) / 1e6 / speed
            assert step.at_s <= due_s + 1e-9
            assert speed is None or due_s - step.at_s < 0.0501


def test_nothing_to_send_needs_no_step() -> None:
    assert list(schedule(np.zeros(0, np.int64), 1.0)) == []
