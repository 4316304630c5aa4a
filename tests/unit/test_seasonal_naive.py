"""The baseline repeats the last season, and says how wrong that usually is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flts_ray.errors import ConfigError, DataError
from flts_ray.models.base import Task, fit_fully
from flts_ray.models.seasonal_naive import seasonal_naive
from flts_ray.prepare.arrays import actuals_at, origins_in, windows_at
from tests.synthetic import seasonal_set

TASK = Task(30, (0.1, 0.5, 0.9))


def test_a_horizon_beyond_the_season_repeats_it() -> None:
    history = np.array([[9.0, 1.0, 2.0, 3.0]])
    assert seasonal_naive(history, 3, 7).tolist() == [[1, 2, 3, 1, 2, 3, 1]]


def test_the_season_parameter_replaces_the_contracts() -> None:
    data = seasonal_set()
    assert fit_fully("seasonal_naive", data, TASK).spec.lookback == 24
    fitted = fit_fully("seasonal_naive", data, TASK, {"season": 12})
    windows = windows_at(data, np.array([0]), np.array([400]), 24, 30)
    expected = np.resize(windows.y[:, 12:], (1, 30))
    np.testing.assert_array_equal(fitted.forecast(windows).mean, expected)


@pytest.mark.parametrize("season", [0, -1, 2.5, "day", True])
def test_a_season_that_is_none_is_refused(season: Any) -> None:
    with pytest.raises(ConfigError, match=r"seasonal_naive\.params\.season: .* no whole number"):
        fit_fully("seasonal_naive", seasonal_set(), TASK, {"season": season})


def test_bands_cover_the_test_span() -> None:
    data = seasonal_set(n_series=4, length=3000)
    fitted = fit_fully("seasonal_naive", data, TASK)
    series, origins = origins_in(data, "test", 24, 30)
    forecast = fitted.forecast(windows_at(data, series, origins, 24, 30))
    actual = actuals_at(data, series, origins, 30)
    covered = (actual >= forecast.quantiles[..., 0]) & (actual <= forecast.quantiles[..., 2])
    assert 0.75 < covered.mean() < 0.85


def test_a_horizon_longer_than_validation_calibrates_on_training() -> None:
    fitted = fit_fully("seasonal_naive", seasonal_set(), Task(130, TASK.levels))
    windows = windows_at(seasonal_set(), np.array([0]), np.array([400]), 24, 130)
    quantiles = fitted.forecast(windows).quantiles
    assert (quantiles[..., 2] > quantiles[..., 0]).all()


def test_too_short_series_are_refused() -> None:
    with pytest.raises(DataError, match="no series has a season of 24 steps"):
        fit_fully("seasonal_naive", seasonal_set(length=60), TASK)


def test_too_short_a_window_says_how_many_steps_are_missing() -> None:
    data = seasonal_set()
    fitted = fit_fully("seasonal_naive", data, TASK)
    with pytest.raises(DataError, match="history has 20 steps, the model looks back 24: give 4"):
        fitted.forecast(windows_at(data, np.array([0]), np.array([400]), 20, 30))
