"""Compaction on a real Ray, in a bucket, and in processes that race and die: the same table."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flts_ray.config import RayConfig
from flts_ray.errors import ArtifactError
from flts_ray.ingest.compact import compact
from flts_ray.ingest.compact_ray import on_ray
from flts_ray.ingest.sweep import sweep
from flts_ray.local.s3 import S3Server
from flts_ray.prepare.run import prepare
from flts_ray.sources.table_log import LogEntry, newest_entry, table_folder
from flts_ray.store import Store
from tests.raw_files import contents
from tests.streamed_load import EPOCH, TOPIC, load_rows, store_rows, table_config

pytestmark = pytest.mark.integration
FOLDER = table_folder(TOPIC, EPOCH)
COMPACT = f"""
import os, sys
from flts_ray.ingest.compact import compact
from flts_ray.ingest.faults import Faults
from flts_ray.store import Store
compact(Store.open(sys.argv[1]), {TOPIC!r}, {EPOCH!r}, faults=Faults.from_environment(os.environ))
"""


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_worker_niceness", "0")
        import ray

        folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # socket paths must stay short
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def filled(store: Store, hours: int = 240, step: int = 60) -> Store:
    ends: dict[int, int] = {}
    for begin in range(0, hours, step):
        ends = store_rows(store, load_rows(begin, step), ends)
    return store


def table(store: Store, entry: LogEntry) -> dict[str, bytes]:
    return {file.path: store.get(f"{FOLDER}/{file.path}") for file in entry.files}


def once(folder: Path) -> dict[str, bytes]:
    store = filled(Store.open(str(folder / "once")))
    return table(store, compact(store, TOPIC, EPOCH))


def test_ray_gives_the_same_bytes(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flts_ray.ingest.compact_steps.STEP_ROWS", 700)
    store = filled(Store.open(str(tmp_path / "ray")))
    calls: list[tuple[str, int, int]] = []
    entry = compact(
        store, TOPIC, EPOCH, run=on_ray(RayConfig()), progress=lambda *call: calls.append(call)
    )
    assert table(store, entry) == once(tmp_path)
    assert {stage: total for stage, _, total in calls if total > 1} == {"split": 3, "merge": 3}
    assert not [path for path in (tmp_path / "ray" / "spill").rglob("*") if path.is_file()]


def test_problems_of_workers_are_told(ray_cluster: None, tmp_path: Path) -> None:
    store = filled(Store.open(str(tmp_path)), 60)
    entry = compact(store, TOPIC, EPOCH)
    store.put(f"{FOLDER}/{entry.files[0].path}", b"other")
    store_rows(store, load_rows(0, 24), {p: end for p, (_, end) in entry.ranges.items()})
    with pytest.raises(ArtifactError, match="changed since it was written"):
        compact(store, TOPIC, EPOCH, run=on_ray(RayConfig()))
    assert newest_entry(store, TOPIC, EPOCH) == entry


def test_a_bucket_holds_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with S3Server(tmp_path / "s3") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        store = Store.open(f"{server.uri}/root")
        ends = store_rows(store, load_rows(0, 100), {})
        first = compact(store, TOPIC, EPOCH)
        store_rows(store, load_rows(100, 140), ends)
        entry = compact(store, TOPIC, EPOCH)
        local = Store.open(str(tmp_path / "root"))
        ends = store_rows(local, load_rows(0, 100), {})
        compact(local, TOPIC, EPOCH)
        store_rows(local, load_rows(100, 140), ends)
        assert compact(local, TOPIC, EPOCH) == entry
        assert table(store, entry) == table(local, entry)
        config = table_config(tmp_path)
        made = prepare(config.model_copy(update={"root": store.root}))
        for path, data in contents(prepare(config)).items():
            assert store.get(f"prepared/{made.hash[:16]}/{path}") == data
        later = datetime.now(UTC) + timedelta(days=2)
        assert sweep(store, TOPIC, EPOCH, later, keep=2) == []
        gone = {file.path for file in first.files} - {file.path for file in entry.files}
        swept = sweep(store, TOPIC, EPOCH, later, keep=1)
        assert {key.removeprefix(f"{FOLDER}/") for key in swept} == gone
        assert len(table(store, entry)) == 10


def started(store: Store, order: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", COMPACT, store.root],
        env={**os.environ, "FLTS_CRASH": order, "OMP_NUM_THREADS": "1"},
    )


def test_processes_that_race_and_die_leave_one_table(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "raced"))
    ends: dict[int, int] = {}
    for begin, order in ((0, "compacting:2"), (60, ""), (120, "compacting:1"), (180, "")):
        ends = store_rows(store, load_rows(begin, 60), ends)
        if order:
            assert started(store, order).wait(timeout=60) == -signal.SIGKILL
        assert [one.wait(timeout=60) for one in [started(store) for _ in range(2)]] == [0, 0]
    entry = newest_entry(store, TOPIC, EPOCH)
    assert entry is not None
    assert entry == compact(store, TOPIC, EPOCH)
    assert table(store, entry) == once(tmp_path)
    assert len(store.list(f"{FOLDER}/log")) == entry.number == 4
