"""Forecasts stay above a zero that their window touched and never passed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flts_ray.models.base import Fitted, ModelSpec, Task, fit_fully
from flts_ray.models.blend import WeightTable, blend_of
from flts_ray.models.onnx_export import exported
from flts_ray.models.recurrent_update import served
from flts_ray.models.support import floored
from flts_ray.prepare.arrays import SeriesArrays, Windows, origins_in, windows_at
from tests.synthetic import seasonal_set, stats_of

TASK = Task(6, (0.025, 0.1, 0.5, 0.9, 0.975))


def test_only_a_window_that_stood_on_zero_has_a_floor() -> None:
    data, spec = sunny(), ModelSpec("ar", Task(1, (0.5, 0.9)), 2, sunny().contract, {})
    windows = windows_at(data, np.zeros(3, np.int64), np.array([50, 60, 70]), 4, 1)
    y = np.array([[9.0, 0.0, 0.0, 3.0], [0.0, 9.0, 1.0, 3.0], [9.0, 9.0, -1.0, 0.0]])
    given = np.full((3, 1), -2.0), np.tile([-3.0, 4.0], (3, 1, 1))
    found = floored(spec, replace(windows, y=y), *given)
    assert found.mean.tolist() == [[0.0], [-2.0], [-2.0]]
    assert found.quantiles.tolist() == [[[0.0, 4.0]], [[-3.0, 4.0]], [[-3.0, 4.0]]]


def sunny() -> SeriesArrays:
    """Nothing at night, and a different sun every day."""
    data = seasonal_set(n_series=2, covariates=False)
    hours, days = np.arange(len(data.y)) % 24, np.random.default_rng(0).random(len(data.y) // 24)
    y = np.maximum(np.sin(2 * np.pi * (hours - 6) / 24), 0.0) * np.repeat(days, 24)
    rows = [y[data.rows(i)][: data.train_end[i]] for i in range(data.n_series)]
    return replace(data, y=y, stats=stats_of(rows, data.contract.season))


def seen_by(fitted: Fitted, data: SeriesArrays) -> Windows:
    lookback = fitted.spec.lookback
    series, origins = origins_in(data, "test", lookback, TASK.horizon, 5)
    return windows_at(data, series, origins, lookback, TASK.horizon)


@pytest.mark.parametrize("kind", ["seasonal_naive", "ar", "prophet"])
def test_no_model_of_a_mean_forecasts_less_than_no_sun(kind: str) -> None:
    data = sunny()
    fitted: Any = fit_fully(kind, data, TASK)
    windows = seen_by(fitted, data)
    found = fitted.forecast(windows)
    assert found.quantiles.min() == 0 == min(found.mean.min(), 0)
    # What bands learn from is how they lie around the mean, not where the floor cuts them off.
    bands, _ = fitted.served(windows)
    assert bands.min() < 0
    np.testing.assert_array_equal(found.quantiles, np.maximum(bands, 0))
    below = replace(windows, y=windows.y - 1)
    assert fitted.forecast(below).quantiles.min() < 0


@pytest.mark.parametrize("params", [{}, {"group": "per_series"}])
def test_no_network_forecasts_less_than_no_sun(params: dict[str, Any]) -> None:
    data = sunny()
    small = {"epochs": 1, "hidden": 4, "lookback": 48, "segment": 12, "windows_per_epoch": 64}
    fitted: Any = fit_fully("gru", data, TASK, small | params)
    windows = seen_by(fitted, data)
    found = fitted.forecast(windows)
    bands, _ = served(fitted, windows)
    assert bands.min() < 0
    np.testing.assert_array_equal(found.quantiles, np.maximum(bands, 0))
    if not params:
        lean: Any = exported(fitted)
        np.testing.assert_array_equal(lean.forecast(windows).quantiles >= 0, True)


def test_no_blend_forecasts_less_than_no_sun() -> None:
    data = sunny()
    members = [(kind, fit_fully(kind, data, TASK)) for kind in ("seasonal_naive", "ar")]
    down = np.full((TASK.horizon, len(TASK.levels)), -1.0)
    table = WeightTable.of(np.array([[0.5, 0.5]]), np.zeros(data.n_series, np.int64), down)
    fitted = blend_of(members, table)
    found = fitted.forecast(seen_by(fitted, data))
    assert found.quantiles.min() == 0
    bands, _ = fitted.served(seen_by(fitted, data))
    assert bands.min() < 0
