"""Studies on a real local Ray: results, failures, killed workers and drivers, Ctrl-C, resuming."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from flts_ray.config import Config, parse_config
from flts_ray.models import artifact
from flts_ray.tune.logbook import RunStatus
from flts_ray.tune.outcome import StudyInterrupted, StudyLogFailed, StudyResult
from flts_ray.tune.progress import StudyView
from flts_ray.tune.recorder import Recorder
from flts_ray.tune.search import DIED
from flts_ray.tune.study import run_study
from tests.synthetic import seasonal_set

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DATA = seasonal_set(n_series=2, length=400)
SMALL = {"hidden": 4, "windows_per_epoch": 64, "batch": 32, "patience": 1000}
AR = {"trials": 4, "params": {"ridge": {"choice": [0.1, 1e-6, 1e-4, 1e-2]}}}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    context = ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield str(context.address_info["gcs_address"])
    ray.shutdown()


class Notes:
    """A log that keeps everything; `away` makes every call fail."""

    def __init__(self, away: bool = False) -> None:
        self.away = away
        self.names: dict[str, str] = {}
        self.ends: list[tuple[str, RunStatus, str | None]] = []
        self.epochs: list[tuple[str, int]] = []
        self.folders: list[str] = []

    def start_trial(self, parent: str, name: str, kind: str, params: Mapping[str, Any]) -> str:
        if self.away:
            raise ConnectionError("tracking server is away")
        run_id = f"{parent}-{len(self.names)}"
        self.names[run_id] = name
        return run_id

    def log_epoch(self, run_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
        assert metrics["valid_score"] > 0
        self.epochs.append((self.names[run_id], epoch))

    def end_trial(
        self, run_id: str, status: RunStatus, metrics: Mapping[str, float], error: str | None
    ) -> None:
        self.ends.append((self.names[run_id], status, error))

    def log_folder(self, run_id: str, folder: Path, artifact_path: str) -> None:
        assert (folder / "manifest.json").exists()
        self.folders.append(self.names[run_id])


def config(
    gru: Mapping[str, Any] | None = None, trials: int = 1, budget_s: float = 120, **kinds: Any
) -> Config:
    models: dict[str, Any] = {"seasonal_naive": {}, "ar": {}, **kinds}
    if gru is not None:
        models["gru"] = {"trials": trials, "params": {**SMALL, **gru}}
    return parse_config(
        {
            "name": "load",
            "data": {"path": "unused.csv"},
            "task": {"horizon": 4},
            "models": models,
            "tune": {"budget_s": budget_s, "validation_stride": 8},
        }
    )


def statuses(result: StudyResult) -> dict[str, str]:
    return {outcome.trial_id: outcome.status for outcome in result.outcomes}


def written(study: Path, *trial_ids: str) -> dict[Path, int]:
    """Every file of these trials with the time it was written."""
    folders = [study / "artifacts" / trial_id for trial_id in trial_ids]
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


def when_running(kind: str, act: Callable[[int], None], times: int) -> Callable[[StudyView], None]:
    """Call `act` with the pid of a running trial that has an epoch, at most `times` times."""
    hit: set[int] = set()

    def watch(view: StudyView) -> None:
        for outcome in view.running:
            fresh = outcome.pid is not None and outcome.pid not in hit
            if outcome.kind == kind and outcome.epochs and fresh and len(hit) < times:
                assert outcome.pid is not None
                hit.add(outcome.pid)
                act(outcome.pid)

    return watch


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def never(view: StudyView) -> None:
    assert not view.running, "a finished study started a trial"


def test_a_study_runs_every_trial_and_records_what_fails(tmp_path: Path) -> None:
    notes = Notes()
    bad = {"trials": 3, "params": {"lr": {"choice": [-1, -2, -3]}}}
    result = run_study(config(ar=AR, lstm=bad), DATA, tmp_path / "s1", notes, "parent")
    found = statuses(result)
    assert list(found) == [
        "seasonal_naive-01",
        "ar-01",
        "lstm-01",
        "ar-02",
        "lstm-02",
        "ar-03",
        "lstm-03",
        "ar-04",
    ]
    assert {name for name, status in found.items() if status == "failed"} == {
        "lstm-01",
        "lstm-02",
        "lstm-03",
    }
    assert all("lr" in str(o.error) for o in result.outcomes if o.status == "failed")
    best = result.best_per_kind()
    assert set(best) == {"seasonal_naive", "ar"}
    assert best["ar"].valid_score == min(
        o.valid_score for o in result.outcomes if o.kind == "ar" and o.valid_score is not None
    )
    for outcome in best.values():
        assert outcome.artifact is not None
        assert artifact.load(outcome.artifact).spec.kind == outcome.kind
    assert result.workers <= 2
    assert sorted(notes.names.values()) == sorted(found)
    assert {name for name, status, _ in notes.ends if status == "FAILED"} == {
        "lstm-01",
        "lstm-02",
        "lstm-03",
    }
    assert len(notes.folders) == 5
    assert all(notes.names[str(o.run_id)] == o.trial_id for o in result.outcomes)

    before = written(tmp_path / "s1", *found)
    again = run_study(config(ar=AR, lstm=bad), DATA, tmp_path / "s1", notes, "parent", True, never)
    assert again == result
    assert written(tmp_path / "s1", *found) == before
    assert len(notes.names) == len(found)


def test_a_network_is_tuned_by_epochs_and_the_worse_are_stopped(tmp_path: Path) -> None:
    notes = Notes()
    choices = {"lr": {"choice": [1e-2, 1e-7, 2e-7, 3e-7, 4e-7]}, "skip": "none", "epochs": 8}
    settings = config({"average": 0.0, **choices}, trials=5)
    result = run_study(settings, DATA, tmp_path / "s2", notes, "parent")
    found = {o.trial_id: o for o in result.outcomes if o.kind == "gru"}
    assert {o.status for o in found.values()} == {"finished", "stopped"}
    assert found["gru-01"].status == "finished"
    assert result.best_per_kind()["gru"].trial_id == "gru-01"
    assert [epoch for name, epoch in notes.epochs if name == "gru-01"] == list(range(1, 9))
    for outcome in found.values():
        assert outcome.artifact is not None
        assert artifact.load(outcome.artifact).spec.kind == "gru"
        if outcome.status == "stopped":
            assert 2 <= outcome.epochs < 8


def test_a_killed_worker_costs_its_trial_one_more_try(tmp_path: Path) -> None:
    notes = Notes()
    watch = when_running("gru", kill, times=1)
    result = run_study(
        config({"epochs": 5}), DATA, tmp_path / "s3", notes, "parent", on_progress=watch
    )
    assert set(statuses(result).values()) == {"finished"}
    ends = [(status, error) for name, status, error in notes.ends if name == "gru-01"]
    assert [status for status, _ in ends] == ["KILLED", "FINISHED"]
    assert "worker process died" in str(ends[0][1])


def test_a_worker_killed_again_is_a_failed_trial_and_the_study_goes_on(tmp_path: Path) -> None:
    watch = when_running("gru", kill, times=2)
    result = run_study(config({"epochs": 5}, ar=AR), DATA, tmp_path / "s4", on_progress=watch)
    found = statuses(result)
    assert found.pop("gru-01") == "failed"
    assert set(found.values()) == {"finished"}
    assert [o.error for o in result.outcomes if o.status == "failed"] == [DIED]


def test_baselines_complete_however_small_the_budget(tmp_path: Path) -> None:
    settings = config({"epochs": 10_000}, budget_s=0.01)
    result = run_study(settings, DATA, tmp_path / "s5")
    found = statuses(result)
    assert (found["seasonal_naive-01"], found["ar-01"]) == ("finished", "finished")
    assert found["gru-01"] in ("pending", "stopped")
    again = run_study(settings, DATA, tmp_path / "s5", resume=True, on_progress=never)
    assert again == result


def test_the_budget_ends_a_network_with_its_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_trained(recorder: Recorder) -> bool:
        return any(o.kind == "gru" and o.epochs for o in recorder.view().running)

    monkeypatch.setattr(Recorder, "time_is_up", property(has_trained))
    result = run_study(config({"epochs": 10_000}), DATA, tmp_path / "s6")
    last = result.outcomes[-1]
    assert (last.trial_id, last.status) == ("gru-01", "stopped")
    assert last.artifact is not None
    assert artifact.load(last.artifact).spec.kind == "gru"


def test_ctrl_c_keeps_what_is_finished_and_resuming_runs_the_rest(tmp_path: Path) -> None:
    study = tmp_path / "s7"
    settings = config({"epochs": 6})
    press = when_running("gru", lambda pid: signal.raise_signal(signal.SIGINT), times=1)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StudyInterrupted) as stopped:
        run_study(settings, DATA, study, on_progress=press)
    assert signal.getsignal(signal.SIGINT) is before
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert statuses(stopped.value.result) == {
        "seasonal_naive-01": "finished",
        "ar-01": "finished",
        "gru-01": "pending",
    }
    finished = written(study, "seasonal_naive-01", "ar-01")
    result = run_study(settings, DATA, study, resume=True)
    assert set(statuses(result).values()) == {"finished"}
    assert written(study, "seasonal_naive-01", "ar-01") == finished


def test_a_killed_driver_is_resumed_without_running_finished_trials_again(
    tmp_path: Path, cluster: str
) -> None:
    study = tmp_path / "s8"
    code = (
        "import sys; from pathlib import Path; from tests.integration.test_study import doomed; "
        "doomed(sys.argv[1], Path(sys.argv[2]))"
    )
    driver = subprocess.run(
        [sys.executable, "-c", code, cluster, str(study)], cwd=ROOT, timeout=120, check=False
    )
    assert driver.returncode == -signal.SIGKILL
    finished = ("seasonal_naive-01", "ar-01")
    before = written(study, *finished)
    assert sum(path.name == "result.json" for path in before) == len(finished)
    notes = Notes()
    result = run_study(config({"epochs": 6}), DATA, study, notes, "parent", resume=True)
    assert set(statuses(result).values()) == {"finished"}
    assert {path: written(study, *finished)[path] for path in before} == before
    assert sorted(notes.names.values()) == ["ar-01", "gru-01", "seasonal_naive-01"]


def doomed(address: str, study: Path) -> None:
    """A driver that dies as soon as the network has an epoch."""
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    die = when_running("gru", lambda pid: kill(os.getpid()), times=1)
    run_study(config({"epochs": 6}), DATA, study, on_progress=die)


def test_a_log_that_fails_is_told_at_the_end_and_costs_no_trial(tmp_path: Path) -> None:
    study = tmp_path / "s9"
    with pytest.raises(StudyLogFailed, match="tracking server is away") as failed:
        run_study(config(ar=AR), DATA, study, Notes(away=True), "parent")
    kept = failed.value.result
    assert set(statuses(kept).values()) == {"finished"}
    notes = Notes()
    result = run_study(config(ar=AR), DATA, study, notes, "parent", True, never)
    assert sorted(notes.names.values()) == sorted(statuses(result))
    assert [o.artifact for o in result.outcomes] == [o.artifact for o in kept.outcomes]


def test_a_new_start_runs_everything_again(tmp_path: Path) -> None:
    study = tmp_path / "s10"
    run_study(config(), DATA, study)
    before = written(study, "ar-01")
    run_study(config(), DATA, study)
    assert written(study, "ar-01").keys() == before.keys()
    assert written(study, "ar-01") != before
