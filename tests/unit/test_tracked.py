from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from flts_ray.config import Config, parse_config
from flts_ray.errors import Conflict, DataError, Unavailable
from flts_ray.runs import CONFIG_HASH, PREPARED_HASH, StudyRuns
from flts_ray.tune.outcome import StudyInterrupted, StudyLogFailed, StudyResult
from flts_ray.tune.tracked import tracked_run


@dataclass
class MemoryRuns:
    """The calls of StudyRuns that a tracked study makes."""

    started: list[tuple[Mapping[str, Any], Mapping[str, str]]] = field(default_factory=list)
    ended: list[tuple[str, str, str | None]] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)
    children: dict[str, str] = field(default_factory=dict)
    gone: bool = False
    away: bool = False

    def start_study(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        self.started.append((params, tags))
        return f"run{len(self.started)}"

    def resume_study(self, run_id: str) -> str:
        if self.gone:
            raise DataError(f"run {run_id} is not in MLflow; start a new study")
        self.resumed.append(run_id)
        return run_id

    def log_json(self, run_id: str, value: Any, name: str) -> None:
        self.files[f"{run_id}/{name}"] = value

    def trials(self, parent: str) -> list[Any]:
        if self.away:
            raise Unavailable("MLflow is away")
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=run_id, status=status))
            for run_id, status in self.children.items()
        ]

    def end_trial(
        self, run_id: str, status: str, metrics: Mapping[str, float], error: str | None = None
    ) -> None:
        self.ended.append((run_id, status, error))

    def end_study(self, run_id: str, status: str) -> None:
        self.ended.append((run_id, status, None))


@pytest.fixture
def config() -> Config:
    return parse_config({"name": "load", "data": {"path": "x.csv"}, "task": {"horizon": 6}})


@pytest.fixture
def runs() -> MemoryRuns:
    return MemoryRuns()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The folder of a study with one trial that was logged."""
    folder = tmp_path / "studies" / "abc"
    trial = folder / "artifacts" / "ar-01"
    trial.mkdir(parents=True)
    for name in ("result.json", "run.json"):
        (trial / name).write_text(json.dumps({"run_id": "old"}))
    return folder


def run(
    config: Config,
    runs: MemoryRuns,
    study: Path,
    error: BaseException | None = None,
    *,
    resume: bool = False,
) -> str:
    with tracked_run(config, "prep", study, cast(StudyRuns, runs), resume=resume) as parent:
        if error is not None:
            raise error
    return parent


def results(study: Path) -> list[str]:
    return sorted(path.name for path in study.glob("artifacts/*/*"))


def test_a_new_study_has_a_run_of_its_own_and_starts_from_nothing(
    config: Config, runs: MemoryRuns, study: Path
) -> None:
    (study / "spent.json").write_text('{"seconds": 9}')
    assert run(config, runs, study) == "run1"
    ((params, tags),) = runs.started
    assert (params["name"], params["horizon"]) == ("load", 6)
    assert tags == {CONFIG_HASH: config.digest(), PREPARED_HASH: "prep"}
    assert runs.files["run1/config"] == config.model_dump(mode="json")
    assert runs.ended == [("run1", "FINISHED", None)]
    assert results(study) == []
    assert not (study / "spent.json").exists()


def test_a_resumed_study_goes_on_in_its_run_and_keeps_its_trials(
    config: Config, runs: MemoryRuns, study: Path
) -> None:
    first = run(config, runs, study, resume=True)
    assert results(study) == ["result.json"]
    (study / "artifacts" / "ar-01" / "run.json").write_text("{}")
    assert run(config, runs, study, resume=True) == first
    assert runs.resumed == [first]
    assert len(runs.started) == 1
    assert results(study) == ["result.json", "run.json"]


def test_a_run_that_is_gone_is_replaced_and_its_trials_are_logged_again(
    config: Config, runs: MemoryRuns, study: Path
) -> None:
    run(config, runs, study, resume=True)
    (study / "artifacts" / "ar-01" / "run.json").write_text("{}")
    runs.gone = True
    with structlog.testing.capture_logs() as events:
        assert run(config, runs, study, resume=True) == "run2"
    assert [event["event"] for event in events] == ["study_run_replaced"]
    assert results(study) == ["result.json"]
    runs.gone = False
    assert run(config, runs, study, resume=True) == "run2"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (StudyInterrupted(StudyResult("abc", ())), "KILLED", "study abc was interrupted"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (StudyLogFailed("MLflow was away", StudyResult("abc", ())), "FAILED", "MLflow was away"),
        (DataError("no windows"), "FAILED", "no windows"),
        (RuntimeError(), "FAILED", "RuntimeError"),
    ],
)
def test_an_error_closes_the_run_and_the_trials_that_were_left(
    config: Config, runs: MemoryRuns, study: Path, error: BaseException, status: str, said: str
) -> None:
    runs.children = {"t1": "FINISHED", "t2": "RUNNING"}
    with pytest.raises(type(error)):
        run(config, runs, study, error)
    trial, parent = runs.ended
    assert trial == ("t2", "KILLED", None)
    assert parent[:2] == ("run1", status)
    assert said in str(parent[2])


def test_an_error_keeps_its_message_when_the_server_is_away(
    config: Config, runs: MemoryRuns, study: Path
) -> None:
    runs.away = True
    with (
        structlog.testing.capture_logs() as events,
        pytest.raises(DataError, match="no windows"),
    ):
        run(config, runs, study, DataError("no windows"))
    assert [(event["event"], event["run_id"]) for event in events] == (
        [("study_run_left_open", "run1")]
    )


def test_two_processes_cannot_work_on_one_study(
    config: Config, runs: MemoryRuns, study: Path
) -> None:
    with (
        tracked_run(config, "prep", study, cast(StudyRuns, runs), resume=True),
        pytest.raises(Conflict, match="another process is training this study"),
    ):
        run(config, runs, study)
    assert results(study) == ["result.json"]
    assert run(config, runs, study) == "run2"
