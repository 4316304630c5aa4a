from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import ConfigError, Conflict, Unavailable
from flts_ray.jobs import serve, session
from flts_ray.jobs.announce import announce
from flts_ray.jobs.interrupt import interrupt_on_sigterm
from flts_ray.local.ray_environment import set_for_ray

NOBODY = "127.0.0.1:1"
URI = "http://127.0.0.1:5999"


def config_of(root: object, **sections: Any) -> Config:
    return parse_config({"name": "demo", "root": str(root), "data": {"path": "x.csv"}, **sections})


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to stand-ins of MLflow and Ray."""
    seen: list[str] = []

    class Mlflow:
        def __init__(self, folder: Path, port: int) -> None:
            self.folder = folder

        def start(self) -> None:
            seen.append("start mlflow")

        def wait(self) -> str:
            seen.append("wait for mlflow")
            return URI

        def stop(self) -> None:
            seen.append("stop mlflow")

    @contextmanager
    def cluster(config: Config) -> Iterator[str | None]:
        seen.append("start ray")
        try:
            yield "http://127.0.0.1:8265"
        finally:
            seen.append("stop ray")

    monkeypatch.setattr(session, "SharedMlflow", Mlflow)
    monkeypatch.setattr(session, "ray_cluster", cluster)
    return seen


def test_the_local_part_lies_in_the_root_or_beside_a_bucket(tmp_path: Path) -> None:
    assert session.local_folder(config_of(tmp_path)) == tmp_path
    assert session.local_folder(config_of(f"file://{tmp_path}")) == tmp_path
    assert session.local_folder(config_of("s3://loads/here")) == Path(".flts/demo")


def test_services_start_side_by_side_and_stop_in_reverse(events: list[str], tmp_path: Path) -> None:
    with session.open_session(config_of(tmp_path / "new"), ray=True) as services:
        assert services.mlflow_uri == URI
        assert services.dashboard == "http://127.0.0.1:8265"
        assert services.folder.is_dir()
        assert services.store.root == str(tmp_path / "new")
    assert events == ["start mlflow", "start ray", "wait for mlflow", "stop ray", "stop mlflow"]


def test_the_s3_server_that_runs_here_is_known_before_anything_starts(
    events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "adopt_local", lambda config: events.append("adopt"))
    with session.open_session(config_of(tmp_path), ray=True):
        assert events[0] == "adopt"


def test_a_session_neither_waits_for_a_broker_that_is_away_nor_fails(
    events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def stuck(*_: object) -> None:
        asked.set()
        answer.wait(60)
        raise Unavailable("never")

    monkeypatch.setattr("flts_ray.streams.connect.producer", stuck)
    monkeypatch.setattr("flts_ray.events.CLOSE_S", 0.01)
    config = config_of(tmp_path, stream={"brokers": NOBODY}, events={"enabled": True, "queue": 2})
    with session.open_session(config) as services:
        for n in range(5):
            services.events.publish("training-data", {"v": n})
        assert asked.wait(10)
    answer.set()
    assert events[-1] == "stop mlflow"


def test_ray_is_started_only_if_asked_for(events: list[str], tmp_path: Path) -> None:
    with session.open_session(config_of(tmp_path)) as services:
        assert services.dashboard is None
    assert events == ["start mlflow", "wait for mlflow", "stop mlflow"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_everything_is_stopped_however_the_command_ends(
    events: list[str], tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), session.open_session(config_of(tmp_path), ray=True):
        raise error
    assert events[-2:] == ["stop ray", "stop mlflow"]


def test_an_interrupt_of_the_start_stops_what_had_started(
    events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flts_ray.jobs.session.SharedMlflow.wait", interrupted)
    with pytest.raises(KeyboardInterrupt), session.open_session(config_of(tmp_path), ray=True):
        pytest.fail("it never opened")
    assert events == ["start mlflow", "start ray", "stop ray", "stop mlflow"]
    events.clear()
    monkeypatch.setattr("flts_ray.jobs.session.SharedMlflow.start", interrupted)
    with pytest.raises(KeyboardInterrupt), session.open_session(config_of(tmp_path), ray=True):
        pytest.fail("it never opened")
    assert events == ["stop mlflow"]


def test_a_named_tracking_server_is_used_and_never_started(
    events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "answers", lambda uri: uri == URI)
    with session.open_session(config_of(tmp_path, mlflow={"uri": URI})) as services:
        assert services.mlflow_uri == URI
    assert events == []


@pytest.mark.parametrize("uri", [f"http://{NOBODY}", "sqlite:///x.db", "http://[::bad"])
def test_a_tracking_server_that_is_away_is_told_before_ray_starts(
    events: list[str], tmp_path: Path, uri: str
) -> None:
    config = config_of(tmp_path, mlflow={"uri": uri})
    with (
        pytest.raises(Unavailable, match=r"mlflow\.uri .* does not answer"),
        session.open_session(config, ray=True),
    ):
        pytest.fail("it never opened")
    assert events == []


def test_a_root_that_cannot_be_made_is_told(events: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"root: .*file/root cannot be made: Not a directory"),
        session.open_session(config_of(tmp_path / "file" / "root")),
    ):
        pytest.fail("it never opened")
    assert events == []


def test_a_cluster_is_named_by_the_configuration_or_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert session.cluster_address(config_of("r")) is None
    assert not serve.joins_a_cluster(config_of("r"))
    monkeypatch.setenv("RAY_ADDRESS", "other:6379")
    assert session.cluster_address(config_of("r")) == "other:6379"
    assert serve.joins_a_cluster(config_of("r"))
    named = config_of("r", ray={"address": "here:6379"})
    assert session.cluster_address(named) == "here:6379"


def test_the_address_of_a_job_api_is_refused_with_the_way_to_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS http.*ray job submit.*host:6379"):
        session.cluster_address(config_of("r"))
    with pytest.raises(ConfigError, match=r"^ray\.address"):
        session.cluster_address(config_of("r", ray={"address": "https://ray.example"}))


@pytest.mark.parametrize("address", [NOBODY, f"ray://{NOBODY}"])
def test_a_cluster_that_is_away_is_told_at_once(address: str) -> None:
    config = config_of("r", ray={"address": address})
    with (
        pytest.raises(Unavailable, match=rf"{address} does not answer .*RAY_ADDRESS"),
        session.ray_cluster(config),
    ):
        pytest.fail("there is none")


def test_a_job_needs_a_root_that_outlives_its_working_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session.check_root(config_of("relative"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for root in ("/data/flts", "file:///data/flts", "s3://bucket/prefix"):
        session.check_root(config_of(root))
    for root in ("relative", "file://relative"):
        with pytest.raises(ConfigError, match=r"root: .*relative .*thrown away; .*--set root="):
            session.check_root(config_of(root))


def test_a_session_of_a_job_looks_at_its_root_first(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="root: "), session.open_session(config_of("relative")):
        pytest.fail("it never opened")
    assert events == []


def test_what_is_set_in_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_AUTH_MODE": "token"})
    set_for_ray(starts_cluster=False)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert "OMP_NUM_THREADS" not in os.environ
    set_for_ray(starts_cluster=True)
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_sigterm_unwinds_like_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupt_on_sigterm()
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_serving_twice_or_on_a_taken_port_is_a_conflict(tmp_path: Path) -> None:
    config = config_of(tmp_path, serve={"port": 0})
    serve.check_served(config)
    serve.check_port(config)
    with (
        announce(tmp_path, "demo", {"api": URI}),
        pytest.raises(Conflict, match=f"demo is served at {URI} already"),
    ):
        serve.check_served(config)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(Conflict, match=rf"serve\.port: {port} .*--set serve\.port=0"):
            serve.check_port(config_of(tmp_path, serve={"port": port}))


def test_a_deployment_that_stays_needs_a_tracking_server_that_stays(tmp_path: Path) -> None:
    class Silent:
        def step(self, title: str, detail: str = "") -> None: ...
        def stage(self, name: str, done: int, total: int) -> None: ...
        def study(self) -> Any: ...

    with pytest.raises(ConfigError, match=r"mlflow\.uri: "):
        serve.deploy_to_cluster(config_of(tmp_path, ray={"address": "here:6379"}), Silent())
    with pytest.raises(ConfigError, match=r"ray\.address: --remove"):
        serve.remove_from_cluster(config_of(tmp_path))


def test_looking_for_services_loads_nothing_heavy() -> None:
    import subprocess

    code = "import sys, flts_ray.jobs.session, flts_ray.jobs.status; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"ray", "torch", "mlflow", "pandas"} & set(done.stdout.split())
