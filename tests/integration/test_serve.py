"""Ray Serve for real: one local cluster, one deployment, a champion in a folder."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.compute as pc
import pytest

from flts_ray.config import Config, parse_config
from flts_ray.config_serve import AuthConfig, CanaryConfig, ServeConfig
from flts_ray.errors import ConfigError, Unavailable
from flts_ray.local.ray_environment import haproxy_is_set, set_for_ray
from flts_ray.models import artifact
from flts_ray.models.base import Task, fit_fully
from flts_ray.prepare.arrays import windows_at
from flts_ray.serve import deployment
from flts_ray.serve.challenge import belongs_to_challenger
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.log_table import read_log
from flts_ray.serve.parity import request_of
from flts_ray.store import FolderStore
from tests.served import LEVELS, KnownSet, true_calendar
from tests.synthetic import seasonal_set

pytestmark = pytest.mark.integration
TASK = Task(6, LEVELS)
DATA = true_calendar(seasonal_set(length=300))


@dataclass(frozen=True)
class FolderRef:
    version: str
    digest: str
    folder: str


@dataclass(frozen=True)
class FolderSource:
    """The champion that `champion.json` in a folder names, and its challenger."""

    root: Path

    def current(self) -> FolderRef | None:
        return self._named("champion.json")

    def challenger(self) -> FolderRef | None:
        return self._named("challenger.json")

    def _named(self, file: str) -> FolderRef | None:
        path = self.root / file
        return FolderRef(**json.loads(path.read_text())) if path.exists() else None

    def load(self, ref: FolderRef) -> ServedModel:
        fitted = artifact.load(Path(ref.folder))
        return ServedModel("demo", ref.version, ref.digest, fitted, KnownSet(DATA))


def promote(root: Path, version: str, season: int, file: str = "champion.json") -> None:
    fitted = fit_fully("seasonal_naive", DATA, TASK, {"season": season})
    folder = root / f"model-{version}"
    digest = artifact.save(fitted, folder)
    point_at(root, FolderRef(version, digest, str(folder)), file)


def point_at(root: Path, ref: FolderRef, file: str = "champion.json") -> None:
    draft = root / "draft.json"
    draft.write_text(json.dumps(ref.__dict__))
    os.replace(draft, root / file)


@dataclass
class Load:
    """What constant callers saw: answers by status or error, and by model version in order.

    `callers`: the versions that each of them saw; answers to different ones may cross.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    versions: list[str] = field(default_factory=list)
    callers: list[list[str]] = field(default_factory=list)
    slowest_s: float = 0.0


@asynccontextmanager
async def callers(url: str, body: dict[str, Any], count: int = 4) -> AsyncIterator[Load]:
    """`count` callers that repeat one request until the block ends."""
    load, stop = Load(), asyncio.Event()

    async def repeat(http: httpx.AsyncClient) -> None:
        mine: list[str] = []
        load.callers.append(mine)
        while not stop.is_set():
            begin = time.monotonic()
            try:
                answer = await http.post(f"{url}/v1/forecast", json=body, timeout=60)
            except httpx.HTTPError as error:
                load.outcomes[type(error).__name__] += 1
                continue
            load.slowest_s = max(load.slowest_s, time.monotonic() - begin)
            load.outcomes[str(answer.status_code)] += 1
            if answer.status_code == 200:
                version = answer.headers["x-flts-model-version"]
                assert answer.json()["model"]["version"] == version
                load.versions.append(version)
                mine.append(version)

    async with httpx.AsyncClient() as http:
        tasks = [asyncio.create_task(repeat(http)) for _ in range(count)]
        try:
            yield load
        finally:
            stop.set()
            await asyncio.gather(*tasks)


async def until(load: Load, version: str, more: int = 10, timeout_s: float = 60) -> None:
    """Wait for `more` answers of this version."""
    end = time.monotonic() + timeout_s
    while load.versions[-more:] != [version] * more:
        assert time.monotonic() < end, (load.outcomes, load.versions[-5:])
        await asyncio.sleep(0.05)


def a_request() -> dict[str, Any]:
    return request_of(windows_at(DATA, np.array([0, 1]), np.array([250, 260]), 48, 6), LEVELS)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Path]:
    """A local cluster; yields its folder."""
    import ray
    from ray import serve

    set_for_ray(starts_cluster=True, serving=ServeConfig())
    assert haproxy_is_set()
    # A socket's path must be short, so pytest's own folder is too deep.
    folder = tempfile.mkdtemp(prefix="flts-")
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        _temp_dir=folder,
    )
    yield Path(folder)
    serve.shutdown()
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    limits = ServeConfig(
        port=0,
        min_replicas=1,
        max_replicas=1,
        poll_s=0.2,
        max_body_bytes=200_000,
        auth=AuthConfig(required=False),
    )
    return parse_config(
        {
            "name": "demo",
            "root": str(root),
            "data": {"path": "unused.csv"},
            "serve": limits.model_dump(),
        }
    )


@pytest.fixture(scope="module")
def url(ray_cluster: Path, config: Config, root: Path) -> Iterator[str]:
    """The deployment, at first without a champion."""
    yield deployment.deploy(config, "unused", partial(FolderSource, root))
    deployment.undeploy("demo")
    assert deployment.status("demo") is None


def test_before_the_first_champion_it_tells_what_to_do(url: str) -> None:
    assert httpx.get(f"{url}/healthz").status_code == 200
    answer = httpx.post(f"{url}/v1/forecast", json=a_request())
    assert answer.status_code == 503
    assert "flts train --config" in answer.json()["error"]["message"]


def test_the_first_champion_is_picked_up_and_forecasts(url: str, root: Path) -> None:
    promote(root, "1", season=24)
    deployment.wait_ready(url, 60)
    answer = httpx.post(f"{url}/v1/forecast", json=a_request())
    assert answer.status_code == 200
    got = answer.json()["forecasts"]
    wanted = fit_fully("seasonal_naive", DATA, TASK, {"season": 24}).forecast(
        windows_at(DATA, np.array([0, 1]), np.array([250, 260]), 48, 6)
    )
    np.testing.assert_allclose([one["mean"] for one in got], wanted.mean, rtol=1e-12)
    assert httpx.get(f"{url}/docs").status_code == 200


def test_a_known_series_needs_no_history(url: str) -> None:
    body = {"unique_id": "s2", "known_future": {"event": [0.0] * 6}, "horizon": 3}
    answer = httpx.post(f"{url}/v1/forecast", json=body)
    assert answer.status_code == 200
    np.testing.assert_allclose(
        answer.json()["forecasts"][0]["mean"], DATA.take([2]).y[-24:-21], rtol=1e-12
    )


def test_bad_requests_are_refused_through_the_proxy(url: str) -> None:
    answers = [
        httpx.post(f"{url}/v1/forecast", content=body)
        for body in (b"{", b'{"y": [NaN]}', b'{"y": ' + b"[" * 90_000, b" " * 300_000)
    ]
    assert [answer.status_code for answer in answers] == [422, 422, 422, 413]
    assert httpx.get(f"{url}/nowhere").json()["error"]["code"] == "not_found"


def test_a_new_champion_under_load_fails_no_request(url: str, root: Path) -> None:
    async def work() -> Load:
        async with callers(url, a_request()) as load:
            await until(load, "1")
            promote(root, "2", season=12)
            await until(load, "2")
        return load

    load = asyncio.run(work())
    assert set(load.outcomes) == {"200"}, load.outcomes
    assert all(seen == sorted(seen) for seen in load.callers)


def test_a_damaged_champion_changes_nothing(url: str, root: Path) -> None:
    promote(root, "3", season=24)
    body = (root / "model-3" / artifact.ARRAYS).read_bytes()
    bad = root / "model-4"
    artifact.save(fit_fully("seasonal_naive", DATA, TASK, {"season": 24}), bad)
    (bad / artifact.ARRAYS).write_bytes(body[:-1] + bytes([body[-1] ^ 1]))

    async def work() -> Load:
        async with callers(url, a_request(), 1) as load:
            await until(load, "3")
            point_at(root, FolderRef("4", "none", str(bad)))
            for _ in range(20):
                await until(load, "3", more=1)
                await asyncio.sleep(0.05)
        return load

    load = asyncio.run(work())
    assert set(load.outcomes) == {"200"}
    assert load.versions[-1] == "3"


def test_redeploying_the_only_replica_under_load_fails_no_request(
    url: str, config: Config, root: Path
) -> None:
    promote(root, "5", season=24)

    async def work() -> Load:
        async with callers(url, a_request(), 2) as load:
            await until(load, "5")
            await asyncio.to_thread(
                deployment.deploy, config, "unused", partial(FolderSource, root)
            )
            await until(load, "5")
        return load

    load = asyncio.run(work())
    assert set(load.outcomes) == {"200"}, load.outcomes


def replica_pids() -> set[int]:
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    replicas = [
        ray.get_actor(actor["name"], namespace=actor["namespace"])
        for actor in named
        if actor["name"].startswith(f"SERVE_REPLICA::demo#{deployment.DEPLOYMENT}")
    ]
    found = set()
    for replica in replicas:
        with suppress(ray.exceptions.RayActorError):  # just killed
            found.add(ray.get(replica.__ray_call__.remote(lambda self: os.getpid())))
    return found


def test_a_killed_replica_and_a_new_champion_at_once_fail_no_request(url: str, root: Path) -> None:
    (pid,) = replica_pids()
    version = httpx.get(f"{url}/v1/model").json()["version"]

    async def work() -> Load:
        async with callers(url, a_request(), 2) as load:
            await until(load, version)
            os.kill(pid, signal.SIGKILL)
            promote(root, "6", season=12)
            await until(load, "6", more=50, timeout_s=90)
        return load

    load = asyncio.run(work())
    assert set(load.outcomes) == {"200"}, load.outcomes
    assert len(replica_pids() - {pid}) == 1


def test_replicas_that_are_told_look_at_once(url: str, root: Path) -> None:
    promote(root, "7", season=24)
    assert asyncio.run(deployment.nudge("demo")) == ["7"]
    with pytest.raises(Unavailable, match="does not run"):
        asyncio.run(deployment.nudge("nothing"))


def test_the_state_counts_replicas(url: str) -> None:
    state = deployment.status("demo")
    assert state is not None
    assert state.status == "RUNNING"
    assert state.replicas == {"RUNNING": 1}


def test_requests_are_not_logged_one_by_one(url: str, ray_cluster: Path) -> None:
    assert httpx.post(f"{url}/v1/forecast", json=a_request()).status_code == 200
    logs = list((ray_cluster / "session_latest" / "logs" / "serve").glob("*.log"))
    assert {log.name.partition("_")[0] for log in logs} >= {"proxy", "replica"}
    assert not [log.name for log in logs if "POST /v1/forecast" in log.read_text()]


def test_the_declarative_entry_builds_the_application(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json", include={"name", "root", "data"})))
    made = deployment.app_builder(
        {"config": str(path), "set": ["serve.max_replicas=3"], "mlflow_uri": "http://127.0.0.1:1"}
    )
    scaling = made._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    for args, problem in (({}, "args.config"), ({"config": str(path)}, "args.mlflow_uri")):
        with pytest.raises(ConfigError, match=problem):
            deployment.app_builder(args)


def test_replicas_follow_the_load_between_their_bounds(
    url: str, config: Config, root: Path
) -> None:
    limits = config.serve.model_copy(
        update={
            "max_replicas": 2,
            "target_ongoing_requests": 0.5,
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 0.0,
            "canary": CanaryConfig(share=0.6),
        }
    )
    elastic = config.model_copy(update={"serve": limits})
    address = deployment.deploy(elastic, "unused", partial(FolderSource, root))
    deployment.wait_ready(address, 60)

    async def scale_up() -> Load:
        async with callers(address, a_request(), count=8) as load:
            end = time.monotonic() + 90
            while running() < 2:
                assert time.monotonic() < end, load.outcomes
                await asyncio.sleep(0.5)
        return load

    load = asyncio.run(scale_up())
    assert set(load.outcomes) == {"200"}
    end = time.monotonic() + 90
    while running() > 1:
        assert time.monotonic() < end
        time.sleep(0.5)
    assert httpx.post(f"{address}/v1/forecast", json=a_request()).status_code == 200


def test_a_challenger_answers_its_share_of_the_series(url: str, root: Path) -> None:
    promote(root, "challenger", season=23, file="challenger.json")
    names = {belongs_to_challenger(name, 0.6): name for name in DATA.ids}

    def version(name: str) -> str:
        body = {"unique_id": name, "known_future": {"event": [0.0] * 6}}
        answer = httpx.post(f"{url}/v1/forecast", json=body)
        assert answer.status_code == 200
        assert answer.headers["x-flts-model-version"] == answer.json()["model"]["version"]
        return str(answer.json()["model"]["version"])

    end = time.monotonic() + 30
    while version(names[True]) != "challenger":
        assert time.monotonic() < end
    assert version(names[False]) != "challenger"


def test_every_answer_is_in_the_log_after_a_graceful_stop(url: str, root: Path) -> None:
    answers = [httpx.post(f"{url}/v1/forecast", json=a_request()).json() for _ in range(20)]
    deployment.undeploy("demo")
    log = read_log(FolderStore(str(root)), "demo")
    logged = Counter(log["forecast_id"].to_pylist())
    assert {logged[answer["forecast_id"]] for answer in answers} == {2}  # of two series each
    last = log.filter(pc.equal(log["forecast_id"], answers[-1]["forecast_id"])).to_pylist()
    given = answers[-1]["forecasts"]
    assert [row["unique_id"] for row in last] == [one["unique_id"] for one in given]
    np.testing.assert_allclose(last[0]["mean"], given[0]["mean"], rtol=1e-6)
    assert "canary" in log["role"].to_pylist()


def running() -> int:
    state = deployment.status("demo")
    return 0 if state is None else state.replicas.get("RUNNING", 0)
