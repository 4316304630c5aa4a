"""A running cluster that knows the project only through what a job brings along."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from flts_ray.champion import ChampionReader
from flts_ray.local.mlflow_server import MlflowServer
from flts_ray.local.process import free_port
from tests.running import Place, until
from tests.unit.test_propose import load, stamp

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).parents[2]
PORTS = (
    "port", "node-manager-port", "object-manager-port", "dashboard-port",
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
    "metrics-export-port", "ray-client-server-port",
)  # fmt: skip
UPLOAD_MIB = 10


@dataclass(frozen=True)
class Cluster:
    """A head node, its interpreter, and where its job API and its own port are."""

    place: Place
    python: str
    temp: Path
    jobs: str
    address: str

    def submit(self, *command: str, expect: int = 0) -> str:
        """Run a command as a job with the repository as its working folder; what it printed."""
        submit = ("-m", "ray.scripts.scripts", "job", "submit", "--address", self.jobs)
        done = self.place.run(
            sys.executable, *submit, "--working-dir", ".", "--", "python", "-m", *command,
            expect=expect,
        )  # fmt: skip
        return done.stdout + done.stderr


def bare_interpreter(folder: Path) -> str:
    """This environment's packages without those that are installed in place of a copy."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    made = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    # A folder that a .pth file names is searched, but its own .pth files are not read.
    Path(made.stdout.strip(), "packages.pth").write_text(sysconfig.get_path("purelib"))
    return str(python)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    python = bare_interpreter(tmp_path_factory.mktemp("env"))
    # A socket's path must be short, so pytest's own folder is too deep.
    temp = Path(tempfile.mkdtemp(prefix="flts-", dir="/tmp"))
    extra = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ["PATH"]]),
    }
    place = Place(REPOSITORY, extra)
    ports = {name: free_port() for name in PORTS}
    log = temp / "head.log"
    command = [
        python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--min-worker-port=0",
        "--max-worker-port=0", f"--object-store-memory={150 * 2**20}", f"--temp-dir={temp}",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with log.open("wb") as output:
        head = subprocess.Popen(
            command, cwd=temp, env=place.env, stdout=output, stderr=output, start_new_session=True
        )
    jobs = f"http://127.0.0.1:{ports['dashboard-port']}"

    def up() -> bool:
        assert head.poll() is None, log.read_text()
        try:
            return httpx.get(f"{jobs}/api/jobs/", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        until(up, 120, "the job API")
        yield Cluster(place, python, temp, jobs, f"127.0.0.1:{ports['port']}")
    finally:
        # Not SIGTERM: a head that has served drains its proxy for half a minute.
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        until(lambda: not place.processes(), 60, "the end of the cluster")
        shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def config(root: Path, mlflow: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("config")
    rows = [f"s{s},{stamp(i)},{load(i, s)}" for s in range(2) for i in range(600)]
    (folder / "load.csv").write_text("\n".join(["unique_id,ds,y", *rows]))
    data = {"path": str(folder / "load.csv"), "id": "unique_id", "frequency": "1h"}
    made: dict[str, Any] = {
        "name": "load",
        "root": str(root),
        "data": data,
        "task": {"horizon": 6},
        "models": {"seasonal_naive": {}, "ar": {}},
        "serve": {
            "port": 0,
            "min_replicas": 1,
            "max_replicas": 1,
            "poll_s": 0.5,
            "auth": {"required": False},
        },
        "mlflow": {"uri": mlflow.uri},
    }
    path = folder / "load.yaml"
    path.write_text(yaml.safe_dump(made))
    return str(path)


def test_the_cluster_itself_does_not_know_the_project(cluster: Cluster) -> None:
    if Path(sysconfig.get_path("purelib"), "flts_ray").exists():
        pytest.skip("the project is installed as a copy, so every cluster here knows it")
    code = "import ray, flts_ray"
    done = subprocess.run(
        [cluster.python, "-c", code], cwd=cluster.temp, capture_output=True, text=True, check=False
    )
    assert "No module named 'flts_ray'" in done.stderr


def test_a_relative_root_is_refused_in_a_job(cluster: Cluster, config: str) -> None:
    said = cluster.submit("flts_ray.jobs.train", "--config", config, "--set=root=.flts", expect=1)
    assert "error: root: .flts lies in the working folder of the job" in said


@pytest.fixture(scope="module")
def trained(cluster: Cluster, config: str) -> str:
    """What the training job printed."""
    return cluster.submit("flts_ray.jobs.train", "--config", config)


def test_a_training_job_makes_a_champion(
    trained: str, root: Path, mlflow: MlflowServer, tmp_path: Path
) -> None:
    assert "is accepted: it beats the baseline" in trained
    assert '"pipeline_step"' in trained
    reader = ChampionReader(mlflow.uri, str(root), "load", tmp_path)
    champion = reader.current()
    assert champion is not None
    assert (champion.version, champion.kind) == (1, "ar")
    assert (reader.fetch(champion) / "model.json").exists()
    reader.close()


def test_only_the_sources_were_uploaded(cluster: Cluster, trained: str) -> None:
    folder = cluster.temp / "session_latest" / "runtime_resources" / "working_dir_files"
    uploads = [path for path in folder.iterdir() if path.is_dir()]
    assert uploads
    for uploaded in uploads:
        names = {path.name for path in uploaded.iterdir()}
        assert {"flts_ray", "configs", "pyproject.toml"} <= names
        assert not {".venv", ".flts", ".git"} & names
        sizes = [path.stat().st_size for path in uploaded.rglob("*") if path.is_file()]
        assert sum(sizes) < UPLOAD_MIB * 2**20


@pytest.fixture(scope="module")
def url(cluster: Cluster, config: str, trained: str) -> str:
    """Address of the API that a job deployed before it ended."""
    said = cluster.submit("flts_ray.jobs.serve", "--config", config)
    (found,) = {word for word in said.split() if word.startswith("http://127.0.0.1:")} - {
        cluster.jobs
    }
    return found


def test_a_deployed_api_outlives_its_job(url: str) -> None:
    until(lambda: httpx.get(f"{url}/readyz").status_code == 200, 60, "a loaded champion")
    body = {"series": [{"unique_id": "s0"}, {"unique_id": "s1"}], "horizon": 3}
    answer = httpx.post(f"{url}/v1/forecast", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    forecasts = answer.json()["forecasts"]
    for s, one in enumerate(forecasts):
        truth = [load(i, s) for i in range(600, 603)]
        assert one["median"] == pytest.approx(truth, abs=1.5)


def test_it_is_asked_from_the_command_line_by_its_address(
    cluster: Cluster, config: str, url: str
) -> None:
    done = cluster.place.flts("forecast", "-c", config, "--url", url, "--series", "s1")
    assert "load version 1 (ar)" in done.stdout


def test_the_command_line_deploys_to_the_same_cluster(
    cluster: Cluster, config: str, url: str
) -> None:
    outside = Place(REPOSITORY, {**cluster.place.extra, "RAY_ADDRESS": cluster.address})
    done = outside.flts("serve", "-c", config)
    assert done.stdout.strip() == url
    until(lambda: httpx.get(f"{url}/readyz").status_code == 200, 60, "a loaded champion")
    assert outside.processes() == []


def test_remove_takes_the_api_down(cluster: Cluster, config: str, url: str) -> None:
    cluster.submit("flts_ray.jobs.serve", "--config", config, "--remove")
    answer = httpx.get(f"{url}/readyz")
    assert answer.status_code == 404
