"""Bands are wide where the clock says that errors are large."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flts_ray.models.bands import Scored, fit_bands
from flts_ray.models.phases import BOUND, at_steps, fit_phases, phase_of
from flts_ray.models.volatility import Volatility
from flts_ray.prepare.arrays import windows_at
from tests.synthetic import START_US, seasonal_set

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
SIZE = 1 + 0.8 * np.sin(2 * np.pi * np.arange(24) / 24)


def windows_of(days: int, size: np.ndarray, seed: int = 0, horizon: int = 6) -> Scored:
    """Hourly windows whose errors are as large as their hour says, forecast as zero."""
    y = np.random.default_rng(seed).standard_normal(24 * days) * np.tile(size, days)
    origins = np.arange(0, len(y) - horizon, 5)
    actual = y[origins[:, None] + np.arange(horizon)]
    one, row = np.ones(len(origins)), np.zeros(len(origins), np.int64)
    return Scored(actual, 0 * actual, one, np.zeros((len(one), 0)), row, origins, origins % 24)


def inside(windows: Scored, season: int) -> np.ndarray:
    """Share of values within the 80 % band at each hour, on days that did not calibrate."""
    quantiles = fit_bands(windows_of(200, SIZE), (), LEVELS, 1, season).over(windows)
    held = (windows.actual >= quantiles[..., 1]) & (windows.actual <= quantiles[..., 3])
    hour = (windows.phase[:, None] + np.arange(held.shape[1])) % 24
    return np.array([held[hour == one].mean() for one in range(24)])


def test_every_hour_is_covered_as_promised() -> None:
    new = windows_of(400, SIZE, seed=1)
    assert np.abs(inside(new, 24) - 0.8).max() < 0.1
    without = inside(new, 1)
    assert without.max() > 0.99 and without.min() < 0.65


def test_an_even_clock_is_not_followed() -> None:
    bands = fit_bands(windows_of(200, np.ones(24)), (), LEVELS, 1, 24)
    np.testing.assert_allclose(np.exp(bands.volatility.phases), 1, atol=0.1)


def test_few_cycles_say_little_however_many_windows_they_hold() -> None:
    windows = windows_of(200, SIZE)
    found = [fit_phases(windows.error, windows.phase, 24, cycles) for cycles in (2.0, 20.0, 200.0)]
    spread = [one.std() for one in found]
    assert spread[0] < 0.3 * spread[2] and spread[0] < spread[1] < spread[2]
    np.testing.assert_allclose(np.exp(found[2]), SIZE, rtol=0.25)


def test_hours_without_errors_and_without_values_are_no_trouble() -> None:
    windows = windows_of(50, np.where(np.arange(24) < 8, 0.0, 1.0))
    found = fit_phases(windows.error, windows.phase, 24, 1e6)
    assert -np.log(BOUND) <= found.min() < -1.9 and np.isfinite(found).all()
    nothing = fit_phases(np.full((3, 6), np.nan), np.arange(3), 24, 2.0)
    np.testing.assert_array_equal(nothing, np.zeros(24))


def test_steps_go_on_from_the_phase_of_the_origin_on_the_local_clock() -> None:
    data = seasonal_set(n_series=1)
    local = replace(data, contract=replace(data.contract, time_zone="Asia/Tokyo"))
    origins = np.array([100, 101])
    hour = START_US // 3_600_000_000 + origins
    for one, ahead in ((data, 0), (local, 9)):
        windows = windows_at(one, np.zeros(2, np.int64), origins, 48, 3)
        np.testing.assert_array_equal(phase_of(windows), (hour + ahead) % 24)
    widths = at_steps(np.log(np.arange(1.0, 25.0)), np.array([22, 3]), 4)
    np.testing.assert_allclose(widths, [[23, 24, 1, 2], [4, 5, 6, 7]])


def test_artifacts_without_phases_have_none() -> None:
    some = Volatility((), np.zeros(0), np.zeros(1), np.array([0.5, -0.5]))
    arrays = some.arrays()
    np.testing.assert_array_equal(Volatility.from_arrays(arrays).phases, some.phases)
    del arrays["volatility_phases"]
    assert not len(Volatility.from_arrays(arrays).phases)
