"""Runs, versions and promotions against a real MLflow server."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from flts_ray.champion import ChampionReader
from flts_ray.errors import Conflict, DataError, Unavailable
from flts_ray.local.mlflow_server import MlflowServer
from flts_ray.models import artifact
from flts_ray.models.base import Task, fit_fully
from flts_ray.models.lean import load_lean
from flts_ray.models.onnx_fitted import FittedOnnx
from flts_ray.registry import Registry
from flts_ray.runs import CONFIG_HASH, ERROR, KIND, StudyRuns
from flts_ray.store import Store
from flts_ray.tracking import TrackingClient
from tests.synthetic import seasonal_set

pytestmark = pytest.mark.integration

NOW = datetime(2024, 5, 1, tzinfo=UTC)
YES = {"accepted": True, "reason": "beats both"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("ml flow")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: MlflowServer) -> TrackingClient:
    return TrackingClient(server.uri)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model and experiment of its own for each test."""
    return str(request.node.name).removeprefix("test_")[:60]


@pytest.fixture
def runs(server: MlflowServer, name: str) -> StudyRuns:
    return StudyRuns.connect(server.uri, name, name)


@pytest.fixture
def registry(server: MlflowServer, tmp_path: Path, name: str) -> Registry:
    return Registry.connect(server.uri, Store.open(str(tmp_path / "store")), name, by="ann")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "naive"
    fitted = fit_fully("seasonal_naive", seasonal_set(length=200), Task(4, (0.1, 0.5, 0.9)))
    artifact.save(fitted, folder)
    return folder


def _add(registry: Registry, runs: StudyRuns, model: Path, count: int) -> list[int]:
    parent = runs.start_study({}, {})
    versions = []
    for i in range(count):
        run = runs.start_trial(parent, f"t{i}", "seasonal_naive", {})
        runs.log_folder(run, model, "model")
        versions.append(registry.add_version(model, run, "prep").version)
    return versions


def _served(client: TrackingClient, run_id: str, path: str) -> httpx.Response:
    address = f"{client.uri}/get-artifact"
    return httpx.get(address, params={"run_id": run_id, "path": path})


def test_a_study_is_a_parent_run_with_a_child_a_trial(
    runs: StudyRuns, client: TrackingClient, model: Path, name: str
) -> None:
    parent = runs.start_study({"horizon": 4, "names": ["a", "b"]}, {CONFIG_HASH: "c0ffee"})
    trial = runs.start_trial(parent, "gru-1", "gru", {"width": 32})
    for epoch in (1, 2):
        runs.log_epoch(trial, epoch, {"valid/pinball": 1.0 / epoch, "nan": float("nan")})
    runs.log_folder(trial, model, "model")
    runs.log_table(trial, pa.table({"model": ["gru"], "rmse": [0.5]}), "backtest")
    runs.log_json(parent, {"winner": "gru"}, "decision")
    runs.end_trial(trial, "FINISHED", {"score": 0.25})
    runs.end_study(parent, "FINISHED")

    study = client.get_run(parent)
    assert study.info.status == "FINISHED"
    assert study.info.run_name == name
    assert study.data.params == {"horizon": "4", "names": '["a", "b"]'}
    assert study.data.tags[CONFIG_HASH] == "c0ffee"
    assert {"flts.version", "flts.git_revision", "flts.git_dirty"} <= set(study.data.tags)
    (child,) = runs.trials(parent)
    assert (child.info.run_id, child.info.run_name) == (trial, "gru-1")
    assert (child.data.tags[KIND], child.data.params) == ("gru", {"width": "32"})
    assert child.data.metrics["score"] == 0.25
    history = client.get_metric_history(trial, "valid/pinball")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]
    body = (model / artifact.ARRAYS).read_bytes()
    assert _served(client, trial, f"model/{artifact.ARRAYS}").content == body
    assert _served(client, trial, "backtest.csv").text == '"model","rmse"\n"gru",0.5\n'
    assert _served(client, parent, "decision.json").json() == {"winner": "gru"}


def test_more_parameters_than_one_request_takes(runs: StudyRuns, client: TrackingClient) -> None:
    parent = runs.start_study({f"p{i}": i for i in range(250)}, {})
    assert len(client.get_run(parent).data.params) == 250


def test_a_failed_trial_keeps_its_error(runs: StudyRuns, client: TrackingClient) -> None:
    trial = runs.start_trial(runs.start_study({}, {}), "lstm-1", "lstm", {})
    runs.end_trial(trial, "FAILED", {}, error="loss is NaN\n" + "x" * 20_000)
    run = client.get_run(trial)
    assert run.info.status == "FAILED"
    assert run.data.tags[ERROR].startswith("loss is NaN")


def test_a_resumed_study_goes_on_and_closes_what_its_driver_left(
    runs: StudyRuns, client: TrackingClient, server: MlflowServer, name: str
) -> None:
    parent = runs.start_study({}, {})
    done, left = (runs.start_trial(parent, trial, "ar", {}) for trial in ("done", "left"))
    runs.end_trial(done, "FINISHED", {})
    runs.end_study(parent, "KILLED")
    again = StudyRuns.connect(server.uri, name, name)
    assert again.resume_study(parent) == parent
    statuses = [client.get_run(run).info.status for run in (parent, done, left)]
    assert statuses == ["RUNNING", "FINISHED", "KILLED"]
    with pytest.raises(DataError, match="start a new study"):
        again.resume_study("0" * 32)
    elsewhere = StudyRuns.connect(server.uri, f"{name}-other", name)
    with pytest.raises(DataError, match="another experiment"):
        elsewhere.resume_study(parent)


def test_a_deleted_experiment_is_opened_again(
    runs: StudyRuns, client: TrackingClient, server: MlflowServer, name: str
) -> None:
    client.delete_experiment(runs.experiment_id)
    assert StudyRuns.connect(server.uri, name, name).start_study({}, {})


def test_replicas_follow_promotions_and_rollbacks(
    server: MlflowServer,
    runs: StudyRuns,
    registry: Registry,
    client: TrackingClient,
    model: Path,
    tmp_path: Path,
    name: str,
) -> None:
    cache = tmp_path / "cache"
    reader = ChampionReader(server.uri, str(tmp_path / "store"), name, cache)
    assert reader.current() is None
    assert registry.champion() is None
    first, second = _add(registry, runs, model, 2)
    assert reader.current() is None

    registry.promote(first, YES, None, NOW)
    found = reader.current()
    champion = registry.champion()
    assert found is not None
    assert champion is not None
    assert (found.version, found.kind) == (first, "seasonal_naive")
    assert (found.digest, found.run_id) == (champion.digest, champion.run_id)
    assert (found.artifact_key, found.prepared_hash) == (champion.artifact_key, "prep")
    assert artifact.load(reader.fetch(found)).spec == artifact.load(model).spec
    assert client.get_model_version(name, str(first)).source.endswith("/model")

    registry.set_challenger(second)
    registry.promote(second, YES, first, NOW)
    moved = reader.current()
    assert moved is not None
    assert moved.version == second
    registry.rollback(NOW, "worse at night")
    back = reader.current()
    assert back is not None
    assert back.version == first
    aliases = client.get_registered_model(name).aliases
    assert {alias: int(n) for alias, n in aliases.items()} == {
        "champion": first,
        "previous": second,
    }
    actions = [entry.action for entry in registry.history()]
    assert actions == ["promote", "challenge", "promote", "rollback"]


def test_of_racing_promotions_exactly_one_wins(
    runs: StudyRuns, registry: Registry, client: TrackingClient, model: Path, name: str
) -> None:
    base, *candidates = _add(registry, runs, model, 6)
    registry.promote(base, YES, None, NOW)
    barrier, won, lost = threading.Barrier(len(candidates)), list[int](), list[Conflict]()

    def run(version: int) -> None:
        barrier.wait()
        try:
            won.append(registry.promote(version, YES, base, NOW).champion or 0)
        except Conflict as error:
            lost.append(error)

    threads = [threading.Thread(target=run, args=(version,)) for version in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, len(candidates) - 1)
    assert all(f"promoted version {won[0]} meanwhile" in str(error) for error in lost)
    assert [entry.champion for entry in registry.history()] == [base, won[0]]
    assert int(client.get_registered_model(name).aliases["champion"]) == won[0]


DIES_AFTER_THE_ENTRY = """
import os, signal, sys
from datetime import UTC, datetime
from flts_ray.registry import Registry
from flts_ray.store import Store

class Dying(Registry):
    def repair(self):
        os.kill(os.getpid(), signal.SIGKILL)

uri, root, name, version, expected = sys.argv[1:]
registry = Dying.connect(uri, Store.open(root), name, by="bob")
decision = {"accepted": True, "reason": "beats both"}
registry.promote(int(version), decision, int(expected), datetime.now(UTC))
"""


def test_a_promotion_killed_before_the_alias_is_finished_by_the_next_reader(
    server: MlflowServer,
    runs: StudyRuns,
    registry: Registry,
    model: Path,
    tmp_path: Path,
    name: str,
) -> None:
    first, second = _add(registry, runs, model, 2)
    registry.promote(first, YES, None, NOW)
    store = str(tmp_path / "store")
    arguments = [server.uri, store, name, str(second), str(first)]
    killed = subprocess.run([sys.executable, "-c", DIES_AFTER_THE_ENTRY, *arguments])
    assert killed.returncode == -9
    reader = ChampionReader(server.uri, store, name, tmp_path / "cache")
    stale = reader.current()
    assert stale is not None
    assert stale.version == first
    champion = registry.champion()
    followed = reader.current()
    assert champion is not None
    assert followed is not None
    assert champion.version == followed.version == second
    assert registry.history()[-1].by == "bob"


def test_the_server_answers_only_to_its_own_names(server: MlflowServer) -> None:
    address = f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1"
    own: dict[str, Any] = {"Host": f"localhost:{server.port}"}
    assert httpx.get(address, headers=own).status_code == 200
    assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 403


def test_a_second_server_for_the_folder_is_a_conflict(server: MlflowServer) -> None:
    with pytest.raises(Conflict, match=server.uri), MlflowServer(server.folder):
        pass


def test_a_server_that_goes_away_is_unavailable_and_comes_back_with_everything(
    tmp_path: Path, model: Path
) -> None:
    store = Store.open(str(tmp_path / "store"))
    with MlflowServer(tmp_path / "mlflow") as server:
        uri, port = server.uri, server.port
        runs = StudyRuns.connect(uri, "study", "study")
        registry = Registry.connect(uri, store, "load")
        (version,) = _add(registry, runs, model, 1)
        registry.promote(version, YES, None, NOW)
        reader = ChampionReader(uri, store.root, "load", tmp_path / "cache")
    for attempt in (
        lambda: runs.start_study({}, {}),
        lambda: registry.champion(),
        lambda: runs.log_folder("0" * 32, model, "model"),
        lambda: Registry.connect(uri, store, "load"),
        reader.current,
    ):
        with pytest.raises(Unavailable, match=uri):
            attempt()
    with MlflowServer(tmp_path / "mlflow", port) as server:
        assert server.port == port
        champion = registry.champion()
        assert champion is not None
        assert champion.version == version
        assert runs.trials(runs.start_study({}, {})) == []


def test_a_network_is_fetched_as_its_export(
    registry: Registry, runs: StudyRuns, server: MlflowServer, client: TrackingClient,
    tmp_path: Path, name: str,
) -> None:  # fmt: skip
    quick = {"hidden": 4, "epochs": 1, "windows_per_epoch": 64, "refit_epochs": 0}
    fitted = fit_fully("gru", seasonal_set(length=200), Task(4, (0.1, 0.5, 0.9)), quick)
    artifact.save(fitted, tmp_path / "gru")
    (version,) = _add(registry, runs, tmp_path / "gru", 1)
    made = registry.version(version)
    for tag in ("lean_key", "lean_digest"):
        client.delete_model_version_tag(name, str(version), tag)
    assert registry.version(version).lean_digest == ""
    assert registry.export(registry.version(version), tmp_path / "gru") == made
    registry.promote(version, YES, None, NOW)
    reader = ChampionReader(server.uri, str(tmp_path / "store"), name, tmp_path / "cache")
    found = reader.current()
    assert found is not None
    folder = reader.fetch(found.lean)
    assert artifact.digest(folder) == made.lean_digest
    assert isinstance(load_lean(folder), FittedOnnx)
