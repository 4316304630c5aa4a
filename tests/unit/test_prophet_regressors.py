"""Covariates of Prophet: marks as they are, the rest as quadratics with inertia."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from flts_ray.models.prophet_regressors import Regressors, offered, regressors_of
from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesArrays
from tests.synthetic import seasonal_set

SEASON = 4
CONTRACT = Contract(
    freq="1h", season=SEASON, calendar=("hour_sin", "holiday"), known_future=("event", "heat")
)
CURVED = Regressors(("holiday",), ("heat",), (10.0,), (2.0,), SEASON)


def future(steps: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    marks = rng.random((2, steps, 3)) < 0.5
    return np.concatenate([marks, rng.normal(10, 2, (2, steps, 1))], axis=2).astype(np.float32)


def with_heat(heat: np.ndarray, length: int = 100) -> SeriesArrays:
    """Two series with an event and a covariate [2 * length] known beforehand."""
    data = seasonal_set(n_series=2, length=length)
    contract = replace(data.contract, known_future=("event", "heat"))
    both = np.column_stack([data.future, heat.astype(np.float32)])
    return replace(data, contract=contract, future=both)


def test_only_holidays_and_covariates_are_offered() -> None:
    assert offered(CONTRACT) == ["holiday", "event", "heat"]


def test_columns_are_value_and_mean_of_a_season_with_their_products() -> None:
    told = future(9)
    found = CURVED.columns(told, CONTRACT)
    z = (told[..., 3].astype(np.float64) - 10.0) / 2.0
    mean = np.stack([z[:, i - SEASON + 1 : i + 1].mean(axis=1) for i in range(3, 9)], axis=1)
    now = z[:, 3:]
    expected = np.stack([told[:, 3:, 1], now, now**2, mean, mean**2, now * mean], axis=2)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_without_a_season_there_is_no_mean() -> None:
    one = replace(CURVED, season=1)
    assert one.reach == 0
    assert one.columns(future(5), CONTRACT).shape == (2, 5, 3)


def test_no_covariates_make_no_columns() -> None:
    assert Regressors().columns(future(5), CONTRACT).shape == (2, 5, 0)


def test_what_is_missing_of_the_past_spoils_nothing_later() -> None:
    told = future(12)
    told[0, 1, 3] = np.nan
    found = CURVED.columns(told, CONTRACT)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0, 3:], CURVED.columns(future(12), CONTRACT)[0, 3:])


def test_history_has_the_columns_of_the_same_steps_in_a_window() -> None:
    data = with_heat(np.random.default_rng(0).normal(10, 2, 200))
    told = regressors_of(data, "all")
    rows = data.future[data.rows(1)]
    window = told.columns(rows[None, 50 - told.reach : 70], data.contract)[0]
    np.testing.assert_allclose(told.history(data, 1, 50, 70), window, atol=1e-9)
    start = told.history(data, 1, 0, 1)[0]
    np.testing.assert_allclose(start[1], start[3])  # a series begins with its first value


def test_sets_by_name() -> None:
    heat = np.random.default_rng(0).normal(10, 2, 200)
    data = with_heat(heat)
    assert regressors_of(data, "none") == Regressors()
    assert regressors_of(data, "events") == Regressors(("event",))
    whole = regressors_of(data, "all")
    assert (whole.plain, whole.curved, whole.season) == (("event",), ("heat",), 24)
    training = np.concatenate([data.future[data.rows(i)][: data.train_end[i], 3] for i in (0, 1)])
    assert whole.center == pytest.approx((training.mean(),), rel=1e-6)
    assert whole.spread == pytest.approx((training.std(),), rel=1e-6)


def test_a_covariate_that_never_changes_is_finite() -> None:
    data = with_heat(np.full(200, 7.0))
    told = regressors_of(data, "all")
    assert not told.history(data, 0, 0, 100)[:, 1:].any()


def test_nothing_after_the_training_span_is_read() -> None:
    data = with_heat(np.random.default_rng(0).normal(10, 2, 200))
    later = data.future.copy()
    for series in range(2):
        later[data.rows(series)][data.train_end[series] :] = 9.0
    assert regressors_of(replace(data, future=later), "all") == regressors_of(data, "all")


def test_json_keeps_every_bit() -> None:
    data = with_heat(np.random.default_rng(0).normal(10, 2, 200))
    for word in ("none", "events", "all"):
        told = regressors_of(data, word)
        assert Regressors.from_json(json.loads(json.dumps(told.to_json()))) == told


def test_linear_is_every_covariate_as_it_is() -> None:
    told = future(5)
    found = Regressors.linear(CONTRACT).columns(told, CONTRACT)
    np.testing.assert_array_equal(found, told[..., 1:])
