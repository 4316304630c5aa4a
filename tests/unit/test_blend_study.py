"""The blend of a study: learned from the trials' forecasts, made of their refits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from flts_ray.config import Config, parse_config
from flts_ray.errors import DataError
from flts_ray.evaluate.finalists import Finalist, best_on_validation
from flts_ray.models import artifact
from flts_ray.models.base import Compute, Fitted, Task, fit_fully, forecaster
from flts_ray.models.blend import Blend
from flts_ray.prepare.arrays import SeriesArrays, origins_in, windows_at
from flts_ray.tune import blend as study_blend
from flts_ray.tune.blend import blend_best, blend_folder, validation_origins
from flts_ray.tune.blend_log import logged_blend, params_of
from flts_ray.tune.outcome import StudyResult, TrialOutcome, trial_folder
from tests.synthetic import seasonal_set

TASK = Task(6, (0.025, 0.1, 0.5, 0.9, 0.975))
KINDS = ("seasonal_naive", "ar", "prophet")


def config(**sections: Any) -> Config:
    raw = {"name": "load", "data": {"path": "load.csv"}, "task": {"horizon": 6}}
    return parse_config({**raw, "task": {"horizon": 6, "quantiles": list(TASK.levels)}, **sections})


@cache
def data() -> SeriesArrays:
    return seasonal_set(n_series=2, length=900, noise=0.3)


@cache
def fitted(kind: str) -> Fitted:
    return fit_fully(kind, data(), TASK, {"lags": 5, "ridge": 3.0} if kind == "ar" else {})


@cache
def refit(kind: str) -> Fitted:
    return forecaster(kind).refit(fitted(kind), data(), Compute())


def study_of(folder: Path) -> tuple[StudyResult, list[Finalist]]:
    outcomes, finalists = [], []
    for kind, score in zip(KINDS, (0.30, 0.20, 0.25), strict=True):
        name = f"{kind}-01"
        own, again = (trial_folder(folder, name) / part for part in ("model-0001", "refit"))
        artifact.save(fitted(kind), own)
        artifact.save(refit(kind), again)
        outcomes.append(TrialOutcome(name, kind, {}, "finished", valid_score=score, artifact=own))
        finalists.append(Finalist(name, refit(kind), again, f"run-{kind}", score))
    return StudyResult("study", tuple(outcomes)), finalists


def test_weights_come_from_the_trials_and_members_from_the_refits(tmp_path: Path) -> None:
    study, finalists = study_of(tmp_path)
    made = blend_best(config(), data(), tmp_path, study, finalists)
    assert made.finalist is not None
    blend = made.finalist.fitted
    assert isinstance(blend, Blend)
    assert made.finalist.folder == blend_folder(tmp_path)
    assert set(blend.names) <= {one.name for one in finalists}
    asked = windows_at(data(), *origins_in(data(), "test", 200, 6, 11), blend.spec.lookback, 6)
    for name, member in zip(blend.names, blend.members, strict=True):
        kind = name.removesuffix("-01")
        expected = refit(kind).forecast(asked.last(refit(kind).spec.lookback))
        found = member.forecast(asked.last(member.spec.lookback))
        assert found.mean.tobytes() == expected.mean.tobytes()
    assert [board.model for board in made.boards] == [*(f"{kind}-01" for kind in KINDS), "blend"]
    assert f"{blend.names[0]} 0." in made.said


def test_the_blend_leads_only_if_it_beats_its_best_member_on_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, finalists = study_of(tmp_path)
    made = blend_best(config(), data(), tmp_path, study, finalists)
    assert made.finalist is not None
    beaten = " it beats " in made.said
    assert (made.finalist.valid_score is not None) == beaten
    strict = config(gate={"level": 0.000001})
    refused = blend_best(strict, data(), tmp_path, study, finalists)
    assert refused.finalist is not None
    assert refused.finalist.valid_score is None
    assert "does not beat ar-01" in refused.said
    assert best_on_validation([*finalists, refused.finalist]).name == "ar-01"


def test_the_validation_score_is_of_weights_that_have_not_seen_the_window(tmp_path: Path) -> None:
    study, finalists = study_of(tmp_path)
    made = blend_best(config(), data(), tmp_path, study, finalists)
    board = made.boards[-1]
    alone = {one.model: one.overall["scaled_pinball"] for one in made.boards[:-1]}
    assert board.overall["windows"] == made.boards[0].overall["windows"]
    assert board.overall["scaled_pinball"] < max(alone.values())
    assert sorted(board.per_series["unique_id"].to_pylist()) == ["s0", "s1"]


def test_the_test_span_has_no_say(tmp_path: Path) -> None:
    study, finalists = study_of(tmp_path)
    rng, y = np.random.default_rng(0), data().y.copy()
    for i in range(2):
        held = slice(int(data().offsets[i] + data().valid_end[i]), int(data().offsets[i + 1]))
        y[held] = rng.random(held.stop - held.start)
    first = blend_best(config(), data(), tmp_path, study, finalists).finalist
    again = blend_best(config(), replace(data(), y=y), tmp_path, study, finalists).finalist
    assert first is not None
    assert again is not None
    assert first.fitted.state()[0] == again.fitted.state()[0]
    for name, array in first.fitted.state()[1].items():
        assert again.fitted.state()[1][name].tobytes() == array.tobytes(), name


def test_it_can_be_switched_off_and_bounded(tmp_path: Path) -> None:
    study, finalists = study_of(tmp_path)
    off = blend_best(config(blend={"enabled": False}), data(), tmp_path, study, finalists)
    assert (off.finalist, off.said) == (None, "off (blend.enabled)")
    two = blend_best(config(blend={"max_members": 2}), data(), tmp_path, study, finalists)
    assert two.finalist is not None
    assert isinstance(two.finalist.fitted, Blend)
    assert len(two.finalist.fitted.members) == 2
    alone = blend_best(config(), data(), tmp_path, study, finalists[:1])
    assert (alone.finalist, alone.said) == (None, "none: it takes two models")


def test_what_goes_wrong_costs_the_study_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DataError("validation span: no series holds a window")

    study, finalists = study_of(tmp_path)
    monkeypatch.setattr(study_blend, "validation_origins", fail)
    with capture_logs() as logs:
        made = blend_best(config(), data(), tmp_path, study, finalists)
    assert made.finalist is None
    assert made.said == "none: validation span: no series holds a window"
    assert [line["event"] for line in logs] == ["blend_failed"]


def test_windows_are_those_of_the_trials_thinned_where_there_are_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [fitted("ar"), fitted("seasonal_naive")]
    usual = validation_origins(config(), data(), tmp_path, models)
    assert len(usual) == len(origins_in(data(), "validation", 48, 6, 1, 200)[0])
    monkeypatch.setattr(study_blend, "MAX_CELLS", 2 * 6 * 6 * 50)
    few = validation_origins(config(), data(), tmp_path, models)
    assert len(few) == 50
    assert set(few.series) == {0, 1}


class Runs:
    """The part of the tracking server that is asked."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, ...]] = []
        self.ended: list[tuple[Any, ...]] = []
        self.tables: list[tuple[str, str]] = []

    def start_trial(self, *about: Any) -> str:
        self.started.append(about)
        return "run-blend"

    def end_trial(self, *about: Any) -> None:
        self.ended.append(about)

    def log_table(self, run_id: str, table: Any, name: str) -> None:
        self.tables.append((run_id, name))


def test_the_blend_has_one_run_even_if_the_study_is_resumed(tmp_path: Path) -> None:
    study, finalists = study_of(tmp_path)
    runs: Any = Runs()
    made = blend_best(config(), data(), tmp_path, study, finalists)
    assert made.finalist is not None
    assert isinstance(made.finalist.fitted, Blend)
    everyone = logged_blend(runs, "parent", tmp_path, made, finalists)
    assert [(one.name, one.run_id) for one in everyone[-1:]] == [("blend", "run-blend")]
    assert runs.started == [("parent", "blend", "blend", params_of(made.finalist.fitted))]
    assert runs.ended[0][:2] == ("run-blend", "FINISHED")
    assert runs.tables == [(one.run_id, "validation/per_series") for one in everyone]
    again = blend_best(config(), data(), tmp_path, study, finalists)
    assert logged_blend(runs, "parent", tmp_path, again, finalists)[-1].run_id == "run-blend"
    assert len(runs.started) == 1
