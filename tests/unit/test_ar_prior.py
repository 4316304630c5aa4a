"""Long maps shrink to repeating the season, and are scored on sums alone."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.models.ar import FittedAR
from flts_ray.models.ar_features import Layout, deviations, shared_features
from flts_ray.models.ar_map import Sample, moments_of
from flts_ray.models.ar_prior import (
    PENALTIES,
    Shrinkage,
    choose_borrowed,
    choose_shrinkage,
    folded,
    long_layout,
    prior_of,
    shrunk_fit,
)
from flts_ray.models.ar_settings import Settings, layout_of, reach_of
from flts_ray.models.base import Compute, Task, fit_fully, forecaster
from flts_ray.models.ridge import Moments, Ridge, squared_errors
from flts_ray.models.season import DECAYS, POWERS
from flts_ray.prepare.arrays import SeriesArrays, origins_in, windows_at
from tests.synthetic import seasonal_set

LEVELS = (0.1, 0.5, 0.9)


def layout(reach: int = 60, horizon: int = 30, season: int = 24) -> Layout:
    none = np.zeros(0)
    return Layout(tuple(range(2, reach + 1)), 0, reach, horizon, season, (), none, none)


def sample(data: SeriesArrays, span: str, shape: Layout) -> Sample:
    return Sample(data, *origins_in(data, span, shape.lookback, shape.horizon))


def moments(seed: int, n: int = 40, d: int = 5, steps: int = 3, width: int = 2) -> Moments:
    rng = np.random.default_rng(seed)
    return Moments.of(
        rng.normal(size=(n, d)), rng.normal(size=(n, steps, width)), rng.normal(size=(n, steps))
    )


def test_the_grid_has_180_settings() -> None:
    assert len(POWERS) * len(DECAYS) * len(PENALTIES) == 180


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 12),
    st.integers(1, 30),
    st.integers(2, 60),
    st.sampled_from([decay for decay in DECAYS if decay]),
)
def test_the_prior_repeats_a_season_of_any_shape(
    season: int, horizon: int, reach: int, decay: float
) -> None:
    shape = layout(max(reach, season + 1), horizon, season)
    cycle = np.random.default_rng(season).normal(size=season)
    y = np.tile(cycle, -(-(shape.lookback + horizon) // season))[: shape.lookback + horizon]
    values = deviations(y[None, : shape.lookback])
    told = shared_features(values, shape) @ prior_of(shape, decay)
    whole = np.arange(horizon) < (shape.lookback // season) * season
    expected = y[shape.lookback :] - y[shape.lookback - 1]
    np.testing.assert_allclose(told[0][whole], expected[whole], atol=1e-12)


def test_newer_cycles_weigh_more_and_all_weights_are_one() -> None:
    shape = layout(reach=96, horizon=2)
    weights = prior_of(shape, 0.5)[np.asarray([24, 48, 72, 96]) - 2, 0]
    np.testing.assert_allclose(weights, np.asarray([8, 4, 2, 1]) / 15)


def test_without_decay_or_a_whole_season_the_last_value_goes_on() -> None:
    assert not prior_of(layout(), 0.0).any()
    assert not prior_of(layout(reach=20, horizon=3), 0.9).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-4, 0.1, 10.0]), st.booleans())
def test_a_fit_solves_its_normal_equations(seed: int, penalty: float, intercept: bool) -> None:
    rng = np.random.default_rng(seed)
    n, d, steps, width = 30, 4, 2, 2
    shared = rng.normal(size=(n, d)) + 1.0
    step, target = rng.normal(size=(n, steps, width)), rng.normal(size=(n, steps))
    weights, prior = rng.uniform(0.5, 2.0, size=d), rng.normal(size=(d, steps))
    ridge = Ridge(Moments.of(shared, step, target), weights, intercept)
    (fit,) = ridge.fits([penalty], np.ones(width, bool), prior)
    for h in range(steps):
        x = np.concatenate([shared, step[:, h]], axis=1)
        centre = x.mean(axis=0) if intercept else np.zeros(d + width)
        spread = step[:, h].std(axis=0) if intercept else np.sqrt((step[:, h] ** 2).mean(axis=0))
        told = np.append(prior[:, h], np.zeros(width))
        left = target[:, h] - x @ told
        left = left - left.mean() if intercept else left
        pull = penalty * np.append(1 / weights**2, spread**2)
        gram = (x - centre).T @ (x - centre) / n + np.diag(pull)
        expected = told + np.linalg.solve(gram, (x - centre).T @ left / n)
        np.testing.assert_allclose(np.append(fit.shared[:, h], fit.step[h]), expected, atol=1e-8)
        level = (target[:, h] - x @ expected).mean() if intercept else 0.0
        assert fit.bias[h] == pytest.approx(level, abs=1e-8)


def test_an_endless_penalty_gives_the_prior() -> None:
    prior = np.random.default_rng(0).normal(size=(5, 3))
    (fit,) = Ridge(moments(1), np.ones(5)).fits([1e12], np.ones(2, bool), prior)
    np.testing.assert_allclose(fit.shared, prior, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_errors_from_sums_are_those_of_the_windows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shared, step = rng.normal(size=(25, 4)), rng.normal(size=(25, 3, 2))
    target = rng.normal(size=(25, 3)) * 10
    (fit,) = Ridge(moments(seed, d=4), np.ones(4)).fits([0.1], np.ones(2, bool))
    told = shared @ fit.shared + np.einsum("nhp,hp->nh", step, fit.step) + fit.bias
    expected = ((target - told) ** 2).mean(axis=0)
    found = squared_errors(Moments.of(shared, step, target), fit)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_folded_fit_is_the_same_forecast() -> None:
    data = seasonal_set(length=1500)
    full = layout_of(data, 6, Settings())
    shape = long_layout(full, 80)
    training = sample(data, "train", shape)
    fit = shrunk_fit(moments_of(training, shape), shape, Shrinkage(1.0, 0.9, 0.1))
    folded_map = folded(fit, full)
    part, windows, scale, future = next(training.chunks(shape))
    values = deviations(windows.y) / scale[:, None]
    told = shared_features(values, shape) @ fit.shared + fit.bias
    told += np.einsum("nhp,hp->nh", future, fit.step)
    expected = windows.y[:, -1:] + told * scale[:, None]
    whole = replace(full, lookback=80)
    np.testing.assert_allclose(folded_map.over(training, whole)[part], expected, rtol=1e-8)


def test_the_choice_is_the_best_setting_on_validation() -> None:
    data = seasonal_set(length=1500, noise=1.0)
    shape = long_layout(layout_of(data, 6, Settings()), 80)
    training = moments_of(sample(data, "train", shape), shape)
    valid = moments_of(sample(data, "validation", shape), shape)
    setting, fit = choose_shrinkage(training, valid, shape)
    best = squared_errors(valid, fit).mean()
    for other in (Shrinkage(0.0, 0.0, PENALTIES[0]), Shrinkage(2.0, 1.0, PENALTIES[-1])):
        assert best <= squared_errors(valid, shrunk_fit(training, shape, other)).mean()
    np.testing.assert_allclose(shrunk_fit(training, shape, setting).shared, fit.shared)
    own, fit = choose_borrowed([(0.5, training), (1.0, training)], valid, shape, setting)
    assert (own.power, own.decay, own.borrowed) == (setting.power, setting.decay, 0.5)


def fitted_set(**params: object) -> tuple[FittedAR, SeriesArrays]:
    data = seasonal_set(n_series=2, length=1500, noise=2.0, covariates=False)
    fitted = fit_fully("ar", data, Task(12, LEVELS), {"reach": 200, **params})
    assert isinstance(fitted, FittedAR)
    return fitted, data


def test_a_long_map_serves_where_only_the_season_tells() -> None:
    fitted, data = fitted_set()
    assert fitted.spec.lookback == fitted.recipe.reach == 200
    short, _ = fitted_set(reach=0)
    assert short.recipe.reach == 0
    errors = []
    for one in (fitted, short):
        series, origins = origins_in(data, "test", 200, 12)
        windows = windows_at(data, series, origins, 200, 12)
        at = (data.offsets[series] + origins)[:, None] + np.arange(12)
        errors.append(np.abs(data.y[at] - one.forecast(windows).mean).mean())
    assert errors[0] <= 1.02 * errors[1]


def test_series_alike_share_one_map() -> None:
    fitted, _ = fitted_set()
    assert len(fitted.maps) == 1


def test_a_refit_fits_the_long_map_on_both_spans() -> None:
    fitted, data = fitted_set()
    again = forecaster("ar").refit(fitted, data, Compute())
    assert isinstance(again, FittedAR)
    assert again.recipe.shrinkage == fitted.recipe.shrinkage
    assert again.spec.lookback == fitted.spec.lookback
    assert np.abs(again.maps[0].values - fitted.maps[0].values).max() > 0


def test_how_far_a_long_map_sees() -> None:
    data = seasonal_set(length=1500)
    shape = layout_of(data, 6, Settings())
    assert reach_of(data, shape, Settings()) == (int(np.median(data.train_end)) - 6) // 4
    assert reach_of(data, shape, Settings(reach=100)) == 100
    assert reach_of(data, shape, Settings(reach=0)) == 0
    assert reach_of(data, shape, Settings(lags=5)) == 0
    short = seasonal_set(length=120)
    assert reach_of(short, layout_of(short, 6, Settings()), Settings()) == 0


def test_one_validation_window_a_series_is_no_test_of_anything() -> None:
    """Many short series: nothing can be cross-validated, and the long map stays."""
    data = seasonal_set(n_series=40, length=300, noise=1.0, covariates=False)
    data = replace(data, valid_end=data.train_end + 12, train_end=data.train_end)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a deviation of one block
        fitted = fit_fully("ar", data, Task(12, LEVELS), {"reach": 48, "pooling": "global"})
    assert isinstance(fitted, FittedAR)
    assert (fitted.recipe.picks[0] == len(fitted.recipe.grid.settings)).all()
