from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.errors import ConfigError
from flts_ray.evaluate.backtest import Backtest, Origins, backtest
from flts_ray.models import artifact
from flts_ray.models.base import (
    KINDS,
    Compute,
    Fitted,
    Forecast,
    ModelSpec,
    Progress,
    Task,
    resolve_params,
)
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, Windows
from flts_ray.tune.outcome import TrialOutcome, read_outcome, trial_folder
from flts_ray.tune.space import TrialPlan
from flts_ray.tune.trial import TrialRun, TrialSetting, validation_score
from tests.synthetic import seasonal_set

DATA = seasonal_set()
TASK = Task(horizon=6, levels=(0.1, 0.5, 0.9))


@dataclass(frozen=True)
class LastValue:
    """Repeats the last value, `offset` seasonal scales too high."""

    spec: ModelSpec
    stats: SeriesStats
    offset: float

    def forecast(self, windows: Windows) -> Forecast:
        level = windows.y[:, -1] + self.offset * windows.scale
        mean = np.repeat(level[:, None], windows.horizon, axis=1)
        quantiles = np.repeat(mean[..., None], len(TASK.levels), axis=-1)
        return Forecast(windows.ids, windows.origin_us, TASK.levels, mean, quantiles)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"offset": self.offset}, {}


class Scripted:
    """Yields one model an epoch with the offsets of its parameters; `boom` raises."""

    kind = "scripted"
    iterative = True
    defaults: Mapping[str, Any] = {"offsets": [0.0]}

    def fit(
        self, data: SeriesArrays, task: Task, params: Mapping[str, Any], compute: Compute
    ) -> Iterator[Progress]:
        chosen = resolve_params(self, params)
        spec = ModelSpec(self.kind, task, 1, data.contract, chosen)
        for epoch, offset in enumerate(chosen["offsets"], start=1):
            if offset == "boom":
                raise ZeroDivisionError("by design")
            fitted = LastValue(spec, data.stats, float(offset))
            yield Progress(epoch, {"train_loss": float(epoch)}, fitted)

    def update(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> Fitted:
        return fitted

    def follow(self, fitted: Fitted, data: SeriesArrays) -> Fitted:
        return fitted

    def refit(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> Fitted:
        return fitted

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> LastValue:
        return LastValue(spec, stats, values["offset"])


class OneStep(Scripted):
    kind = "one_step"
    iterative = False


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "scripted", f"{__name__}:Scripted")
    monkeypatch.setitem(KINDS, "one_step", f"{__name__}:OneStep")


@pytest.fixture
def setting(tmp_path: Path) -> TrialSetting:
    return TrialSetting(tmp_path / "study", TASK, Compute(), "mae", lookback=48)


def run(setting: TrialSetting, kind: str, **params: Any) -> list[TrialOutcome]:
    """All steps of a trial, until it is over."""
    trial = TrialRun(TrialPlan(f"{kind}-01", kind, params), DATA, setting)
    outcomes = [trial.step()]
    while outcomes[-1].status == "pending":
        outcomes.append(trial.step())
    return outcomes


def models_of(setting: TrialSetting, trial_id: str) -> list[str]:
    return sorted(path.name for path in trial_folder(setting.study, trial_id).glob("model-*"))


def test_the_best_epoch_is_kept_and_committed(setting: TrialSetting) -> None:
    outcome = run(setting, "scripted", offsets=[3, 1, 2])[-1]
    assert (outcome.status, outcome.epochs) == ("finished", 3)
    assert outcome.artifact is not None
    best = artifact.load(outcome.artifact)
    assert isinstance(best, LastValue)
    assert best.offset == 1.0
    assert outcome.valid_score == validation_score(best, DATA, setting)
    assert [epoch["train_loss"] for epoch in outcome.history] == [1, 2, 3]
    assert outcome.history[1]["valid_score"] == outcome.valid_score
    assert read_outcome(setting.study, "scripted-01") == outcome
    assert outcome.pid == os.getpid()


def test_the_reported_score_is_that_of_the_model_on_disk_at_every_step(
    setting: TrialSetting,
) -> None:
    trial = TrialRun(
        TrialPlan("scripted-01", "scripted", {"offsets": [3, 1, 2, 0.5]}), DATA, setting
    )
    while (outcome := trial.step()).status == "pending":
        assert outcome.artifact is not None
        assert validation_score(artifact.load(outcome.artifact), DATA, setting) == (
            outcome.valid_score
        )
    assert models_of(setting, "scripted-01") == ["model-0004"]


def test_the_model_last_reported_survives_an_unreported_step(setting: TrialSetting) -> None:
    trial = TrialRun(TrialPlan("scripted-01", "scripted", {"offsets": [2, 1, 0]}), DATA, setting)
    reported = trial.step()
    trial.step()
    assert reported.artifact is not None
    assert artifact.load(reported.artifact).state()[0] == {"offset": 2.0}


def test_a_trial_that_is_not_over_is_not_committed(setting: TrialSetting) -> None:
    trial = TrialRun(TrialPlan("scripted-01", "scripted", {"offsets": [1, 2]}), DATA, setting)
    trial.step()
    assert read_outcome(setting.study, "scripted-01") is None


def test_a_model_that_is_not_iterative_is_one_step(setting: TrialSetting) -> None:
    outcomes = run(setting, "one_step")
    assert [outcome.status for outcome in outcomes] == ["finished"]


def test_what_a_model_raises_is_the_outcome(setting: TrialSetting) -> None:
    outcome = run(setting, "scripted", offsets=[1, "boom"])[-1]
    assert outcome.status == "failed"
    assert "ZeroDivisionError: by design (test_trial.py:" in str(outcome.error)
    assert outcome.artifact is None
    assert models_of(setting, "scripted-01") == []
    assert read_outcome(setting.study, "scripted-01") == outcome


def test_an_unknown_parameter_is_told_as_the_user_is_told(setting: TrialSetting) -> None:
    outcome = run(setting, "scripted", ofsets=[1])[-1]
    with pytest.raises(ConfigError) as raised:
        resolve_params(Scripted(), {"ofsets": [1]})
    assert outcome.error == str(raised.value)


def test_a_forecast_that_is_not_finite_fails_the_trial(setting: TrialSetting) -> None:
    with np.errstate(over="ignore"):
        outcome = run(setting, "scripted", offsets=[1, 1e308])[-1]
    assert outcome.status == "failed"
    assert "not finite" in str(outcome.error)


def test_a_fit_without_a_model_fails(setting: TrialSetting) -> None:
    assert run(setting, "scripted", offsets=[])[-1].status == "failed"


def test_only_the_first_step_removes_what_an_earlier_try_left(setting: TrialSetting) -> None:
    before = run(setting, "scripted", offsets=[3, 1])[-1]
    again = TrialRun(TrialPlan("scripted-01", "scripted", {"offsets": [2, 1]}), DATA, setting)
    assert read_outcome(setting.study, "scripted-01") == before
    again.step()
    assert read_outcome(setting.study, "scripted-01") is None
    assert models_of(setting, "scripted-01") == ["model-0001"]


def test_an_unchanged_model_is_not_scored_again(
    setting: TrialSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = LastValue(ModelSpec("scripted", TASK, 1, DATA.contract), DATA.stats, 1.0)
    asked = []

    def fit(self: Scripted, *rest: object) -> Iterator[Progress]:
        return iter([Progress(epoch, {}, fitted) for epoch in (1, 2, 3)])

    def score(*arguments: object) -> float:
        asked.append(arguments)
        return 1.0

    monkeypatch.setattr(Scripted, "fit", fit)
    monkeypatch.setattr("flts_ray.tune.trial.validation_score", score)
    assert run(setting, "scripted")[-1].epochs == 3
    assert len(asked) == 1


def test_validation_origins_lie_in_the_validation_span_alone(setting: TrialSetting) -> None:
    fitted = LastValue(ModelSpec("scripted", TASK, 1, DATA.contract), DATA.stats, 1.0)
    hidden = DATA.y.copy()
    for i in range(DATA.n_series):
        hidden[DATA.rows(i)][int(DATA.valid_end[i]) :] = np.nan
    without_test = replace(DATA, y=hidden, observed=~np.isnan(hidden))
    assert validation_score(fitted, without_test, setting) == validation_score(
        fitted, DATA, setting
    )


def test_the_configured_stride_is_used(setting: TrialSetting) -> None:
    fitted = LastValue(ModelSpec("scripted", TASK, 1, DATA.contract), DATA.stats, 1.0)
    wide = replace(setting, stride=50)
    assert validation_score(fitted, DATA, wide) != validation_score(fitted, DATA, setting)


def test_the_committed_file_is_plain_json(setting: TrialSetting) -> None:
    run(setting, "scripted", offsets=[1])
    raw = json.loads(
        (trial_folder(setting.study, "scripted-01") / "result.json").read_text(encoding="utf-8")
    )
    assert raw["status"] == "finished"
    assert raw["artifact"] == "model-0001"


def test_a_score_does_not_depend_on_how_many_windows_are_forecast_at_once(
    setting: TrialSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = LastValue(ModelSpec("scripted", TASK, 1, DATA.contract), DATA.stats, 1.0)
    whole = validation_score(fitted, DATA, setting)
    monkeypatch.setattr("flts_ray.tune.trial.WINDOWS_AT_ONCE", 7)
    assert validation_score(fitted, DATA, setting) == whole


def test_of_very_many_windows_some_are_scored(
    setting: TrialSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = LastValue(ModelSpec("scripted", TASK, 1, DATA.contract), DATA.stats, 1.0)
    scored = []

    def counted(fitted: Fitted, data: SeriesArrays, origins: Origins) -> Backtest:
        scored.append(origins)
        return backtest(fitted, data, origins)

    monkeypatch.setattr("flts_ray.tune.trial.backtest", counted)
    monkeypatch.setattr("flts_ray.tune.trial.MAX_WINDOWS", 10)
    assert np.isfinite(validation_score(fitted, DATA, setting))
    validation_score(fitted, DATA, replace(setting, stride=5))
    few, configured = scored
    assert len(few) == 10
    assert set(few.series.tolist()) == set(range(DATA.n_series))
    assert len(configured) > 10
    assert set(np.diff(configured.positions[configured.series == 0])) == {5}
