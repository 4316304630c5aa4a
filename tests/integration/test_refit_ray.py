"""Refits as tasks of a real local Ray: the same models, and an interrupt ends them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from structlog.testing import capture_logs

from flts_ray.config import parse_config
from flts_ray.errors import DataError
from flts_ray.models import artifact
from flts_ray.models.ar import FittedAR
from flts_ray.models.ar_set import bucket_sums
from flts_ray.models.base import Compute, Task, fit_fully, forecaster
from flts_ray.models.memory import seen_positions
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.prepare.run import prepare
from flts_ray.tune import set_sums
from flts_ray.tune.held import Held
from flts_ray.tune.outcome import StudyResult, TrialOutcome, trial_folder
from flts_ray.tune.refit import refit_best
from flts_ray.tune.study import run_study
from tests.raw_files import load_config, write_load
from tests.synthetic import seasonal_set

pytestmark = pytest.mark.integration

DATA = seasonal_set(n_series=2, length=400)
RAW = {"name": "load", "data": {"path": "load.csv"}, "task": {"horizon": 6}}
CONFIG = parse_config(RAW)
NETWORK = {
    "hidden": 4,
    "epochs": 1,
    "windows_per_epoch": 256,
    "batch": 32,
    "refit_epochs": 1,
}
PARAMS: dict[str, dict[str, Any]] = {"ar": {"lags": 24}, "gru": NETWORK}
ENDLESS = {"gru": {**NETWORK, "refit_epochs": 10_000}}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def study(folder: Path, params: dict[str, dict[str, Any]]) -> StudyResult:
    outcomes = []
    for kind, chosen in params.items():
        place = trial_folder(folder, f"{kind}-01") / "model-0001"
        artifact.save(fit_fully(kind, DATA, Task(6, (0.1, 0.5, 0.9)), chosen), place)
        outcomes.append(
            TrialOutcome(f"{kind}-01", kind, chosen, "finished", valid_score=1.0, artifact=place)
        )
    return StudyResult("study", tuple(outcomes))


def test_tasks_refit_what_this_process_would(tmp_path: Path) -> None:
    with capture_logs() as logs:
        found = refit_best(study(tmp_path, PARAMS), DATA, tmp_path, CONFIG)
    assert logs == []
    assert sorted(found) == ["ar-01", "gru-01"]
    for name, place in found.items():
        own = artifact.load(trial_folder(tmp_path, name) / "model-0001")
        expected = forecaster(own.spec.kind).refit(own, DATA, Compute()).state()
        loaded = artifact.load(place).state()
        assert loaded[0] == expected[0]
        assert loaded[1].keys() == expected[1].keys()
        # A worker runs on one BLAS thread, this process on any number: the last bits may differ.
        for array, values in expected[1].items():
            np.testing.assert_allclose(
                loaded[1][array], values, rtol=1e-4, atol=1e-6, err_msg=array
            )


def test_an_interrupt_ends_the_tasks(tmp_path: Path) -> None:
    trials = study(tmp_path, ENDLESS)
    free = ray.available_resources()["CPU"]
    interrupt = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        refit_best(trials, DATA, tmp_path, CONFIG)
    while ray.available_resources().get("CPU", 0.0) < free:
        time.sleep(0.1)  # ends with the test's own time limit where a task goes on
    assert not (trial_folder(tmp_path, "gru-01") / "refit").exists()


def test_a_large_set_is_summed_by_bucket(tmp_path: Path) -> None:
    """The linear model learns from every bucket, as it would from the whole set in memory."""
    write_load(tmp_path / "in")
    config = load_config(tmp_path)
    tune = config.tune.model_copy(update={"by_bucket_rows": 1000})
    config = config.model_copy(update={"tune": tune})
    prepared = prepare(config)
    data = prepared.arrays()
    assert prepared.manifest.rows > 1000 and len(prepared.buckets()) > 1
    place = trial_folder(tmp_path, "ar-01") / "model-0001"
    model = fit_fully("ar", data, Task(6, (0.1, 0.5, 0.9)), {"lags": 24})
    assert isinstance(model, FittedAR)
    artifact.save(model, place)
    best = TrialOutcome("ar-01", "ar", {}, "finished", valid_score=1.0, artifact=place)
    found = refit_best(StudyResult("study", (best,)), data, tmp_path, config, prepared)
    refit = artifact.load(found["ar-01"])
    assert found["ar-01"] != place and isinstance(refit, FittedAR)
    expected = bucket_sums(model, data, 1)
    assert refit.sums is not None and refit.sums.strides == (1, 1)
    for name, value in expected.arrays().items():
        size = float(np.abs(value).max(initial=0.0))
        assert np.allclose(refit.sums.arrays()[name], value, rtol=1e-9, atol=1e-9 * size), name


def test_models_of_a_sample_know_the_whole_set(tmp_path: Path) -> None:
    """The linear model learns from all of it, networks from the sample."""
    write_load(tmp_path / "in")
    config = load_config(tmp_path)
    prepared = prepare(config)
    some = prepared.sample(3)
    data = prepared.arrays(prepared.census(some.ids).stats.ids)
    best, models = [], {}
    for kind, params in (PARAMS | {"seasonal_naive": {}}).items():
        place = trial_folder(tmp_path, f"{kind}-01") / "model-0001"
        models[kind] = fit_fully(kind, some, Task(6, (0.1, 0.5, 0.9)), params)
        artifact.save(models[kind], place)
        best.append(
            TrialOutcome(f"{kind}-01", kind, {}, "finished", valid_score=1.0, artifact=place)
        )
    found = refit_best(StudyResult("study", tuple(best)), some, tmp_path, config, prepared)
    for name, place in found.items():
        refit = artifact.load(place)
        assert place.name == "refit" and refit.stats.ids == data.ids, name
        seen = seen_positions(refit, data)
        assert seen is not None
        np.testing.assert_array_equal(seen, data.valid_end, err_msg=name)
    linear, network = artifact.load(found["ar-01"]), artifact.load(found["gru-01"])
    own = models["ar"]
    assert isinstance(linear, FittedAR) and linear.sums is not None and isinstance(own, FittedAR)
    for array, value in bucket_sums(own, data, linear.sums.strides[0]).arrays().items():
        size = float(np.abs(value).max(initial=0.0))
        got = linear.sums.arrays()[array]
        assert np.allclose(got, value, rtol=1e-9, atol=1e-9 * size), array
    expected = forecaster("gru").refit(models["gru"], some, Compute()).state()[1]
    for array, value in network.state()[1].items():
        if array.startswith("net."):
            np.testing.assert_allclose(value, expected[array], rtol=1e-4, atol=1e-6)


def test_without_a_refit_the_model_of_a_sample_still_knows_the_whole_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_load(tmp_path / "in")
    config = load_config(tmp_path)
    prepared = prepare(config)
    some = prepared.sample(3)
    place = trial_folder(tmp_path, "ar-01") / "model-0001"
    artifact.save(fit_fully("ar", some, Task(6, (0.1, 0.5, 0.9)), {"lags": 24}), place)
    best = TrialOutcome("ar-01", "ar", {}, "finished", valid_score=1.0, artifact=place)

    def lost(*_: Any) -> None:
        raise DataError("no window")

    monkeypatch.setattr(set_sums, "refitted", lost)
    with capture_logs() as logs:
        found = refit_best(StudyResult("study", (best,)), some, tmp_path, config, prepared)
    assert [one["event"] for one in logs] == ["refit_failed"]
    model = artifact.load(found["ar-01"])
    assert sorted(model.stats.ids) == sorted(prepared.ids())
    again = refit_best(StudyResult("study", (best,)), some, tmp_path, config, prepared)
    assert again == found  # it is tried again, and a model that is there is left


def test_a_set_lies_in_the_object_store_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, sets = ray.put, list[SeriesArrays]()

    def counted(value: Any, *rest: Any, **options: Any) -> Any:
        if isinstance(value, SeriesArrays):
            sets.append(value)
        return put(value, *rest, **options)

    monkeypatch.setattr(ray, "put", counted)
    held, trials = Held(DATA), study(tmp_path, {"seasonal_naive": {}})
    assert sets == []
    config = parse_config({**RAW, "models": {"seasonal_naive": {}, "ar": {}}})
    run_study(config, DATA, tmp_path / "tuned", held=held)
    refit_best(trials, DATA, tmp_path, CONFIG, held=held)
    assert len(sets) == 1
    np.testing.assert_array_equal(ray.get(held.reference).y, DATA.y)
