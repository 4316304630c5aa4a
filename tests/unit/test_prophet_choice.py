"""Validation chooses the covariates of Prophet, and what was chosen stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flts_ray.models.prophet_choice as module
from flts_ray.models import artifact
from flts_ray.models.base import Compute, Task, fit_fully
from flts_ray.models.calibrate import sample_origins
from flts_ray.models.prophet import ProphetPerSeries
from flts_ray.models.prophet_choice import chosen_regressors, preferred, validation_windows
from flts_ray.models.prophet_fit import fit_all, seasonalities_for
from flts_ray.models.prophet_fitted import FittedProphet
from flts_ray.models.prophet_regressors import Regressors
from flts_ray.prepare.arrays import SeriesArrays, Windows, actuals_at, origins_in, windows_at
from tests.synthetic import seasonal_set

TASK = Task(12, (0.1, 0.5, 0.9))
LENGTH = 600


def with_heat(answer: float, n_series: int = 2, drifting: bool = False) -> SeriesArrays:
    """Series that answer to heat and cold alike; a drift has nothing to do with them."""
    data = seasonal_set(n_series=n_series, length=LENGTH)
    rng = np.random.default_rng(3)
    heat = np.cumsum(rng.normal(0, 1, (n_series, LENGTH)), axis=1)
    if not drifting:
        heat = 6 * np.sin(np.arange(LENGTH) / 17) + rng.normal(0, 1, (n_series, LENGTH))
    level = np.repeat(10.0 ** (np.arange(n_series) % 3), LENGTH)
    contract = replace(data.contract, known_future=("event", "heat"))
    return replace(
        data,
        contract=contract,
        y=data.y + answer * level * heat.ravel() ** 2,
        future=np.column_stack([data.future, 15 + heat.ravel()]).astype(np.float32),
    )


def fitted_on(data: SeriesArrays, **params: Any) -> FittedProphet:
    fitted = fit_fully("prophet", data, TASK, params, Compute())
    assert isinstance(fitted, FittedProphet)
    return fitted


def judged_on(fitted: FittedProphet, data: SeriesArrays) -> tuple[Windows, np.ndarray]:
    """Windows of the test span and what happened."""
    back = fitted.spec.lookback
    series, origins = origins_in(data, "test", back, TASK.horizon, 5)
    windows = windows_at(data, series, origins, back, TASK.horizon)
    return windows, actuals_at(data, series, origins, TASK.horizon)


def error(fitted: FittedProphet, data: SeriesArrays) -> float:
    windows, actual = judged_on(fitted, data)
    return float(np.abs(fitted.forecast(windows).mean - actual).mean())


def test_heat_and_cold_that_matter_alike_are_chosen() -> None:
    data = with_heat(answer=0.05)
    found = fitted_on(data)
    assert found.spec.params["regressors"] == "all"
    assert found.regressors.curved == ("heat",)
    assert error(found, data) < 0.5 * error(fitted_on(data, regressors="events"), data)


def test_a_covariate_that_hurts_is_left_out() -> None:
    data = with_heat(answer=0.0, drifting=True)
    found = fitted_on(data)
    assert found.spec.params["regressors"] == "events"
    assert found.regressors == Regressors(("event",))
    assert error(found, data) <= error(fitted_on(data, regressors="all"), data)


@pytest.mark.parametrize("word", ["none", "events", "all"])
def test_a_word_is_obeyed_and_recorded(word: str) -> None:
    found = fitted_on(with_heat(answer=0.05, n_series=1), regressors=word)
    assert found.spec.params["regressors"] == word
    assert found.curves.regressor_mean.shape == (1, {"none": 0, "events": 1, "all": 6}[word])


def test_without_covariates_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fit_all", None)
    data = seasonal_set(n_series=1, length=LENGTH, covariates=False)
    assert fitted_on(data).spec.params["regressors"] == "none"


def test_what_was_chosen_stays_when_it_learns_again() -> None:
    data = with_heat(answer=0.05)
    shorter = replace(data, valid_end=data.valid_end - 40, train_end=data.train_end - 40)
    found = fitted_on(shorter)
    model = ProphetPerSeries()
    updated = model.update(found, data, Compute())
    assert updated is not found
    for again in (model.refit(found, shorter, Compute()), updated):
        assert again.spec.params["regressors"] == "all"
        assert again.regressors == found.regressors
        assert np.isfinite(again.forecast(judged_on(again, data)[0]).quantiles).all()


def test_a_saved_quadratic_gives_the_same_bits(tmp_path: Path) -> None:
    data = with_heat(answer=0.05)
    found = fitted_on(data)
    artifact.save(found, tmp_path)
    loaded = artifact.load(tmp_path)
    windows, _ = judged_on(found, data)
    assert loaded.forecast(windows).quantiles.tobytes() == (
        found.forecast(windows).quantiles.tobytes()
    )


def test_a_model_stored_without_its_covariates_is_linear_in_all_of_them() -> None:
    data = with_heat(answer=0.05, n_series=1)
    found = fitted_on(data, regressors="events")
    values, arrays = found.state()
    del values["regressors"]
    params = {k: v for k, v in found.spec.params.items() if k != "regressors"}
    spec = replace(found.spec, params=params)
    pad = {"curve_beta": 0.0, "curve_regressor_mean": 0.0, "curve_regressor_std": 1.0}
    for name, value in pad.items():
        arrays[name] = np.pad(arrays[name], ((0, 0), (0, 1)), constant_values=value)
    old = ProphetPerSeries().restore(spec, found.stats, values, arrays)
    windows, _ = judged_on(found, data)
    np.testing.assert_allclose(old.forecast(windows).mean, found.forecast(windows).mean)
    again = ProphetPerSeries().refit(old, data, Compute())
    assert again.regressors == Regressors(("event", "heat"))


def test_the_test_span_has_no_say() -> None:
    data = with_heat(answer=0.05)
    y, future = data.y.copy(), data.future.copy()
    for series in range(data.n_series):
        y[data.rows(series)][data.valid_end[series] :] = 0.0
        future[data.rows(series)][data.valid_end[series] :] = 1.0
    other = fitted_on(replace(data, y=y, future=future))
    found = fitted_on(data)
    assert other.regressors == found.regressors
    np.testing.assert_array_equal(other.curves.beta, found.curves.beta)


def test_of_many_series_a_sample_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_heat(answer=0.05, n_series=9)
    judged: set[int] = set()
    real = fit_all

    def counted(part: SeriesArrays, *rest: Any) -> Any:
        judged.add(part.n_series)
        return real(part, *rest)

    monkeypatch.setattr(module, "MAX_JUDGED", 3)
    monkeypatch.setattr(module, "fit_all", counted)
    found = fitted_on(data)
    assert judged == {3}
    assert found.spec.params["regressors"] == "all"
    assert found.curves.beta.shape[0] == 9


def test_every_set_is_judged_on_the_same_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_heat(answer=0.05, n_series=1)
    seen = []
    real = module.corrected

    def noted(fitted: FittedProphet, judged: module.Judged) -> Any:
        seen.append(judged.windows.origin_us.tobytes())
        return real(fitted, judged)

    monkeypatch.setattr(module, "corrected", noted)
    params = {**ProphetPerSeries.defaults, "level_windows": [1, 24]}
    chosen_regressors(data, TASK, params, seasonalities_for(data.contract, 360), Compute())
    assert len(seen) == 3
    assert len(set(seen)) == 1


def test_where_gaps_are_many_nothing_that_reaches_back_is_tried() -> None:
    data = with_heat(answer=0.05)
    y = data.y.copy()
    y[::20] = np.nan
    gaps = replace(data, y=y, observed=np.isfinite(y))
    assert fitted_on(gaps).spec.params["regressors"] in ("none", "events")


def test_the_usual_set_yields_to_a_clearly_better_one() -> None:
    assert preferred({"none": 0.999, "events": 1.0, "all": 0.998}) == "events"
    assert preferred({"none": 1.0, "events": 1.0, "all": 0.9}) == "all"
    assert preferred({"none": 0.9, "events": 1.0, "all": 0.95}) == "none"
    assert preferred({"none": 1.0, "all": 0.999}) == "none"


def test_a_longer_lookback_is_judged_on_windows_of_the_shortest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_VALIDATION_WINDOWS", 60)
    data = seasonal_set(n_series=2, length=LENGTH, covariates=False)
    begin = int(data.train_end[0])
    every = sample_origins(data, "validation", 1, TASK.horizon, 60)
    series, origins, lookback = validation_windows(data, TASK.horizon, [begin - 5, 1, begin + 2])
    assert lookback == begin + 2
    fits = every[1] >= begin + 2
    np.testing.assert_array_equal(series, every[0][fits])
    np.testing.assert_array_equal(origins, every[1][fits])
    assert validation_windows(data, TASK.horizon, [1, begin + 60])[2] == 1
