"""Preparation on a real Ray gives the bytes of the plain loop."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flts_ray.errors import DataError
from flts_ray.prepare.run import prepare
from tests.raw_files import contents, load_config, write_load

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
