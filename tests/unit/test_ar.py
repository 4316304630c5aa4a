"""The linear model finds linear structure, for every step, series and scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flts_ray.errors import ConfigError, DataError
from flts_ray.models.ar import FittedAR
from flts_ray.models.ar_features import Layout, future_features, seasonal_features
from flts_ray.models.ar_map import Sample, moments_of
from flts_ray.models.ar_settings import Settings, layout_of
from flts_ray.models.base import Compute, Task, fit_fully, forecaster
from flts_ray.models.ridge import Moments, solve
from flts_ray.prepare.arrays import (
    SeriesArrays,
    Windows,
    actuals_at,
    origins_in,
    windows_at,
)
from tests.synthetic import seasonal_set, stats_of

LEVELS = (0.1, 0.5, 0.9)


def fit(data: SeriesArrays, horizon: int = 6, **params: Any) -> FittedAR:
    # The maps over a long history have a file of their own, and take seconds.
    fitted = fit_fully("ar", data, Task(horizon, LEVELS), {"reach": 0, **params})
    assert isinstance(fitted, FittedAR)
    return fitted


def judged_windows(fitted: FittedAR, data: SeriesArrays, only: int | None = None) -> Windows:
    series, origins = origins_in(data, "test", fitted.spec.lookback, fitted.spec.task.horizon)
    kept = np.ones(len(series), bool) if only is None else series == only
    lookback, horizon = fitted.spec.lookback, fitted.spec.task.horizon
    return windows_at(data, series[kept], origins[kept], lookback, horizon)


def error(fitted: FittedAR, data: SeriesArrays, only: int | None = None) -> float:
    """Mean absolute scaled error over the test span."""
    series, origins = origins_in(data, "test", fitted.spec.lookback, fitted.spec.task.horizon)
    windows = judged_windows(fitted, data, only)
    kept = np.ones(len(series), bool) if only is None else series == only
    actual = actuals_at(data, series[kept], origins[kept], fitted.spec.task.horizon)
    missed = np.abs(actual - fitted.forecast(windows).mean)
    return float((missed / windows.scale[:, None]).mean())


def with_y(data: SeriesArrays, y: np.ndarray) -> SeriesArrays:
    """The same set with other values and the statistics that belong to them."""
    rows = [y[data.rows(i)][: data.train_end[i]] for i in range(data.n_series)]
    return replace(data, y=y, stats=stats_of(rows, data.contract.season))


def autoregressive(data: SeriesArrays, weights: dict[int, list[float]], seed: int) -> SeriesArrays:
    """Every series i follows y[t] = sum_j weights[i][j] y[t-1-j] + noise."""
    rng = np.random.default_rng(seed)
    y = rng.standard_normal(len(data.y))
    for i in range(data.n_series):
        rows = data.rows(i)
        for t in range(rows.start + 2, rows.stop):
            y[t] += np.dot(weights[i], y[t - len(weights[i]) : t][::-1])
    return with_y(data, y)


def test_ridge_agrees_with_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    shared, step = rng.standard_normal((50, 4)), rng.standard_normal((50, 3, 2)) * 5
    target = rng.standard_normal((50, 3))
    kept = np.array([True, True])
    fits = solve(Moments.of(shared, step, target), (0.3, 2.0), kept)
    for penalty, found in zip((0.3, 2.0), fits, strict=True):
        for h in range(3):
            x = np.concatenate([shared, step[:, h]], axis=1)
            z = (x - x.mean(axis=0)) / x.std(axis=0)
            right = z.T @ (target[:, h] - target[:, h].mean()) / 50
            weights = np.linalg.solve(z.T @ z / 50 + penalty * np.eye(6), right) / x.std(axis=0)
            np.testing.assert_allclose(found.shared[:, h], weights[:4], atol=1e-12)
            np.testing.assert_allclose(found.step[h], weights[4:], atol=1e-12)
            bias = target[:, h].mean() - x.mean(axis=0) @ weights
            assert found.bias[h] == pytest.approx(bias)


def test_ridge_leaves_out_what_is_not_kept_and_what_never_varies() -> None:
    rng = np.random.default_rng(1)
    shared, step = rng.standard_normal((50, 2)), rng.standard_normal((50, 1, 3))
    shared[:, 1] = 7.0
    found = solve(
        Moments.of(shared, step, step.sum(axis=2)), (1e-9,), np.array([True, False, True])
    )[0]
    assert found.shared[1, 0] == 0 and found.step[0, 1] == 0
    np.testing.assert_allclose(found.step[0, [0, 2]], 1, atol=0.6)


def test_moments_of_parts_add_up_to_those_of_the_whole() -> None:
    data = seasonal_set()
    layout = layout_of(data, 6, Settings())
    series, origins = origins_in(data, "train", layout.lookback, 6)
    whole = Sample(data, series, origins)
    parts = [moments_of(whole.of(row), layout) for row in range(3)]
    total, direct = parts[0] + parts[1] + parts[2], moments_of(whole, layout)
    for name, value in vars(direct).items():
        np.testing.assert_allclose(getattr(total, name), value, rtol=1e-9, atol=1e-6)


def test_noise_free_seasons_are_continued() -> None:
    data = seasonal_set(noise=0.0, covariates=False)
    fitted = fit(data, 30)
    windows = judged_windows(fitted, data)
    series, origins = origins_in(data, "test", fitted.spec.lookback, 30)
    actual = actuals_at(data, series, origins, 30)
    np.testing.assert_allclose(fitted.forecast(windows).mean, actual, rtol=1e-4)


def test_one_step_error_is_that_of_the_process() -> None:
    data = seasonal_set(n_series=2, length=4000, covariates=False)
    data = autoregressive(data, {0: [1.2, -0.4], 1: [1.2, -0.4]}, seed=2)
    fitted = fit(data, 1)
    series, origins = origins_in(data, "test", fitted.spec.lookback, 1)
    missed = (
        actuals_at(data, series, origins, 1) - fitted.forecast(judged_windows(fitted, data)).mean
    )
    assert np.sqrt((missed**2).mean()) == pytest.approx(1.0, abs=0.05)


def test_known_future_covariates_are_used() -> None:
    data = seasonal_set(noise=0.02)
    blind = replace(
        data,
        future=data.future[:, :2],
        contract=replace(data.contract, known_future=()),
    )
    assert error(fit(data), data) < 0.4 * error(fit(blind), blind)


def test_series_that_differ_get_maps_of_their_own() -> None:
    data = seasonal_set(n_series=2, length=3000, covariates=False)
    data = autoregressive(data, {0: [0.9], 1: [-0.9]}, seed=3)
    own, pooled = fit(data, 1, pooling="auto"), fit(data, 1, pooling="global")
    assert own.recipe.owners.tolist() == [0, 1]
    assert pooled.recipe.owners.tolist() == []
    for series in (0, 1):
        # Both follow y[t] = 0.81 y[t-2] + noise of variance 1.81, which one map can know.
        assert error(own, data, series) < 0.8 * error(pooled, data, series)


def test_a_map_of_its_own_belongs_to_the_id_not_the_place() -> None:
    data = seasonal_set(n_series=2, length=3000, covariates=False)
    data = autoregressive(data, {0: [0.9], 1: [-0.9]}, seed=3)
    fitted = fit(data)
    windows = judged_windows(fitted, data)
    turned = np.arange(len(windows))[::-1]
    swapped = replace(
        windows,
        ids=tuple(windows.ids[i] for i in turned),
        **{n: getattr(windows, n)[turned] for n in ("y", "future", "scale", "origin_us")},
    )
    expected, found = fitted.forecast(windows), fitted.forecast(swapped)
    np.testing.assert_allclose(found.mean[turned], expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.quantiles[turned], expected.quantiles, rtol=1e-12)


def test_a_forecast_does_not_depend_on_its_batch_by_a_single_bit() -> None:
    data = seasonal_set()
    fitted = fit(data)
    windows = judged_windows(fitted, data)
    whole = fitted.forecast(windows)
    for i in (0, 63, 64, len(windows) - 1):
        alone = fitted.forecast(windows.part(slice(i, i + 1)))
        assert alone.mean.tobytes() == whole.mean[i].tobytes()
        assert alone.quantiles.tobytes() == whole.quantiles[i].tobytes()


def test_bands_cover_the_test_span() -> None:
    data = seasonal_set(n_series=4, length=3000)
    fitted = fit(data, 12)
    series, origins = origins_in(data, "test", fitted.spec.lookback, 12)
    quantiles = fitted.forecast(judged_windows(fitted, data)).quantiles
    actual = actuals_at(data, series, origins, 12)
    covered = (actual >= quantiles[..., 0]) & (actual <= quantiles[..., 2])
    assert 0.76 < covered.mean() < 0.84


def test_bands_follow_the_volatility_where_it_changes() -> None:
    data = seasonal_set(n_series=1, length=4000, noise=0.0, covariates=False)
    rng = np.random.default_rng(4)
    calm = np.repeat(rng.random(40) < 0.5, 100)
    noise = rng.standard_normal(4000) * np.where(calm, 0.05, 1.0)
    data = with_y(data, data.y + noise)
    fitted = fit(data)
    assert fitted.volatility.slopes.sum() > 0.5
    origins = origins_in(data, "test", fitted.spec.lookback, 6)[1]
    width = np.ptp(fitted.forecast(judged_windows(fitted, data)).quantiles, axis=2).mean(axis=1)
    settled = origins % 100 > 50
    assert width[settled & ~calm[origins]].mean() > 3 * width[settled & calm[origins]].mean()


def test_a_wild_value_in_training_is_clipped_as_in_forecasts() -> None:
    data = seasonal_set(covariates=False)
    y = data.y.copy()
    y[[100, 130, 700, 1300]] *= 1e4
    stats = replace(data.stats, clip_hi=data.stats.mean * 3)
    clipped = fit(replace(data, y=y, stats=stats))
    assert error(clipped, data) < 1.2 * error(fit(data), data)


def test_many_settings_are_one_fit_and_the_choice_is_reported() -> None:
    model = forecaster("ar")
    steps = list(model.fit(seasonal_set(), Task(6, LEVELS), {"ridge": [1e-3, 1.0]}, Compute()))
    assert len(steps) == 1
    params = steps[0].fitted.spec.params
    assert set(params) == set(model.defaults)
    assert set(params["ridge"]) <= {1e-3, 1.0}
    again = fit_fully("ar", seasonal_set(), Task(6, LEVELS), params)
    assert again.spec.lookback == steps[0].fitted.spec.lookback


def test_validation_chooses_the_penalty() -> None:
    data = seasonal_set(noise=1.0, n_series=1, covariates=False)
    fitted = fit(data, ridge=[1e-6, 10.0], calendar=False, reach=0)
    assert fitted.spec.params["ridge"] == [10.0]


def test_lags_may_be_listed() -> None:
    fitted = fit(seasonal_set(), lags=[1, 2, 24], seasons=0)
    assert fitted.spec.lookback == 24
    used = np.flatnonzero(np.abs(fitted.maps[0].values).sum(axis=1)) + 1
    # The mean of the window gives every step a small weight; the listed ones stand out.
    assert len(used) == 24
    weights = np.abs(fitted.maps[0].values[:, 0])
    assert {0, 22} <= set(np.argsort(weights)[-3:].tolist())


def test_default_lags_leave_short_series_windows_to_learn_from() -> None:
    fitted = fit(seasonal_set(length=100))
    assert fitted.spec.lookback <= 27


def test_seasonal_lags_point_to_whole_seasons_before_the_target() -> None:
    layout = Layout((2,), 2, 48, 30, 24, (), np.zeros(0), np.ones(0))
    values = np.arange(48.0)[None]
    found = seasonal_features(values, layout)[0]
    assert found[0].tolist() == [24.0, 0.0]
    assert found[23].tolist() == [47.0, 23.0]
    # Step 24 (from zero) lies more than a season ahead: its nearest lag is two seasons back.
    assert found[24].tolist() == [24.0, 0.0]


def test_calendar_harmonics_tell_weekdays_apart() -> None:
    angle = 2 * np.pi * np.arange(7) / 7
    future = np.stack([np.sin(angle), np.cos(angle)], axis=1)[None]
    data = seasonal_set(n_series=1, covariates=False)
    windows = windows_at(data, np.array([0]), np.array([100]), 2, 5)
    names = ("weekday_sin", "weekday_cos")
    layout = Layout((2,), 0, 2, 5, 7, names, np.zeros(0), np.ones(0), names)
    columns = future_features(replace(windows, future=future), layout)[0]
    assert columns.shape == (5, 6)
    for power in (2, 3):
        turns = power * angle[2:]
        expected = np.stack([np.cos(turns), np.sin(turns)], axis=1)
        np.testing.assert_allclose(columns[:, 2 * power - 2 : 2 * power], expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["global", "per_series"])
def test_a_refit_gives_the_maps_of_both_spans_together(pooling: str) -> None:
    plain = seasonal_set(n_series=2, length=1500, covariates=False)
    data = autoregressive(plain, {0: [0.9], 1: [-0.9]}, seed=3)
    params: dict[str, Any] = {
        "lags": 5,
        "seasons": 1,
        "ridge": 0.01,
        "calendar": True,
        "pooling": pooling,
    }
    fitted = fit(data, **params)
    again = forecaster("ar").refit(fitted, data, Compute())
    later = replace(data, train_end=data.valid_end, valid_end=data.lengths)
    expected = fit(later, **params)
    assert isinstance(again, FittedAR)
    assert len(again.maps) == len(expected.maps) == (1 if pooling == "global" else 3)
    for found, map_, before in zip(again.maps, expected.maps, fitted.maps, strict=True):
        np.testing.assert_array_equal(found.values, map_.values)
        np.testing.assert_array_equal(found.future, map_.future)
        np.testing.assert_array_equal(found.bias, map_.bias)
        assert np.abs(found.values - before.values).max() > 1e-4


def test_a_refit_keeps_what_validation_has_chosen() -> None:
    data = seasonal_set(n_series=2, length=3000, covariates=False)
    data = autoregressive(data, {0: [0.9], 1: [-0.9]}, seed=3)
    fitted = fit(data, 6)
    assert len(np.unique(fitted.recipe.picks)) > 1
    before, after = fitted.state(), forecaster("ar").refit(fitted, data, Compute()).state()
    assert after[0] == before[0]
    kept = ("picks", "owners", "center", "spread", "band_pooled", "band_own", "band_owners")
    for name in kept:
        np.testing.assert_array_equal(after[1][name], before[1][name])


def test_missing_covariates_of_the_past_count_as_average() -> None:
    data = seasonal_set()
    fitted = fit(data)
    windows = judged_windows(fitted, data)
    holed, average = windows.future.copy(), windows.future.copy()
    known = np.s_[:, : windows.lookback, 2]
    holed[known], average[known] = np.nan, fitted.layout.center[0]
    found = fitted.forecast(replace(windows, future=holed)).mean
    expected = fitted.forecast(replace(windows, future=average)).mean
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_without_validation_windows_training_calibrates() -> None:
    data = seasonal_set()
    data = replace(data, valid_end=data.train_end + 2)
    fitted = fit(data)
    quantiles = fitted.forecast(judged_windows(fitted, data)).quantiles
    assert (np.diff(quantiles, axis=2) > 0).all()


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"ridge": 0}, "ridge"),
        ({"ridge": []}, "ridge"),
        ({"ridge": ["a"]}, "ridge"),
        ({"lags": 0}, "lags"),
        ({"lags": []}, "lags"),
        ({"lags": 2.5}, "lags"),
        ({"pooling": "some"}, "pooling"),
        ({"calendar": 3}, "calendar"),
        ({"max_windows": 0}, "max_windows"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"models\.ar\.params\.{field}: .*value: "):
        fit(seasonal_set(), **params)


def test_lags_that_leave_no_window_are_refused() -> None:
    with pytest.raises(DataError, match="no series has a training window of 500"):
        fit(seasonal_set(), lags=500)


def test_too_short_a_window_says_how_many_steps_are_missing() -> None:
    data = seasonal_set()
    fitted = fit(data, lags=24, seasons=0)
    with pytest.raises(DataError, match="history has 20 steps, the model looks back 24: give 4"):
        fitted.forecast(windows_at(data, np.array([0]), np.array([400]), 20, 6))
