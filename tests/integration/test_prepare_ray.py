"""Preparation, and forecasts of many series, on a real Ray give the bytes of the plain loop."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flts_ray.champion import ChampionRef
from flts_ray.config import Config, parse_config
from flts_ray.errors import DataError
from flts_ray.jobs import forecast_table as job
from flts_ray.jobs.forecast_table import Champion, forecast_table
from flts_ray.local.s3 import S3Server
from flts_ray.models import artifact
from flts_ray.models.base import fit_fully
from flts_ray.narrate import LogNarrator
from flts_ray.prepare.run import prepare
from flts_ray.store import Store
from tests.raw_files import contents, load_config, write_load
from tests.served import TASK
from tests.unit.test_forecast_bucket import filled_set, write_mixed
from tests.unit.test_raw_series import ROLES

pytestmark = pytest.mark.integration


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


def test_ray_gives_the_same_bytes(ray_cluster: None, tmp_path: Path) -> None:
    write_load(tmp_path / "in")
    local = load_config(tmp_path)
    on_ray = load_config(tmp_path, prepare={"engine": "ray"}).model_copy(
        update={"root": str(tmp_path / "ray")}
    )
    calls: list[tuple[str, int, int]] = []
    made = prepare(on_ray, progress=lambda *call: calls.append(call))
    assert made.manifest.buckets == 3
    assert len(made.ids()) == 5
    assert {row["code"] for row in made.quarantine().to_pylist()} == {
        "constant", "failed", "too_short"
    }  # fmt: skip
    assert contents(made) == contents(prepare(local))
    assert [call for call in calls if call[0] == "split"] == [("split", i, 3) for i in range(4)]
    assert not list((tmp_path / "ray").rglob("*.arrow"))


def test_auto_uses_a_running_ray_and_errors_come_back(ray_cluster: None, tmp_path: Path) -> None:
    write_load(tmp_path / "in")
    (tmp_path / "in" / "d.csv").write_text("time,id\n2024-01-01T00:00:00Z,x\n")
    config = load_config(tmp_path, prepare={"engine": "auto"})
    with pytest.raises(DataError, match=r"d\.csv"):
        prepare(config)
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]


def forecast_config(root: str, engine: str) -> Config:
    data = {"path": "unused.csv", "id": "unique_id", "covariates": ROLES}
    prepare = {"buckets": 3, "engine": engine}
    return parse_config({"name": "demo", "root": root, "data": data, "prepare": prepare})


def test_workers_forecast_in_a_bucket_what_one_process_does(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = artifact.save(fit_fully("ar", filled_set(), TASK), tmp_path / "model")
    ref = ChampionRef(1, digest, "ar", "0" * 64, "models/1", "run")

    @contextmanager
    def session(config: Config) -> Iterator[Any]:
        yield SimpleNamespace(config=config)

    def champion(_: object, store: Store) -> Champion:
        return Champion("http://127.0.0.1:1", store.root, "demo", ref)

    monkeypatch.setattr(job, "open_session", session)
    monkeypatch.setattr(job, "_champion", champion)
    (tmp_path / "in").mkdir()
    write_mixed(tmp_path / "in" / "new.csv")
    local = forecast_config(str(tmp_path / "root"), "local")
    Store.open(local.root).upload_dir(tmp_path / "model", "models/1")
    out = str(tmp_path / "out")
    one = forecast_table(local, str(tmp_path / "in"), out, LogNarrator()).manifest
    # The workers run already: what they know of the bucket has travelled with their tasks.
    with S3Server(tmp_path / "s3") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        place = f"{server.uri}/place"
        store = Store.open(place)
        store.upload_dir(tmp_path / "model", "models/1")
        store.upload_dir(tmp_path / "in", "in")
        remote = forecast_config(place, "auto")
        made = forecast_table(remote, f"{place}/in", f"{place}/out", LogNarrator())
        assert made.made
        assert made.manifest["files"] == one["files"]
        for file in one["files"]:
            stored = store.get(f"out/{file['path']}")
            assert stored == (tmp_path / "out" / file["path"]).read_bytes()
        assert store.list("spill") == []
        again = forecast_table(remote, f"{place}/in", f"{place}/out", LogNarrator())
        assert (again.made, again.manifest) == (False, made.manifest)
