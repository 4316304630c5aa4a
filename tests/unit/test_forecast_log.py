"""Every answer is in the log once, and what is not is counted."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from flts_ray.config_serve import ForecastLogConfig
from flts_ray.errors import Unavailable
from flts_ray.models.base import Forecast
from flts_ray.prepare.arrays import Windows
from flts_ray.serve.forecast_log import ForecastLog
from flts_ray.serve.log_entry import Entry
from flts_ray.serve.log_table import SCHEMA, read_log, table_of
from flts_ray.serve.observe import Made
from flts_ray.store import Created, Exists, FolderStore
from tests.served import LEVELS, plain_contract

HOUR_US = 3_600_000_000
NEVER = ForecastLogConfig(flush_s=3600)


def forecast_of(ids: tuple[str, ...], horizon: int, seed: int = 0) -> Forecast:
    rng = np.random.default_rng(seed)
    return Forecast(
        ids,
        np.arange(len(ids)) * HOUR_US,
        LEVELS,
        rng.normal(size=(len(ids), horizon)),
        np.sort(rng.normal(size=(len(ids), horizon, len(LEVELS))), axis=-1),
    )


def made(number: int, ids: tuple[str, ...] = ("a", "b"), asked: int = 3) -> Made:
    windows = Windows(
        plain_contract(), ids, np.zeros(len(ids), np.int64), *[np.zeros((len(ids), 0))] * 6
    )
    return Made(
        f"f{number}", "load", "7", "d7", windows, forecast_of(ids, 6, number), asked, 0.004
    )  # fmt: skip


class FaultyStore(FolderStore):
    """Refuses writes while `away`; counts those that were tried."""

    away = False
    tried = 0

    def put_new(
        self, key: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> Created | Exists:
        self.tried += 1
        if self.away:
            raise Unavailable("the store is away")
        return super().put_new(key, data, metadata)


@pytest.fixture
def store(tmp_path: Path) -> FaultyStore:
    return FaultyStore(str(tmp_path))


def test_an_answer_is_recorded_as_it_was_given(store: FaultyStore) -> None:
    log = ForecastLog(store, "load", NEVER, clock=lambda: 1_700_000_000.5, replica="r")
    given = made(1)
    log.forecast(given)
    assert store.tried == 0  # nothing is written on the path of a request
    assert log.close() == 0
    table = read_log(store, "load", "2023-11-14")
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert [row["unique_id"] for row in rows] == ["a", "b"]
    assert [row["row"] for row in rows] == [0, 1]
    assert rows[1]["origin"].isoformat() == "1970-01-01T01:00:00+00:00"
    assert rows[0]["made_at"].isoformat() == "2023-11-14T22:13:20.500000+00:00"
    assert (rows[0]["version"], rows[0]["digest"], rows[0]["role"]) == ("7", "d7", "champion")
    assert (rows[0]["horizon"], rows[0]["degraded"]) == (3, False)
    assert rows[0]["latency_ms"] == pytest.approx(4.0)
    np.testing.assert_allclose(rows[1]["mean"], given.forecast.mean[1, :3], rtol=1e-6)
    np.testing.assert_allclose(
        rows[1]["quantiles"], given.forecast.quantiles[1, :3].ravel(), rtol=1e-6
    )
    assert rows[0]["levels"] == list(LEVELS)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.lists(st.text(max_size=5), max_size=4), st.integers(1, 6)), min_size=1
    )
)  # fmt: skip
def test_answers_of_any_shape_share_a_file(shapes: list[tuple[list[str], int]]) -> None:
    entries = [
        Entry(i, f"f{i}", "1", "d", "shadow", True, asked, 0.1, forecast_of(tuple(ids), 6, i))
        for i, (ids, asked) in enumerate(shapes)
    ]
    table = table_of(entries, 10)
    assert table.num_rows == sum(len(ids) for ids, _ in shapes)
    assert table["row"].to_pylist() == list(range(10, 10 + table.num_rows))
    wanted = [asked for ids, asked in shapes for _ in ids]
    assert [len(each) for each in table["mean"].to_pylist()] == wanted
    assert pc.list_value_length(table["quantiles"]).to_pylist() == [
        asked * len(LEVELS) for asked in wanted
    ]


def test_what_the_store_refuses_is_written_when_it_is_back(store: FaultyStore) -> None:
    log = ForecastLog(store, "load", NEVER)
    store.away = True
    for number in range(5):
        log.forecast(made(number))
        assert not log.flush()
    assert (log.waiting, log.counts.lost) == (10, 0)
    store.away = False
    assert log.flush()
    assert log.close() == 0
    assert sorted(read_log(store, "load")["row"].to_pylist()) == list(range(10))


def test_a_full_buffer_loses_the_oldest_and_counts_them(store: FaultyStore) -> None:
    one = made(0).forecast
    room = ForecastLogConfig(
        flush_s=3600, max_mb=3.5 * (one.mean.nbytes + one.quantiles.nbytes) / 2**20
    )
    log = ForecastLog(store, "load", room)
    for number in range(10):
        log.forecast(made(number))
    counts = log.counts
    assert (counts.taken, counts.lost, log.waiting) == (20, 14, 6)
    assert log.close() == 0
    kept = set(read_log(store, "load")["forecast_id"].to_pylist())
    assert kept == {"f7", "f8", "f9"}
    assert counts.taken == counts.written + counts.lost


def test_a_stop_says_what_the_store_did_not_take(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flts_ray.serve.forecast_log.CLOSE_S", 0.0)
    log = ForecastLog(store, "load", NEVER)
    store.away = True
    log.forecast(made(1))
    assert log.close() == 2


def test_an_answer_that_cannot_be_written_does_not_end_the_log(store: FaultyStore) -> None:
    log = ForecastLog(store, "load", NEVER)
    odd = made(0)
    torn = replace(odd.forecast, quantiles=odd.forecast.quantiles[:1])
    log.forecast(structs.replace(odd, forecast=torn))
    assert log.flush()
    log.forecast(made(2))
    assert log.close() == 0
    assert log.counts.lost == 2
    assert set(read_log(store, "load")["forecast_id"].to_pylist()) == {"f2"}


def test_answers_are_encoded_in_lumps_into_one_file(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flts_ray.serve.forecast_log.LUMP_BYTES", 2000)
    log = ForecastLog(store, "load", NEVER)
    for number in range(100):
        log.forecast(made(number))
    assert log.close() == 0
    assert store.tried == 1
    (file,) = store.list("forecasts/load")
    assert pq.read_metadata(pa.BufferReader(store.get(file.key))).num_row_groups >= 20
    table = read_log(store, "load")
    assert table["row"].to_pylist() == list(range(200))
    assert table["forecast_id"].to_pylist() == [f"f{i // 2}" for i in range(200)]


def test_a_file_of_many_answers_is_written_before_its_time(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flts_ray.serve.forecast_log.LUMP_BYTES", 2000)
    monkeypatch.setattr("flts_ray.serve.forecast_log.FILE_BYTES", 10_000)
    log = ForecastLog(store, "load", NEVER)
    until = time.monotonic() + 30
    number = 0
    while not log.counts.written and time.monotonic() < until:
        log.forecast(made(number))
        number += 1
    assert log.counts.written > 0
    assert log.close() == 0
    assert sorted(read_log(store, "load")["row"].to_pylist()) == list(range(2 * number))


def test_the_log_writes_by_itself(store: FaultyStore) -> None:
    log = ForecastLog(store, "load", ForecastLogConfig(flush_s=0.01))
    log.forecast(made(1))
    until = time.monotonic() + 30
    while not log.counts.written and time.monotonic() < until:
        time.sleep(0.01)
    assert log.counts.written == 2
    assert log.close() == 0


KILLED = """
import sys, time
from flts_ray.config_serve import ForecastLogConfig
from flts_ray.serve.forecast_log import ForecastLog
from flts_ray.store import Store
from tests.unit.test_forecast_log import made
log = ForecastLog(Store.open(sys.argv[1]), "load", ForecastLogConfig(flush_s=0.05))
for number in range(10**9):
    log.forecast(made(number, ("a",)))
    print(log.counts.taken, log.counts.written, flush=True)
    time.sleep(0.001)
"""


def test_a_killed_replica_loses_its_buffer_and_no_more(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    last = (0, 0)
    for line in process.stdout:
        taken, written = (int(number) for number in line.split())
        last = (taken, written)
        if written > 200:
            break
    process.kill()
    rest = process.stdout.read().splitlines()
    process.wait()
    if rest and len(rest[-1].split()) == 2:
        last = (int(rest[-1].split()[0]), int(rest[-1].split()[1]))
    rows = read_log(FolderStore(str(tmp_path)), "load")["row"].to_pylist()
    assert sorted(rows) == list(range(len(rows)))  # no gap, nothing twice, only whole files
    assert last[1] <= len(rows) <= last[0]
