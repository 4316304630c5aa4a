"""Ray Serve for real: one local cluster, one deployment, a champion in a folder."""

from __future__ import annotations

import asyncio
import json
import math
import operator
import os
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pyarrow.compute as pc
import pytest

from flts_ray.config import Config, parse_config
from flts_ray.config_serve import (
    AheadConfig,
    AuthConfig,
    CanaryConfig,
    ForecastLogConfig,
    ServeConfig,
)
from flts_ray.errors import ConfigError, Unavailable
from flts_ray.local.private import private_folder
from flts_ray.local.ray_environment import haproxy_is_set, set_for_ray
from flts_ray.models import artifact
from flts_ray.models.base import Task, fit_fully
from flts_ray.prepare.arrays import windows_at
from flts_ray.serve import deployment
from flts_ray.serve.challenge import belongs_to_challenger
from flts_ray.serve.log_table import read_log
from flts_ray.serve.metrics import COUNTERS, GAUGES, HISTOGRAMS, OLDER_BOUNDS_S
from flts_ray.serve.scaling import Counted
from flts_ray.serve.scaling_memory import ScalingMemory, memory_name
from flts_ray.store import FolderStore
from tests.deployed import (
    DATA,
    TASK,
    FolderRef,
    FolderSource,
    Load,
    a_request,
    callers,
    live,
    point_at,
    promote,
    replica_pids,
    replicas,
    running,
    until,
    why_dropped,
)

pytestmark = pytest.mark.integration
REPORT_S = 0.5
LABEL = re.compile(r'(\w+)="([^"]*)"')
RAYS_LABELS = {
    "Component", "NodeAddress", "SessionName", "Version", "WorkerId", "name",
    "otel_scope_name", "otel_scope_schema_url", "otel_scope_version",
}  # fmt: skip
NEVER_HERE = {
    "flts_serve_champion_age_seconds",  # nobody registered these models
    "flts_serve_degraded_total",  # Ray shows no counter that still stands at zero
    "flts_serve_log_lost_total",
}


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
        _system_config={"metrics_report_interval_ms": int(REPORT_S * 1e3)},
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
        canary=CanaryConfig(shadow=True, min_windows=10),
        log=ForecastLogConfig(flush_s=2.0),
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


def test_a_shadow_that_is_worse_is_dropped_and_nobody_saw_it(url: str, root: Path) -> None:
    digest = promote(root, "shadow", season=12, file="challenger.json")
    until_metric("flts_serve_challenger", 1)
    answers = live(url, range(DATA.n_series), range(200, 230))
    assert "scaled error" in why_dropped(root, digest)
    until_metric("flts_serve_challenger", 0)
    assert {answer["model"]["version"] for answer in answers} == {"7"}


def test_a_shadow_that_is_slow_is_dropped(url: str, root: Path) -> None:
    other = Task(6, TASK.levels[1:4])
    digest = promote(root, "slow", season=24, file="challenger.json", task=other)
    until_metric("flts_serve_challenger", 1)
    live(url, [0], range(150, 250))
    assert "times as long" in why_dropped(root, digest)


def test_prometheus_sees_what_was_answered_and_no_series(url: str) -> None:
    bad, ok = (f'flts_serve_requests_total{{"{how}","/v1/forecast"}}' for how in ("invalid", "ok"))

    def refused() -> dict[str, float]:
        """After one more bad request: by then all that was before it has been handed on."""
        count = metrics().get(bad, 0.0)
        assert httpx.post(f"{url}/v1/forecast", content=b"{").status_code == 422
        until_metric(bad, count + 1)
        time.sleep(REPORT_S)  # numbers of one moment are handed on one after the other
        return metrics()

    before = refused()
    for _ in range(6):
        assert httpx.post(f"{url}/v1/forecast", json=a_request()).status_code == 200
    after = refused()
    for name, grown in {
        ok: 6,
        bad: 1,
        'flts_serve_latency_seconds_count{"ok","/v1/forecast"}': 6,
        'flts_serve_series_total{"champion"}': 12,
        "inference_jobs_processed_total": 7,
        'inference_jobs_outcome_total{"success"}': 6,
        'inference_jobs_outcome_total{"client_error"}': 1,
        "inference_queue_wait_seconds_count": 6,
        "inference_latency_seconds_count": 6,
    }.items():
        assert after[name] - before[name] == grown, name
    seconds = 'flts_serve_seconds_total{"ok","/v1/forecast"}'
    assert 0 < after[seconds] - before[seconds] < 6
    spent = 'flts_serve_latency_seconds_sum{"ok","/v1/forecast"}'
    assert after[spent] - before[spent] == pytest.approx(after[seconds] - before[seconds])
    assert after["flts_serve_champion_version"] == 7
    assert after["flts_serve_up"] == 1
    buckets = {name for name in after if name.startswith("inference_latency_seconds_bucket")}
    assert len(buckets) == len(OLDER_BOUNDS_S) + 1
    assert after["inference_model_ready"] == after["inference_workers_total"] == 1
    assert 0 <= after["inference_worker_utilization"] <= 1
    told = {re.sub(r"(_count)?(\{.*)?$", "", name) for name in after}
    assert {*COUNTERS, *GAUGES, *HISTOGRAMS} - told == NEVER_HERE
    labels = {text for name in after for text in re.findall(r'"(.*?)"', name)}
    assert "champion" in labels
    assert not labels & set(DATA.ids)


def metrics() -> dict[str, float]:
    """What Prometheus scrapes of the one replica: by name and the values of our labels."""
    import ray

    (node,), (replica,) = ray.nodes(), replicas()
    asked = replica.__ray_call__.remote(lambda self: ray.get_runtime_context().get_worker_id())
    worker = f'WorkerId="{ray.get(asked)}"'
    page = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics")
    found = {}
    for line in page.text.splitlines():
        name, _, rest = line.removeprefix("ray_").partition("{")
        if worker in rest and name.startswith(("flts_", "inference_")):
            labels, _, value = rest.rpartition("} ")
            own = [f'"{text}"' for key, text in LABEL.findall(labels) if key not in RAYS_LABELS]
            found[f"{name}{{{','.join(own)}}}" if own else name] = float(value)
    return found


def until_metric(name: str, wanted: float | Callable[[float], bool], timeout_s: float = 30) -> None:
    is_it = wanted if callable(wanted) else partial(operator.eq, wanted)
    end = time.monotonic() + timeout_s
    while (value := metrics().get(name)) is None or not is_it(value):
        assert time.monotonic() < end, metrics()
        time.sleep(0.1)


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
    assert scaling.policy.policy_kwargs["season_s"] == 86_400
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
            "canary": CanaryConfig(share=0.6, min_windows=10),
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
    promote(root, "challenger", season=13, file="challenger.json")
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


def test_a_canary_that_is_worse_is_dropped(url: str, root: Path) -> None:
    digest = json.loads((root / "challenger.json").read_text())["digest"]
    versions: Counter[str] = Counter()
    for origin in range(200, 240):
        for i in range(DATA.n_series):
            (answer,) = live(url, [i], [origin])
            versions[answer["model"]["version"]] += 1
    assert "scaled error" in why_dropped(root, digest)
    last = [live(url, [i], [250])[0]["model"]["version"] for i in range(DATA.n_series)]
    assert set(last) == {"7"}
    assert 10 <= versions["challenger"] < 2 * 40


def test_a_canary_that_is_slow_is_dropped_and_its_error_is_no_more(url: str, root: Path) -> None:
    mine, other = ([i for i, name in enumerate(DATA.ids) if belongs_to_challenger(name, 0.6) is who]
                   for who in (True, False))  # fmt: skip
    digest = promote(root, "slow-canary", season=48, file="challenger.json")
    error = 'flts_serve_live_error{"challenger"}'

    def answered_by(series: list[int], origin: int) -> set[str]:
        return {one["model"]["version"] for one in live(url, series[:1], [origin])}

    end = time.monotonic() + 30
    while answered_by(mine, 150) != {"slow-canary"}:
        assert time.monotonic() < end
        time.sleep(0.05)
    answered_by(mine, 151)  # tells how good the last answer was
    until_metric(error, math.isfinite)
    # One answer that was held up makes latencies doubtful; more of them settle it.
    for origin in range(152, 249):
        assert answered_by(other, origin) == {"7"}
        if answered_by(mine, origin) == {"7"}:
            break
    assert "times as long" in why_dropped(root, digest)
    assert answered_by(mine, 249) == {"7"}
    end = time.monotonic() + 30
    while error in metrics():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_replica_is_asked_for_before_the_load_that_is_foreseen(
    url: str, config: Config, root: Path
) -> None:
    clock = AheadConfig(interval_s=1.0, ahead_s=8.0, season_s=60.0)
    limits = config.serve.model_copy(
        update={
            "max_replicas": 2,
            "target_ongoing_requests": 4.0,
            "upscale_delay_s": 0.0,
            "scale_ahead": True,
            "ahead": clock,
        }
    )
    file, before = memory_name("demo", str(root.resolve())), replica_pids()
    now = time.time()
    # Every minute so far had twenty busy seconds; the next ones are twelve seconds away.
    busy = (np.arange(-200, 0) - 12) % 60 < 20
    rates, inside = np.where(busy, 40.0, 2.0), np.where(busy, 8.0, 0.2)
    ScalingMemory(file).keep(Counted(clock.interval_s, now, rates, inside, (0.0, 0.0)), now)
    try:
        ahead = config.model_copy(update={"serve": limits})
        deployment.deploy(ahead, "unused", partial(FolderSource, root))
        while len(replica_pids() - before) < 2:  # though nobody asks for anything
            assert time.time() < now + 40, deployment.status("demo")
            time.sleep(0.2)
    finally:
        (private_folder() / "scaling" / file).unlink()


def test_every_answer_is_in_the_log_after_a_graceful_stop(url: str, root: Path) -> None:
    answers = [httpx.post(f"{url}/v1/forecast", json=a_request()).json() for _ in range(20)]
    deployment.undeploy("demo")
    log = read_log(FolderStore(str(root)), "demo")
    logged = Counter(log["forecast_id"].to_pylist())
    assert {logged[answer["forecast_id"]] for answer in answers} == {2}  # of two series each
    last = log.filter(pc.equal(log["forecast_id"], answers[-1]["forecast_id"])).to_pylist()
    wanted = answers[-1]["forecasts"]
    assert [row["unique_id"] for row in last] == [one["unique_id"] for one in wanted]
    np.testing.assert_allclose(last[0]["mean"], wanted[0]["mean"], rtol=1e-6)
    roles = set(zip(log["role"].to_pylist(), log["version"].to_pylist(), strict=True))
    assert roles >= {("canary", "challenger"), ("shadow", "shadow"), ("shadow", "slow")}
    assert ("canary", "slow-canary") in roles
    shadows = log.filter(pc.equal(log["version"], "shadow"))["forecast_id"].to_pylist()
    given = log.filter(pc.equal(log["role"], "champion"))["forecast_id"].to_pylist()
    assert len(shadows) >= 10  # windows that were known to be bad
    assert set(shadows) <= set(given)
