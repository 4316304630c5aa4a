"""What every registered model kind must do; a new kind is tested the moment it is registered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.errors import ConfigError, DataError
from flts_ray.models import artifact
from flts_ray.models.base import KINDS, Compute, Fitted, Progress, Task, fit_fully, forecaster
from flts_ray.prepare.arrays import SeriesArrays, Windows, actuals_at, origins_in, windows_at
from tests.synthetic import seasonal_set, stats_of

TASK = Task(6, (0.1, 0.3, 0.5, 0.7, 0.9))
QUICK: dict[str, dict[str, Any]] = {
    kind: {"epochs": 3, "hidden": 8, "windows_per_epoch": 1024, "refit_epochs": 3}
    for kind in ("gru", "lstm")
}
"""Parameters that make a fit quick; kinds not named here are quick by default."""
BATCH_RTOL = {"gru": 1e-5, "lstm": 1e-5}


@dataclass(frozen=True)
class Fit:
    data: SeriesArrays
    progress: tuple[Progress, ...]

    @property
    def fitted(self) -> Fitted:
        return self.progress[-1].fitted

    def windows(self, data: SeriesArrays | None = None, stride: int = 7) -> Windows:
        """Windows of the test span."""
        lookback = self.fitted.spec.lookback
        series, origins = origins_in(self.data, "test", lookback, TASK.horizon, stride)
        return windows_at(data or self.data, series, origins, lookback, TASK.horizon)


def fit_on(kind: str, data: SeriesArrays) -> Fit:
    model = forecaster(kind)
    return Fit(data, tuple(model.fit(data, TASK, QUICK.get(kind, {}), Compute(seed=1))))


@cache
def usual(kind: str) -> Fit:
    return fit_on(kind, seasonal_set())


def rescaled(data: SeriesArrays, factor: float) -> SeriesArrays:
    y = data.y * factor
    rows = [y[data.rows(i)][: data.train_end[i]] for i in range(data.n_series)]
    stats = stats_of(rows, data.contract.season)
    return replace(data, y=y, past=data.past * np.float32(factor), stats=stats)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_fit_reports_finite_metrics(kind: str) -> None:
    progress = usual(kind).progress
    model = forecaster(kind)
    assert len(progress) == 1 or model.iterative
    assert [step.epoch for step in progress] == list(range(1, len(progress) + 1))
    for step in progress:
        assert step.metrics
        assert all(np.isfinite(value) for value in step.metrics.values())


def test_the_spec_says_what_was_fitted(kind: str) -> None:
    fit = usual(kind)
    spec = fit.fitted.spec
    assert spec.kind == kind
    assert spec.task == TASK
    assert spec.contract == fit.data.contract
    assert spec.lookback >= 1
    assert set(spec.params) == set(forecaster(kind).defaults)


def test_forecasts_are_whole_finite_and_ordered(kind: str) -> None:
    windows = usual(kind).windows()
    forecast = usual(kind).fitted.forecast(windows)
    assert forecast.ids == windows.ids
    assert forecast.levels == TASK.levels
    np.testing.assert_array_equal(forecast.origin_us, windows.origin_us)
    assert forecast.mean.dtype == forecast.quantiles.dtype == np.float64
    assert forecast.mean.shape == (len(windows), 6)
    assert forecast.quantiles.shape == (len(windows), 6, 5)
    assert np.isfinite(forecast.mean).all() and np.isfinite(forecast.quantiles).all()
    assert (np.diff(forecast.quantiles, axis=2) >= 0).all()


def test_the_mean_is_near_the_truth(kind: str) -> None:
    fit = usual(kind)
    lookback = fit.fitted.spec.lookback
    series, origins = origins_in(fit.data, "test", lookback, TASK.horizon, 7)
    actual = actuals_at(fit.data, series, origins, TASK.horizon)
    missed = np.abs(fit.fitted.forecast(fit.windows()).mean - actual)
    assert (missed / fit.data.stats.scale[series][:, None]).mean() < 1.2


def test_forecasts_follow_the_units_of_the_input(kind: str) -> None:
    fit = usual(kind)
    larger = fit_on(kind, rescaled(fit.data, 100.0))
    expected = fit.fitted.forecast(fit.windows())
    found = larger.fitted.forecast(larger.windows())
    scale = 100 * fit.windows().scale[:, None]
    assert np.abs(found.mean - 100 * expected.mean).max() < 0.3 * scale.max()
    assert (np.abs(found.mean - 100 * expected.mean) / scale).mean() < 0.02
    spread = np.abs(found.quantiles - 100 * expected.quantiles) / scale[..., None]
    assert spread.mean() < 0.05


def test_a_saved_model_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    fit = usual(kind)
    digest = artifact.save(fit.fitted, tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    expected, found = fit.fitted.forecast(fit.windows()), loaded.forecast(fit.windows())
    assert found.mean.tobytes() == expected.mean.tobytes()
    assert found.quantiles.tobytes() == expected.quantiles.tobytes()
    assert artifact.save(loaded, tmp_path / "again") == digest


def test_a_batch_equals_its_windows_one_by_one(kind: str) -> None:
    fit = usual(kind)
    windows = fit.windows(stride=23)
    whole = fit.fitted.forecast(windows)
    rtol = BATCH_RTOL.get(kind, 1e-9)
    for i in range(len(windows)):
        alone = fit.fitted.forecast(windows.part(slice(i, i + 1)))
        np.testing.assert_allclose(alone.mean[0], whole.mean[i], rtol=rtol)
        np.testing.assert_allclose(alone.quantiles[0], whole.quantiles[i], rtol=rtol)


def test_a_longer_history_changes_nothing(kind: str) -> None:
    fit = usual(kind)
    lookback = fit.fitted.spec.lookback
    series, origins = np.array([0, 2]), np.array([500, 590])
    exact = windows_at(fit.data, series, origins, lookback, TASK.horizon)
    longer = windows_at(fit.data, series, origins, lookback + 9, TASK.horizon)
    expected, found = fit.fitted.forecast(exact), fit.fitted.forecast(longer)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(found.quantiles, expected.quantiles, rtol=1e-6)


def test_values_after_the_origin_change_nothing(kind: str) -> None:
    fit = usual(kind)
    origin = 520
    lookback = fit.fitted.spec.lookback
    later = np.zeros(len(fit.data.y), dtype=bool)
    for i in range(fit.data.n_series):
        later[fit.data.rows(i)][origin:] = True
    changed = replace(
        fit.data,
        y=np.where(later, 1e6, fit.data.y),
        observed=fit.data.observed & ~later,
        past=np.where(later[:, None], np.float32(-9), fit.data.past),
    )
    at = (np.arange(3), np.full(3, origin), lookback, TASK.horizon)
    expected = fit.fitted.forecast(windows_at(fit.data, *at))
    found = fit.fitted.forecast(windows_at(changed, *at))
    assert found.mean.tobytes() == expected.mean.tobytes()
    assert found.quantiles.tobytes() == expected.quantiles.tobytes()


def other_test_span(data: SeriesArrays) -> SeriesArrays:
    """The same set up to the test span, with other values, gaps and past covariates in it."""
    rng = np.random.default_rng(5)
    held = np.zeros(len(data.y), dtype=bool)
    for i in range(data.n_series):
        held[data.rows(i)][data.valid_end[i] :] = True
    return replace(
        data,
        y=np.where(held, 1e3 * rng.random(len(held)), data.y),
        observed=np.where(held, rng.random(len(held)) < 0.5, data.observed),
        past=np.where(held[:, None], np.float32(7), data.past),
    )


def test_the_test_span_has_no_influence_on_the_fit(kind: str) -> None:
    fit = usual(kind)
    assert_same_bits(fit.fitted, fit_on(kind, other_test_span(fit.data)).fitted)


@cache
def refitted(kind: str) -> Fitted:
    fit = usual(kind)
    return forecaster(kind).refit(fit.fitted, fit.data, Compute(seed=1))


def assert_same_bits(one: Fitted, other: Fitted) -> None:
    (values, arrays), (other_values, other_arrays) = one.state(), other.state()
    assert other_values == values
    assert other_arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert other_arrays[name].tobytes() == array.tobytes(), name


def test_a_refit_keeps_the_spec_and_the_statistics(kind: str) -> None:
    fit = usual(kind)
    assert refitted(kind).spec == fit.fitted.spec
    assert refitted(kind).stats is fit.fitted.stats


def test_a_refit_leaves_the_fitted_model_as_it_was(kind: str) -> None:
    fit = fit_on(kind, usual(kind).data)
    forecaster(kind).refit(fit.fitted, fit.data, Compute(seed=1))
    assert_same_bits(usual(kind).fitted, fit.fitted)


def test_a_refit_of_a_restored_model_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    fit = usual(kind)
    artifact.save(fit.fitted, tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    assert_same_bits(refitted(kind), forecaster(kind).refit(loaded, fit.data, Compute(seed=1)))


def test_a_refitted_model_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    artifact.save(refitted(kind), tmp_path / "model")
    loaded = artifact.load(tmp_path / "model")
    windows = usual(kind).windows()
    expected, found = refitted(kind).forecast(windows), loaded.forecast(windows)
    assert found.mean.tobytes() == expected.mean.tobytes()
    assert found.quantiles.tobytes() == expected.quantiles.tobytes()


def test_the_test_span_has_no_influence_on_a_refit(kind: str) -> None:
    fit = usual(kind)
    again = forecaster(kind).refit(fit.fitted, other_test_span(fit.data), Compute(seed=1))
    assert_same_bits(refitted(kind), again)


def test_another_set_is_refused_for_a_refit(kind: str) -> None:
    fit = usual(kind)
    with pytest.raises(DataError, match=rf"{kind}: the set has 2 series"):
        forecaster(kind).refit(fit.fitted, fit.data.take([0, 2]), Compute())


def with_a_new_effect(data: SeriesArrays) -> SeriesArrays:
    """From the validation span on, the known event adds five times what it added before."""
    y, event = data.y.copy(), data.contract.future.index("event")
    for i in range(data.n_series):
        rows = data.rows(i)
        later = slice(rows.start + int(data.train_end[i]), rows.stop)
        y[later] += 2.0 * 10.0 ** (i % 3) * data.future[later, event]
    past = np.roll(y, 1).astype(np.float32)[:, None]
    past[data.offsets[:-1]] = y[data.offsets[:-1], None]
    return replace(data, y=y, past=past)


def test_a_refit_learns_what_began_in_the_validation_span(kind: str) -> None:
    plain = seasonal_set(length=900)
    early = replace(plain, train_end=np.full(3, 360))
    rows = [early.y[early.rows(i)][:360] for i in range(3)]
    data = with_a_new_effect(replace(early, stats=stats_of(rows, 24)))
    trained = {"epochs": 6, "hidden": 16, "batch": 32, "lr": 0.01, "refit_epochs": 3}
    params = trained if kind in QUICK else {}
    fitted = fit_fully(kind, data, TASK, params)
    series, origins = origins_in(data, "test", fitted.spec.lookback, TASK.horizon)
    windows = windows_at(data, series, origins, fitted.spec.lookback, TASK.horizon)
    actual = actuals_at(data, series, origins, TASK.horizon)
    again = forecaster(kind).refit(fitted, data, Compute())
    before, after = (
        (np.abs(one.forecast(windows).mean - actual) / windows.scale[:, None]).mean()
        for one in (fitted, again)
    )
    if kind == "seasonal_naive":
        assert after == before
    else:
        assert after < 0.8 * before


def test_an_unknown_parameter_is_refused_before_any_work(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"models\.{kind}\.params\.lagz: unknown parameter"):
        fit_fully(kind, seasonal_set(), TASK, {"lagz": 3})


def test_a_series_never_seen_before(kind: str) -> None:
    fit = usual(kind)
    windows = fit.windows(stride=23)
    names = tuple(f"new-{name}" for name in windows.ids)
    unseen = replace(windows, ids=names, scale=np.full(len(windows), np.nan))
    if fit.fitted.spec.needs_known_series:
        with pytest.raises(DataError, match="new-s0"):
            fit.fitted.forecast(unseen)
        return
    forecast = fit.fitted.forecast(unseen)
    assert np.isfinite(forecast.mean).all() and np.isfinite(forecast.quantiles).all()
    assert (np.diff(forecast.quantiles, axis=2) >= 0).all()
    known = fit.fitted.forecast(windows).mean
    assert (np.abs(forecast.mean - known) / windows.scale[:, None]).mean() < 1.0


def test_no_window_at_all_gives_an_empty_forecast(kind: str) -> None:
    windows = usual(kind).windows().part(slice(0, 0))
    forecast = usual(kind).fitted.forecast(windows)
    assert forecast.mean.shape == (0, 6)
    assert forecast.quantiles.shape == (0, 6, 5)


def test_series_too_short_to_learn_from_are_refused(kind: str) -> None:
    data = seasonal_set(length=600)
    short = replace(data, train_end=np.full(3, 4), valid_end=np.full(3, 8))
    with pytest.raises(DataError):
        fit_fully(kind, short, TASK, QUICK.get(kind, {}))


def test_noise_free_seasons_are_learned(kind: str) -> None:
    data = seasonal_set(noise=0.0, covariates=False)
    # Stands for the scale of real data: without noise the seasonal differences are all zero.
    data = replace(data, stats=replace(data.stats, scale=0.1 * data.stats.std))
    model = forecaster(kind)
    params = {"epochs": 30} if model.iterative else {}
    fitted = fit_fully(kind, data, TASK, params)
    series, origins = origins_in(data, "test", fitted.spec.lookback, TASK.horizon, 5)
    windows = windows_at(data, series, origins, fitted.spec.lookback, TASK.horizon)
    missed = np.abs(fitted.forecast(windows).mean - actuals_at(data, series, origins, 6))
    assert (missed / data.stats.std[series][:, None]).mean() < 0.05
