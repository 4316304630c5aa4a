"""The best trial of each kind is refitted, once, and a failing refit costs nobody else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from flts_ray.config import parse_config
from flts_ray.models import artifact
from flts_ray.models.ar import FittedAR, LinearAR
from flts_ray.models.ar_set import bucket_sums
from flts_ray.models.base import Compute, Fitted, Task, fit_fully, forecaster
from flts_ray.prepare.arrays import widened
from flts_ray.prepare.run import prepare
from flts_ray.tune.outcome import StudyResult, TrialOutcome, trial_folder
from flts_ray.tune.refit import refit_best
from tests.raw_files import load_config, write_load
from tests.synthetic import seasonal_set

DATA = seasonal_set(n_series=2, length=400)
TASK = Task(6, (0.025, 0.1, 0.5, 0.9, 0.975))
CONFIG = parse_config({"name": "load", "data": {"path": "load.csv"}, "task": {"horizon": 6}})


@cache
def fitted(kind: str, lags: int | None = None) -> Fitted:
    return fit_fully(kind, DATA, TASK, {"lags": lags} if lags else {})


def trial(folder: Path, trial_id: str, model: Fitted, score: float) -> TrialOutcome:
    place = trial_folder(folder, trial_id) / "model-0001"
    artifact.save(model, place)
    return TrialOutcome(
        trial_id, model.spec.kind, {}, "finished", valid_score=score, artifact=place
    )


@pytest.fixture
def study(tmp_path: Path) -> StudyResult:
    return StudyResult(
        "study",
        (
            trial(tmp_path, "seasonal_naive-01", fitted("seasonal_naive"), 0.9),
            trial(tmp_path, "ar-01", fitted("ar", 5), 0.8),
            trial(tmp_path, "ar-02", fitted("ar", 24), 0.7),
        ),
    )


def assert_same_bits(one: Fitted, other: Fitted) -> None:
    (values, arrays), (other_values, other_arrays) = one.state(), other.state()
    assert other_values == values
    for name, array in arrays.items():
        assert other_arrays[name].tobytes() == array.tobytes(), name


def fail_for_ar(error: BaseException) -> Callable[..., Fitted]:
    def refit(self: LinearAR, *rest: object) -> Fitted:
        raise error

    return refit


def test_widened_training_reaches_to_the_test_span() -> None:
    wide = widened(DATA)
    np.testing.assert_array_equal(wide.train_end, DATA.valid_end)
    np.testing.assert_array_equal(wide.valid_end, DATA.valid_end)
    assert wide.stats is DATA.stats
    assert wide.y is DATA.y


def test_the_best_trial_of_each_kind_is_refitted(study: StudyResult, tmp_path: Path) -> None:
    found = refit_best(study, DATA, tmp_path, CONFIG)
    assert found == {
        name: trial_folder(tmp_path, name) / "refit" for name in ("seasonal_naive-01", "ar-02")
    }
    expected = forecaster("ar").refit(fitted("ar", 24), DATA, Compute())
    assert_same_bits(expected, artifact.load(found["ar-02"]))
    assert_same_bits(fitted("seasonal_naive"), artifact.load(found["seasonal_naive-01"]))
    assert not (trial_folder(tmp_path, "ar-01") / "refit").exists()


def test_the_trial_keeps_its_own_model(study: StudyResult, tmp_path: Path) -> None:
    refit_best(study, DATA, tmp_path, CONFIG)
    own = study.best_per_kind()["ar"].artifact
    assert own is not None
    assert_same_bits(fitted("ar", 24), artifact.load(own))


def test_a_complete_refit_is_not_made_again(
    study: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = refit_best(study, DATA, tmp_path, CONFIG)
    monkeypatch.setattr(LinearAR, "refit", fail_for_ar(RuntimeError("must not run")))
    assert refit_best(study, DATA, tmp_path, CONFIG) == first


def test_a_refit_without_its_manifest_is_made_again(study: StudyResult, tmp_path: Path) -> None:
    place = refit_best(study, DATA, tmp_path, CONFIG)["ar-02"]
    digest = artifact.digest(place)
    (place / artifact.MANIFEST).unlink()
    assert refit_best(study, DATA, tmp_path, CONFIG)["ar-02"] == place
    assert artifact.digest(place) == digest


def test_a_failing_refit_falls_back_and_the_others_go_on(
    study: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LinearAR, "refit", fail_for_ar(ZeroDivisionError("no luck")))
    with capture_logs() as logs:
        found = refit_best(study, DATA, tmp_path, CONFIG)
    assert found == {
        "ar-02": study.best_per_kind()["ar"].artifact,
        "seasonal_naive-01": trial_folder(tmp_path, "seasonal_naive-01") / "refit",
    }
    (event,) = logs
    assert (event["log_level"], event["event"]) == ("warning", "refit_failed")
    assert event["trial"] == "ar-02"
    assert event["error"].startswith("ZeroDivisionError: no luck")


def test_a_model_that_cannot_be_loaded_falls_back(study: StudyResult, tmp_path: Path) -> None:
    own = study.best_per_kind()["ar"].artifact
    assert own is not None
    shutil.rmtree(own)
    with capture_logs() as logs:
        assert refit_best(study, DATA, tmp_path, CONFIG)["ar-02"] == own
    assert "no such model folder" in logs[0]["error"]


def test_an_interrupt_is_raised_on(
    study: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LinearAR, "refit", fail_for_ar(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        refit_best(study, DATA, tmp_path, CONFIG)


class LostWorker(Exception):
    pass


class StandIn:
    """Behaves like an initialised Ray; `get` runs the task, or raises what it is told to."""

    exceptions = SimpleNamespace(RayError=LostWorker)

    def __init__(self, raised: dict[str, BaseException]) -> None:
        self.raised, self.puts = raised, 0
        self.cancelled: list[str] = []
        self.resources: dict[str, float] = {}

    def is_initialized(self) -> bool:
        return True

    def put(self, value: object) -> object:
        self.puts += 1
        return value

    def remote(self, **resources: float) -> Callable[..., Any]:
        self.resources = resources
        return lambda function: SimpleNamespace(remote=lambda *given: (function, given))

    def get(self, reference: tuple[Callable[..., object], tuple[Any, ...]]) -> object:
        function, given = reference
        if (error := self.raised.get(given[1].parent.name)) is not None:
            raise error
        return function(*given)

    def cancel(self, reference: tuple[object, tuple[Any, ...]], force: bool) -> None:
        self.cancelled.append(reference[1][1].parent.name)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn({})
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    yield stand_in


def test_on_ray_the_data_is_shared_once(study: StudyResult, tmp_path: Path, ray: StandIn) -> None:
    found = refit_best(study, DATA, tmp_path, CONFIG)
    assert all(place.name == "refit" and artifact.load(place) for place in found.values())
    assert ray.puts == 1
    assert ray.resources["num_cpus"] == CONFIG.tune.cpus_per_trial
    refit_best(study, DATA, tmp_path, CONFIG)
    assert ray.puts == 1


def test_a_lost_worker_falls_back(study: StudyResult, tmp_path: Path, ray: StandIn) -> None:
    ray.raised = {"ar-02": LostWorker()}
    with capture_logs() as logs:
        found = refit_best(study, DATA, tmp_path, CONFIG)
    assert {place.name for place in found.values()} == {"refit", "model-0001"}
    assert (logs[0]["trial"], "LostWorker" in logs[0]["error"]) == ("ar-02", True)


def test_an_interrupt_cancels_every_task(study: StudyResult, tmp_path: Path, ray: StandIn) -> None:
    ray.raised = {"seasonal_naive-01": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        refit_best(study, DATA, tmp_path, CONFIG)
    assert sorted(ray.cancelled) == ["ar-02", "seasonal_naive-01"]


def test_the_module_loads_nothing_that_a_linear_model_does_not_need() -> None:
    code = "import sys, flts_ray.tune.refit; print(*sorted({'ray', 'torch'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


def test_without_ray_the_linear_model_learns_from_every_bucket(tmp_path: Path) -> None:
    write_load(tmp_path / "in")
    config = load_config(tmp_path)
    prepared = prepare(config)
    some = prepared.sample(3)
    place = trial_folder(tmp_path, "ar-01") / "model-0001"
    model = fit_fully("ar", some, TASK, {"lags": 24})
    assert isinstance(model, FittedAR)
    artifact.save(model, place)
    best = TrialOutcome("ar-01", "ar", {}, "finished", valid_score=1.0, artifact=place)
    found = refit_best(StudyResult("study", (best,)), some, tmp_path, config, prepared)
    refit = artifact.load(found["ar-01"])
    assert isinstance(refit, FittedAR) and refit.sums is not None
    assert sorted(refit.stats.ids) == sorted(prepared.ids())
    expected = bucket_sums(model, prepared.arrays(), refit.sums.strides[0])
    for name, value in expected.arrays().items():
        size = float(np.abs(value).max(initial=0.0))
        assert np.allclose(refit.sums.arrays()[name], value, rtol=1e-9, atol=1e-9 * size), name
