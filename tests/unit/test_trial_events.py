from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flts_ray.config import parse_config
from flts_ray.events import Kind
from flts_ray.tune.outcome import StudyInterrupted, StudyResult, TrialOutcome, write_outcome
from flts_ray.tune.progress import StudyView
from flts_ray.tune.trial_events import TrialEvents, study_events
from tests.unit.test_recorder import running

CONFIG = parse_config({"name": "load", "data": {"path": "x.csv"}})


class Told:
    """Events that are remembered."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, Any]] = []

    def publish(self, kind: Kind, data: Mapping[str, Any]) -> None:
        assert kind == "model-training"
        self.seen.append(data)

    @property
    def brief(self) -> list[tuple[str | None, str]]:
        return [(data["trial"], data["status"]) for data in self.seen]


def view(*trials: TrialOutcome) -> StudyView:
    return StudyView(2, 0, 0, 0, trials, 1.0, 10.0, {})


def end(study: Path, one: TrialOutcome, status: Any, error: str | None = None) -> None:
    done = TrialOutcome(one.trial_id, one.kind, {}, status, error)
    write_outcome(study, done)


def log(study: Path, trial_id: str) -> None:
    (study / "artifacts" / trial_id / "run.json").write_text(f'{{"run_id": "r-{trial_id}"}}')


def test_each_start_and_end_is_told_once(tmp_path: Path) -> None:
    told = Told()
    events = TrialEvents(told, CONFIG, "parent", tmp_path)
    ar, gru = running(tmp_path, "ar-01"), running(tmp_path, "gru-01")
    events(view(ar))
    events(view(ar, gru))
    end(tmp_path, ar, "finished")
    log(tmp_path, "ar-01")
    events(view(gru))
    end(tmp_path, gru, "failed", "no memory")
    log(tmp_path, "gru-01")
    events(view())
    events(view())
    assert told.brief == [
        ("ar-01", "RUNNING"), ("gru-01", "RUNNING"), ("ar-01", "SUCCESS"), ("gru-01", "FAILED"),
    ]  # fmt: skip
    assert told.seen[-1] == {
        "model_type": "gru", "config_hash": CONFIG.digest(), "run_id": "r-gru-01",
        "experiment": "load", "status": "FAILED", "error": "no memory", "trial": "gru-01",
        "study_run": "parent",
    }  # fmt: skip


def test_an_end_waits_for_its_run_id_until_the_study_is_over(tmp_path: Path) -> None:
    told = Told()
    events = TrialEvents(told, CONFIG, "parent", tmp_path)
    ar = running(tmp_path, "ar-01")
    events(view(ar))
    end(tmp_path, ar, "stopped")
    events(view())
    assert told.brief == [("ar-01", "RUNNING")]
    earlier = TrialOutcome("gru-01", "gru", {}, "finished", run_id="r")
    events.ended([TrialOutcome("ar-01", "ar", {}, "stopped", run_id="late"), earlier])
    assert told.brief[1:] == [("ar-01", "SUCCESS")]
    assert told.seen[-1]["run_id"] == "late"


def test_a_trial_that_starts_again_is_not_told_twice(tmp_path: Path) -> None:
    told = Told()
    events = TrialEvents(told, CONFIG, "parent", tmp_path)
    ar = running(tmp_path, "ar-01")
    for now in (view(ar), view(), view(ar)):
        events(now)
    events.ended([TrialOutcome.from_json({**ar.to_json(), "artifact": None}, tmp_path)])
    assert told.brief == [("ar-01", "RUNNING")]


def test_the_study_is_told_with_its_end(tmp_path: Path) -> None:
    told = Told()
    with study_events(told, CONFIG, "parent", tmp_path):
        assert told.brief == [(None, "RUNNING")]
    assert told.brief == [(None, "RUNNING"), (None, "SUCCESS")]
    assert [data["run_id"] for data in told.seen] == ["parent"] * 2


def test_an_interrupted_study_tells_what_had_ended(tmp_path: Path) -> None:
    told = Told()
    ar, gru = running(tmp_path, "ar-01"), running(tmp_path, "gru-01")
    with (
        pytest.raises(StudyInterrupted),
        study_events(told, CONFIG, "parent", tmp_path) as events,
    ):
        events(view(ar, gru))
        end(tmp_path, ar, "finished")
        raise StudyInterrupted(StudyResult("abc", ()))
    assert told.brief[-2:] == [("ar-01", "SUCCESS"), (None, "FAILED")]
    assert "study abc was interrupted" in told.seen[-1]["error"]
