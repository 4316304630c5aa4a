"""The whole pipeline on a real local Ray and a real MLflow: from a raw file to a champion.

The tests of this module share one root and run in order: each goes on from where the one before
has left the registry.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import structlog
import yaml
from rich.console import Console

from flts_ray.config import Config, parse_config
from flts_ray.errors import ConfigError, DataError, GateRefused, Unavailable
from flts_ray.events import Kind
from flts_ray.jobs import train as train_job
from flts_ray.jobs.session import open_session
from flts_ray.models import artifact
from flts_ray.models.base import Compute, fit_fully
from flts_ray.narrate import LogNarrator
from flts_ray.pipeline import TrainReport, judge_again, train
from flts_ray.prepare.loading import open_prepared
from flts_ray.promote import promote_version, task_of
from flts_ray.report import candidates_table
from flts_ray.runs import CONFIG_HASH, ERROR, PREPARED_HASH, StudyRuns
from flts_ray.services import Services
from flts_ray.tracking import TrackingClient
from flts_ray.tune.outcome import study_id
from flts_ray.tune.progress import StudyView

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NOW = datetime(2024, 7, 1, tzinfo=UTC)
ROWS, HORIZON = 1500, 12
KINDS = ("seasonal_naive", "ar", "gru")
WEAK_GRU = {
    "hidden": 8, "epochs": 2, "skip": "none", "windows_per_epoch": 256, "lr": 0.0005,
}  # fmt: skip


def clock() -> datetime:
    return NOW


def later() -> datetime:
    return NOW + timedelta(hours=1)


def write_input(path: Path) -> None:
    """Two hourly series that follow the day and an announced event, and one that never moves."""
    rng, begin = np.random.default_rng(1), datetime(2024, 1, 1, tzinfo=UTC)
    steps = np.arange(ROWS)
    event = (rng.random(ROWS) < 0.2).astype(int)
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["ds", "id", "load", "event"])
        for name, level in [("north", 10.0), ("south", 200.0), ("poison", 0.0)]:
            noise = 0.3 * np.convolve(rng.standard_normal(ROWS + 5), np.ones(6) / 2, "valid")
            load = level * (3 + np.sin(2 * np.pi * steps / 24) + 0.5 * event + noise)
            for i in steps:
                stamp = (begin + timedelta(hours=int(i))).isoformat()
                rows.writerow([stamp, name, f"{load[i]:.5f}", event[i]])


def settings(folder: Path, root: str = "root") -> dict[str, Any]:
    return {
        "name": "load",
        "root": str(folder / root),
        "data": {
            "path": str(folder / "in" / "load.csv"),
            "id": "id",
            "target": "load",
            "units": "MW",
            "frequency": "1h",
            "covariates": {"event": "known_future"},
        },
        "task": {"horizon": HORIZON},
        "models": {
            "seasonal_naive": {},
            "ar": {"params": {"ridge": 3.0, "lags": 24}},
            "gru": {"params": WEAK_GRU},
        },
        "tune": {"budget_s": 300, "validation_stride": 6},
        "blend": {"enabled": False},
        "ray": {"num_cpus": 2, "object_store_mb": 150, "dashboard_port": 0},
    }


@dataclass
class Notes:
    """A narrator that remembers, and fails at a step if it is told to."""

    fail_at: str = ""
    error: BaseException = field(default_factory=KeyboardInterrupt)
    steps: list[str] = field(default_factory=list)

    def step(self, title: str, detail: str = "") -> None:
        self.steps.append(f"{title}: {detail}")
        if title == self.fail_at:
            raise self.error

    def stage(self, name: str, done: int, total: int) -> None:
        """Bars are nothing to remember."""

    def study(self) -> AbstractContextManager[Callable[[StudyView], None]]:
        return nullcontext(lambda view: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pipeline")
    write_input(made / "in" / "load.csv")
    return made


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    return parse_config(settings(folder))


@dataclass
class Told:
    """Events that are remembered."""

    seen: list[tuple[Kind, Mapping[str, Any]]] = field(default_factory=list)

    def publish(self, kind: Kind, data: Mapping[str, Any]) -> None:
        self.seen.append((kind, data))


@pytest.fixture(scope="module")
def events() -> Told:
    return Told()


@pytest.fixture(scope="module")
def services(config: Config, events: Told) -> Iterator[Services]:
    with open_session(config, ray=True) as opened:
        yield replace(opened, events=events)


@pytest.fixture(scope="module")
def first(config: Config, services: Services) -> TrainReport:
    return train(config, services, Notes(), clock)


@pytest.fixture(scope="module")
def client(services: Services) -> TrackingClient:
    return TrackingClient(services.mlflow_uri)


@pytest.fixture(scope="module")
def parent(config: Config, services: Services, first: TrainReport) -> str:
    return (study_of(config, services, first) / "parent_run").read_text()


def study_of(config: Config, services: Services, report: TrainReport) -> Path:
    return services.folder / "studies" / study_id(config, report.prepared.hash)


def logged(client: TrackingClient, run_id: str, path: str) -> str:
    answer = httpx.get(f"{client.uri}/get-artifact", params={"run_id": run_id, "path": path})
    assert answer.status_code == 200, path
    return answer.text


def trials(client: TrackingClient, parent: str) -> dict[str, Any]:
    experiment = client.get_run(parent).info.experiment_id
    runs = StudyRuns(client, experiment, "load").trials(parent)
    return {run.info.run_name: run for run in runs}


def written(study: Path) -> dict[str, int]:
    """Outcome and artifact of every trial, with the time they were written."""
    files = [*study.glob("artifacts/*/result.json"), *study.glob("artifacts/*/model-*/*")]
    return {str(path.relative_to(study)): path.stat().st_mtime_ns for path in files}


def status_of(client: TrackingClient, run_id: str) -> str:
    return str(client.get_run(run_id).info.status)


def test_a_champion_comes_out_and_every_series_is_accounted_for(first: TrainReport) -> None:
    manifest = first.prepared.manifest
    assert (manifest.series, manifest.rows) == (2, 2 * ROWS)
    assert sum(manifest.quarantine.values()) == 1
    assert first.prepared.quarantine()["unique_id"].to_pylist() == ["poison"]
    assert [outcome.status for outcome in first.study.outcomes] == ["finished"] * 3
    assert first.promoted
    assert first.champion is None
    assert first.decision.accepted
    assert f"{first.candidate} (scaled_pinball" in first.decision.reason
    assert "is accepted: it beats the baseline seasonal_naive-01" in first.decision.reason
    assert all(one.audit.passed for one in first.judged)


def test_other_programs_are_told_of_every_step(
    config: Config, services: Services, events: Told, first: TrainReport, parent: str
) -> None:
    (kind, prepared), *trained, (last, selected) = events.seen[: 2 * len(KINDS) + 4]
    assert (kind, last) == ("training-data", "model-selected")
    assert Path(prepared["object"]).is_file()
    assert {kind for kind, _ in trained} == {"model-training"}
    told = [(data["trial"], data["status"]) for _, data in trained]
    assert (told[0], told[-1]) == ((None, "RUNNING"), (None, "SUCCESS"))
    for outcome in first.study.outcomes:
        start, end = [data for _, data in trained if data["trial"] == outcome.trial_id]
        assert (start["status"], end["status"]) == ("RUNNING", "SUCCESS")
        assert (end["model_type"], end["run_id"]) == (outcome.kind, outcome.run_id)
        assert (end["study_run"], end["error"]) == (parent, None)
    assert {data["config_hash"] for _, data in events.seen} == {config.digest()}
    assert (selected["version"], selected["previous"]) == (1, None)
    assert selected["run_id"] == first.version.run_id
    assert selected["model_uri"] == "models:/load/1"
    board = next(one.board for one in first.judged if one.name == first.candidate)
    assert selected["score"] == board.overall[config.judge.score]


def test_the_table_shows_all_candidates(first: TrainReport) -> None:
    screen = io.StringIO()
    boards = first.boards
    table = candidates_table(boards, "scaled_pinball", first.candidate, "MW", first.champion_name)
    Console(file=screen, width=80).print(table)
    for kind in KINDS:
        assert f"{kind}-01" in screen.getvalue()
    windows = {board.overall["windows"] for board in boards}
    assert len(windows) == 1


def test_the_candidate_is_the_best_on_validation(first: TrainReport) -> None:
    scores = {outcome.trial_id: outcome.valid_score or 0.0 for outcome in first.study.outcomes}
    assert first.candidate == min(scores, key=scores.__getitem__)


def test_registry_store_and_aliases_agree(
    config: Config, services: Services, client: TrackingClient, first: TrainReport
) -> None:
    registry = services.registry()
    assert registry.champion() == first.version
    assert client.get_registered_model("load").aliases == {"champion": "1"}
    (entry,) = registry.history()
    assert (entry.action, entry.champion, entry.reason) == ("promote", 1, first.decision.reason)
    assert entry.decision is not None
    record = registry.decision(entry.decision)
    assert (record["version"], record["digest"]) == (1, first.version.digest)
    assert record["parity"]["passed"] is True
    assert record["parity"]["max_relative_difference"] <= 1e-5
    stored = {item.key for item in services.store.list()}
    for key in (
        f"prepared/{first.prepared.hash[:16]}/manifest.json",
        f"models/load/{first.version.digest}/manifest.json",
        "registry/load/log/00000001.json",
        entry.decision,
    ):
        assert key in stored
    assert open_prepared(config.root, first.version.prepared_hash).hash == first.prepared.hash
    tags = client.get_model_version("load", "1").tags
    assert (tags["trial"], tags["study"]) == (first.candidate, first.study.study_id)


def test_the_study_is_a_run_with_its_configuration_and_decision(
    config: Config, client: TrackingClient, first: TrainReport, parent: str
) -> None:
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert run.data.tags[CONFIG_HASH] == config.digest()
    assert run.data.tags[PREPARED_HASH] == first.prepared.hash
    assert run.data.tags["flts.git_revision"]
    assert json.loads(logged(client, parent, "config.json")) == config.model_dump(mode="json")
    decision = json.loads(logged(client, parent, "decision.json"))
    assert (decision["accepted"], decision["version"]) == (True, 1)
    rows = list(csv.DictReader(io.StringIO(logged(client, parent, "candidates.csv"))))
    assert sorted(row["kind"] for row in rows) == sorted(KINDS)
    scores = [float(row["scaled_pinball"]) for row in rows]
    assert scores == sorted(scores)


def test_every_trial_is_a_run_with_all_that_was_learned(
    client: TrackingClient, first: TrainReport, parent: str
) -> None:
    runs = trials(client, parent)
    assert sorted(runs) == sorted(f"{kind}-01" for kind in KINDS)
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        run_id, board = run.info.run_id, next(o.board for o in first.judged if o.name == name)
        assert run.data.metrics["test/rmse"] == pytest.approx(board.overall["rmse"])
        assert "best_valid_score" in run.data.metrics
        steps = list(csv.DictReader(io.StringIO(logged(client, run_id, "test/per_step.csv"))))
        assert [int(row["step"]) for row in steps] == list(range(1, HORIZON + 1))
        each = list(csv.DictReader(io.StringIO(logged(client, run_id, "test/per_series.csv"))))
        assert sorted(row["unique_id"] for row in each) == ["north", "south"]
        assert json.loads(logged(client, run_id, "model/manifest.json"))["files"]
    gru = runs["gru-01"]
    assert {name: gru.data.params[name] for name in ("hidden", "epochs")} == (
        {"hidden": "8", "epochs": "2"}
    )
    epochs = client.get_metric_history(gru.info.run_id, "valid_score")
    assert [point.step for point in epochs] == [1, 2]


def test_training_again_finds_its_champion_and_runs_nothing(
    config: Config,
    services: Services,
    events: Told,
    client: TrackingClient,
    first: TrainReport,
    parent: str,
) -> None:
    study, notes = study_of(config, services, first), Notes()
    before, known = written(study), len(events.seen)
    again = train(config, services, notes, clock, resume=True)
    assert again.promoted
    assert [(kind, data.get("status")) for kind, data in events.seen[known:]] == [
        ("training-data", None), ("model-training", "RUNNING"), ("model-training", "SUCCESS"),
    ]  # fmt: skip
    assert again.version == first.version
    assert again.decision.reason == (
        f"{first.candidate} is version 1 ({first.version.kind}), which is champion already"
    )
    assert any("3 of them are over already" in step for step in notes.steps)
    assert written(study) == before
    assert (study / "parent_run").read_text() == parent
    assert status_of(client, parent) == "FINISHED"
    assert (again.champion_name, len(again.boards)) == (first.candidate, 3)
    registry = services.registry()
    assert (len(registry.history()), len(registry.versions())) == (1, 1)
    assert len(registry.decisions()) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (DataError("no luck"), "FAILED")]
)
def test_what_stops_a_training_closes_its_run(
    config: Config,
    services: Services,
    client: TrackingClient,
    parent: str,
    error: BaseException,
    status: str,
) -> None:
    with pytest.raises(type(error)):
        train(config, services, Notes("Judge", error), clock, resume=True)
    assert status_of(client, parent) == status
    assert client.get_run(parent).data.tags[ERROR] == (str(error) or "KeyboardInterrupt")


def test_data_that_cannot_be_read_leave_no_run(
    config: Config, services: Services, client: TrackingClient, parent: str, folder: Path
) -> None:
    data = config.data.model_copy(update={"path": str(folder / "nowhere.csv")})
    broken = config.model_copy(update={"data": data})
    experiment = client.get_run(parent).info.experiment_id
    before = len(client.search_runs([experiment]))
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        train(broken, services, Notes(), clock)
    assert len(client.search_runs([experiment])) == before


def test_a_champion_of_another_task_is_told_before_anything_is_tuned(
    config: Config, services: Services, first: TrainReport
) -> None:
    data = config.data.model_copy(update={"units": "kW"})
    other, notes = config.model_copy(update={"data": data}), Notes()
    with pytest.raises(ConfigError, match=r"version 1 .* units 'kW' against 'MW'.* `name`"):
        train(other, services, notes, clock)
    assert [step.split(":")[0] for step in notes.steps] == ["Prepare", "Prepared"]


def test_the_test_span_does_not_choose_the_candidate(
    config: Config, services: Services, first: TrainReport
) -> None:
    """Validation scores are turned round: the best model of the test span came last there."""
    study = study_of(config, services, first)
    best = study / "artifacts" / first.candidate / "result.json"
    kept = best.read_bytes()
    try:
        best.write_text(json.dumps(json.loads(kept) | {"valid_score": 1e9}))
        report = train(config, services, Notes(), later, resume=True)
    finally:
        best.write_bytes(kept)
    values = {one.name: one.scored.value for one in report.judged}
    assert min(values, key=values.__getitem__) == first.candidate
    scores = {o.trial_id: o.valid_score or 0.0 for o in report.study.outcomes}
    assert report.candidate == min(scores, key=scores.__getitem__) != first.candidate
    assert not report.promoted
    assert report.champion is not None
    assert report.champion.finalist.version == 1
    assert report.champion_name == f"version 1 ({first.version.kind})"
    assert report.champion_name in [board.model for board in report.boards]
    refusal = list(services.registry().decisions().values())[-1]
    assert (refusal["accepted"], refusal["version"]) == (False, report.version.version)
    assert refusal["champion_version"] == 1
    assert refusal["reason"].startswith(f"{report.candidate} (scaled_pinball")
    assert services.registry().champion() == first.version


def test_the_finished_study_is_judged_again_without_ray_or_new_trials(
    config: Config, services: Services, first: TrainReport
) -> None:
    judged, champion = judge_again(config, services, Notes())
    assert [one.name for one in judged] == [one.name for one in first.judged]
    assert champion is not None
    same = next(one for one in judged if one.name == first.candidate)
    np.testing.assert_array_equal(same.scored.values, champion.scored.values)
    other = config.model_copy(update={"tune": config.tune.model_copy(update={"seed": 9})})
    with pytest.raises(Unavailable, match="`flts train` runs one"):
        judge_again(other, services, Notes())


def test_too_few_windows_end_the_command_with_the_reason_and_code_3(
    folder: Path, services: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump(settings(folder) | {"mlflow": {"uri": services.mlflow_uri}}))
    before = signal.getsignal(signal.SIGTERM)
    try:
        overrides = ("split.test=0.04", "models.gru.trials=0")
        sets = [part for one in overrides for part in ("--set", one)]
        code = train_job.main(["--config", str(path), *sets])
    finally:
        signal.signal(signal.SIGTERM, before)
        structlog.reset_defaults()
    assert code == GateRefused.exit_code == 3
    assert "is refused: too few test windows" in capsys.readouterr().out


def test_a_worse_version_is_refused(config: Config, services: Services, first: TrainReport) -> None:
    naive = next(o for o in first.study.outcomes if o.kind == "seasonal_naive")
    assert naive.artifact is not None
    registry = services.registry()
    worse = registry.add_version(naive.artifact, naive.run_id or "", first.prepared.hash)
    with pytest.raises(GateRefused, match="is refused: ") as refusal:
        promote_version(config, services, first.prepared, worse.version, NOW, Notes())
    assert refusal.value.exit_code == 3
    assert registry.champion() == first.version
    kept = list(registry.decisions().values())
    assert str(refusal.value) in [record["reason"] for record in kept]


def test_the_first_champion_cannot_be_rolled_back(services: Services, first: TrainReport) -> None:
    with pytest.raises(Unavailable, match=r"version 1 is the first champion"):
        services.registry().rollback(NOW, "bad nights")


def test_a_better_version_is_promoted_and_can_be_rolled_back(
    config: Config,
    services: Services,
    client: TrackingClient,
    first: TrainReport,
    tmp_path: Path,
) -> None:
    model, data = tmp_path / "model", first.prepared.arrays()
    artifact.save(fit_fully("ar", data, task_of(config), {}, Compute()), model)
    registry = services.registry()
    better = registry.add_version(model, first.version.run_id, first.prepared.hash)
    made = promote_version(config, services, first.prepared, better.version, NOW, LogNarrator())
    assert "the champion version 1" in made.reason
    assert registry.champion() == better
    entry = registry.rollback(NOW, "bad nights")
    assert (entry.champion, entry.previous) == (1, better.version)
    assert registry.champion() == first.version
    aliases = client.get_registered_model("load").aliases
    assert (aliases["champion"], aliases["previous"]) == ("1", str(better.version))


def test_a_killed_training_is_taken_up_where_it_was(
    folder: Path, services: Services, client: TrackingClient, tmp_path: Path
) -> None:
    raw = settings(folder, "killed") | {
        "name": "killed",
        "mlflow": {"uri": services.mlflow_uri},
        "ray": {"address": ray.get_runtime_context().gcs_address},
    }
    path, config = tmp_path / "killed.yaml", parse_config(raw)
    path.write_text(yaml.safe_dump(raw))
    command = [sys.executable, "-m", "flts_ray.jobs.train", "--config", str(path)]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        over = _wait_for_trials(driver, Path(config.root), ("seasonal_naive-01", "ar-01"))
        os.killpg(driver.pid, signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
    assert over, (tmp_path / "log").read_text()
    study = over[0].parents[2]
    assert not (study / "artifacts" / "gru-01" / "result.json").exists()
    before, parent = written(study), (study / "parent_run").read_text()
    assert status_of(client, parent) == "RUNNING"

    own = Services(config, Path(config.root), services.store.open(config.root), services.mlflow_uri)
    report = train(config, own, Notes(), clock, resume=True)
    assert report.study.study_id == study.name
    assert [outcome.status for outcome in report.study.outcomes] == ["finished"] * 3
    assert report.promoted
    assert {name: written(study)[name] for name in before} == before
    assert (study / "parent_run").read_text() == parent
    assert status_of(client, parent) == "FINISHED"
    ends = {(name, run.info.status) for name, run in trials(client, parent).items()}
    assert {(f"{kind}-01", "FINISHED") for kind in KINDS} <= ends


def _wait_for_trials(
    driver: subprocess.Popen[bytes], root: Path, names: tuple[str, ...], timeout_s: float = 240
) -> list[Path]:
    """Results of the named trials as soon as all are there; empty if the driver ended before."""
    limit = time.monotonic() + timeout_s
    while driver.poll() is None and time.monotonic() < limit:
        found = [p for n in names for p in root.glob(f"studies/*/artifacts/{n}/result.json")]
        if len(found) == len(names):
            return found
        time.sleep(0.01)
    return []
