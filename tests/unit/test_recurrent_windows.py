"""Windows of training are those of a forecast; covariates are read as the settings say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flts_ray.models.base import Compute, Task, fit_fully, forecaster
from flts_ray.models.recurrent_inputs import fit_columns, inputs_of, training_rows
from flts_ray.models.recurrent_shape import Shape
from flts_ray.models.recurrent_windows import WindowSet, window_set
from flts_ray.prepare.arrays import SeriesArrays, windows_at
from tests.synthetic import seasonal_set

LOOKBACK, HORIZON = 24, 6
TASK = Task(HORIZON, (0.1, 0.5, 0.9))
SMALL: dict[str, Any] = {"epochs": 1, "hidden": 8, "windows_per_epoch": 256, "lookback": LOOKBACK}


def with_outliers() -> SeriesArrays:
    """Two single spikes, and a level that moves within the validation span."""
    data = seasonal_set(2, length=400)
    y = data.y.copy()
    own = y[data.rows(0)]
    own[100], own[203] = 900.0, -900.0
    own[280:] += 500.0
    low, high = np.full(2, -60.0), np.full(2, 70.0)
    return replace(data, y=y, stats=replace(data.stats, clip_lo=low, clip_hi=high))


def made(data: SeriesArrays) -> WindowSet:
    scaling = fit_columns(data, training_rows(data), LOOKBACK)
    shape = Shape(
        cell="gru",
        lookback=LOOKBACK,
        segment=6,
        horizon=HORIZON,
        levels=TASK.levels,
        marked=1,
        seen=1 + len(scaling.events),
        ahead=len(scaling.cycles) + len(scaling.events),
        static=1,
        hidden=4,
        layers=1,
        dropout=0.0,
        lags=0,
    )
    return window_set(data, scaling, shape, "last", "cpu")


@pytest.mark.parametrize("origin", [60, 110, 124, 125, 210, 282, 290, 310])
def test_training_sees_what_a_forecast_sees(origin: int) -> None:
    data = with_outliers()
    at = (np.array([0]), np.array([origin]))
    scaling = fit_columns(data, training_rows(data), LOOKBACK)
    expected, scale = inputs_of(windows_at(data, *at, LOOKBACK, HORIZON), scaling, "last")
    windows = made(data)
    batch = windows.batch(*windows.starts(at))
    for found, wanted in zip(batch.inputs, expected, strict=True):
        torch.testing.assert_close(found.float(), wanted.float(), rtol=1e-4, atol=1e-4)
    unit = data.stats.scale[0]
    np.testing.assert_allclose(batch.scale[0, 0] * unit, scale.scale[0, 0], rtol=1e-4)


def test_targets_are_clipped_where_they_teach_and_not_where_they_judge() -> None:
    data = with_outliers()
    windows = made(data)
    at = windows.starts((np.array([0]), np.array([98])))
    taught, judged = (windows.batch(*at, clipped=clipped) for clipped in (True, False))
    centre = data.y[97]
    step = 2  # the spike
    unit = taught.scale[0, 0] * data.stats.scale[0]
    np.testing.assert_allclose(taught.target[0, step] * unit + centre, 70.0, rtol=1e-4)
    np.testing.assert_allclose(judged.target[0, step] * unit + centre, 900.0, rtol=1e-4)


def test_without_outliers_nothing_is_compared() -> None:
    data = seasonal_set(2, length=400)
    low, high = data.stats.mean - 1e6, data.stats.mean + 1e6
    quiet = replace(data, stats=replace(data.stats, clip_lo=low, clip_hi=high))
    assert made(quiet).bounds is None
    assert made(with_outliers()).bounds is not None


@pytest.mark.parametrize("group", ["global", "per_series"])
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("known_future", [False, True])
def test_columns_are_read_as_the_settings_say(group: str, past: bool, known_future: bool) -> None:
    data = seasonal_set(length=300)
    params = {**SMALL, "group": group, "past": past, "known_future": known_future}
    fitted = fit_fully("gru", data, TASK, params, Compute())
    series, origins = np.array([0, 1]), np.array([250, 250])
    windows = windows_at(data, series, origins, LOOKBACK, HORIZON)
    again = forecaster("gru").restore(fitted.spec, fitted.stats, *fitted.state())
    expected = again.forecast(windows)
    assert fitted.forecast(windows).mean.tobytes() == expected.mean.tobytes()
    other_past = replace(windows, past=windows.past[::-1].copy() + 1)
    future = windows.future.copy()
    future[..., 2] = 1 - future[..., 2]
    assert (again.forecast(other_past).mean.tobytes() != expected.mean.tobytes()) == past
    event = again.forecast(replace(windows, future=future)).mean
    assert (event.tobytes() != expected.mean.tobytes()) == known_future
