from __future__ import annotations

from pathlib import Path

import pytest

from flts_ray.config import Config, parse_config
from flts_ray.errors import DataError
from flts_ray.models import artifact
from flts_ray.models.base import fit_fully
from flts_ray.pipeline import finalists_of
from flts_ray.tune.outcome import StudyResult, TrialOutcome
from tests.served import TASK
from tests.synthetic import seasonal_set


@pytest.fixture
def config() -> Config:
    return parse_config({"name": "load", "data": {"path": "x.csv"}, "task": {"horizon": 6}})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    artifact.save(fit_fully("seasonal_naive", seasonal_set(length=200), TASK), tmp_path / "m")
    return tmp_path / "m"


def test_the_best_usable_trial_of_each_kind_is_a_finalist(config: Config, model: Path) -> None:
    outcomes = (
        TrialOutcome("seasonal_naive-01", "seasonal_naive", {}, "finished", None, 0.5,
                     artifact=model, run_id="r1"),
        TrialOutcome("gru-01", "gru", {}, "finished", None, 0.4, artifact=model),
        TrialOutcome("gru-02", "gru", {}, "stopped", None, 0.3, artifact=model),
        TrialOutcome("gru-03", "gru", {}, "failed", "no memory", 0.1),
        TrialOutcome("lstm-01", "lstm", {}),
    )  # fmt: skip
    found = finalists_of(config, StudyResult("abc", outcomes))
    assert [(one.name, one.valid_score, one.run_id) for one in found] == [
        ("seasonal_naive-01", 0.5, "r1"),
        ("gru-02", 0.3, None),
    ]
    assert all(one.folder == model for one in found)


def test_without_the_baseline_it_says_what_went_wrong(config: Config, model: Path) -> None:
    outcomes = (
        TrialOutcome("seasonal_naive-01", "seasonal_naive", {}, "failed", "too short a season"),
        TrialOutcome("ar-01", "ar", {}, "finished", None, 0.4, artifact=model),
    )
    with pytest.raises(DataError, match="no usable trial of 'seasonal_naive'") as error:
        finalists_of(config, StudyResult("abc", outcomes))
    assert error.value.field == "gate.baseline"
    assert error.value.problems == ("seasonal_naive-01: too short a season",)
    with pytest.raises(DataError, match="--resume"):
        finalists_of(config, StudyResult("abc", outcomes[1:]))
