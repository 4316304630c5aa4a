from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import ArtifactError
from flts_ray.tune.outcome import (
    StudyResult,
    TrialOutcome,
    in_plan_order,
    read_outcome,
    study_id,
    trial_folder,
    write_json,
    write_outcome,
)
from flts_ray.tune.space import TrialPlan


def outcome(trial_id: str, score: float | None, **changes: object) -> TrialOutcome:
    kind = trial_id.partition("-")[0]
    made = TrialOutcome(
        trial_id, kind, {"lr": 0.1}, "finished", valid_score=score, artifact=Path("model-0001")
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def config(**sections: object) -> Config:
    return parse_config({"name": "load", "data": {"path": "load.csv"}, **sections})


def test_a_written_outcome_is_read_back(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path, "gru-01")
    written = outcome("gru-01", 0.5, artifact=folder / "model-0002", history=({"a": 1.0},))
    write_outcome(tmp_path, written)
    assert read_outcome(tmp_path, "gru-01") == written
    write_json(folder / "run.json", {"run_id": "r1"})
    assert read_outcome(tmp_path, "gru-01") == replace(written, run_id="r1")


def test_a_study_that_was_moved_finds_its_artifacts(tmp_path: Path) -> None:
    write_outcome(tmp_path / "old", outcome("gru-01", 0.5))
    (tmp_path / "old").rename(tmp_path / "new")
    found = read_outcome(tmp_path / "new", "gru-01")
    assert found is not None
    assert found.artifact == trial_folder(tmp_path / "new", "gru-01") / "model-0001"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"trial_id": 1}', "\x00"])
def test_a_damaged_result_names_the_file_and_the_way_out(tmp_path: Path, text: str) -> None:
    write_outcome(tmp_path, outcome("gru-01", 0.5))
    path = trial_folder(tmp_path, "gru-01") / "result.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"result\.json.*delete"):
        read_outcome(tmp_path, "gru-01")


def test_a_trial_without_a_result_is_not_over(tmp_path: Path) -> None:
    assert read_outcome(tmp_path, "gru-01") is None


def test_the_best_of_each_kind_may_have_been_stopped_but_not_failed() -> None:
    stopped = outcome("gru-02", 0.3, status="stopped")
    result = StudyResult(
        "s",
        (
            outcome("ar-01", 0.5),
            outcome("ar-02", 0.5),
            outcome("gru-01", 0.4),
            stopped,
            outcome("gru-03", 0.1, status="failed", artifact=None),
            outcome("lstm-01", None, status="pending", artifact=None),
        ),
    )
    best = result.best_per_kind()
    assert {kind: o.trial_id for kind, o in best.items()} == {"ar": "ar-01", "gru": "gru-02"}


def test_plans_without_an_outcome_are_pending() -> None:
    plans = [TrialPlan("ar-01", "ar", {}), TrialPlan("gru-01", "gru", {"lr": 1})]
    found = in_plan_order(plans, {"ar-01": outcome("ar-01", 1.0)})
    assert [(o.trial_id, o.status) for o in found] == [
        ("ar-01", "finished"),
        ("gru-01", "pending"),
    ]


def test_the_study_id_changes_with_what_changes_a_trial_and_with_nothing_else() -> None:
    base = study_id(config(), "hash")
    assert study_id(config(), "hash") == base
    assert study_id(config(tune={"budget_s": 5, "cpus_per_trial": 2}), "hash") == base
    others = [
        study_id(config(), "other"),
        study_id(config(tune={"seed": 1}), "hash"),
        study_id(config(task={"horizon": 7}), "hash"),
        study_id(config(judge={"score": "mae"}), "hash"),
        study_id(config(models={"seasonal_naive": {}, "ar": {"trials": 2}}), "hash"),
    ]
    assert len({base, *others}) == 6
