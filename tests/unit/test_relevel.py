"""Levels that moved within a window are found, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flts_ray.models.base import Task, fit_fully
from flts_ray.models.relevel import LEAST, RATIO, WEEK, moved_at, relevelled
from flts_ray.prepare.arrays import Windows, origins_in, windows_at
from tests.synthetic import seasonal_set

DAY, DAYS = 24, 14
DATA = seasonal_set(n_series=2, length=1200, covariates=False)
SHAPE = 10 + 4 * np.sin(np.arange(DAY * DAYS) * 2 * np.pi / DAY)


def windows_of(y: np.ndarray) -> Windows:
    """Windows that show these values, [n, L]."""
    series, origins = origins_in(DATA, "test", y.shape[1], 6)
    some = windows_at(DATA, series[: len(y)], origins[: len(y)], y.shape[1], 6)
    return replace(some, y=y)


@given(
    st.integers(LEAST * DAY, (DAYS - LEAST) * DAY),
    st.sampled_from([0.02, 0.2, 5.0, 100.0]),
    st.floats(0.1, 1e9),
)
def test_what_lies_before_a_move_comes_to_the_level_of_now(
    moved: int, factor: float, unit: float
) -> None:
    after = SHAPE * unit
    y = np.where(np.arange(len(after)) < moved, after / factor, after)
    found = relevelled(windows_of(y[None])).y[0]
    np.testing.assert_array_equal(found[moved:], y[moved:])
    np.testing.assert_allclose(found, after, rtol=1e-9)


@given(st.integers(0, 6), st.floats(0.01, 0.3), st.integers(1, 3 * WEEK))
def test_weekends_are_no_move(first: int, low: float, days: int) -> None:
    day = (np.arange(days) + first) % 7
    y = np.repeat(np.where(day < 5, 1.0, low), DAY) * np.resize(SHAPE, days * DAY)
    np.testing.assert_array_equal(relevelled(windows_of(y[None])).y, y[None])


def test_an_odd_day_is_no_move() -> None:
    y = np.tile(SHAPE, (DAYS, 1))
    for day in range(DAYS):
        y[day, day * DAY : (day + 1) * DAY] *= 20
    np.testing.assert_array_equal(relevelled(windows_of(y)).y, y)


def test_only_values_above_zero_move() -> None:
    early = np.arange(DAY * DAYS) < 7 * DAY
    sunk = np.where(early, SHAPE, SHAPE - 100)
    gone = np.where(early, SHAPE, 0.0)
    around_zero = np.where(early, SHAPE, SHAPE / 10) - 5.0 * (np.arange(DAY * DAYS) == 300)
    y = np.stack([sunk, gone, around_zero])
    assert y[2].mean() > 0 > y[2].min()
    np.testing.assert_array_equal(relevelled(windows_of(y)).y, y)


@given(st.lists(st.floats(0.1, 10), min_size=LEAST + WEEK + 1, max_size=20))
def test_a_move_parts_all_seasons_before_it_from_all_after(levels: list[float]) -> None:
    (at,) = moved_at(np.array([levels])).tolist()
    if at:
        assert min(at, len(levels) - at - 1) >= LEAST
        assert max(at, len(levels) - at - 1) >= WEEK
        before, after = levels[:at], levels[at + 1 :]
        assert min(after) > RATIO * max(before) or min(before) > RATIO * max(after)


def test_windows_that_did_not_move_are_handed_back() -> None:
    for y in (SHAPE[None], SHAPE[None, : 3 * DAY]):
        asked = windows_of(y)
        assert relevelled(asked) is asked


@pytest.mark.parametrize("kind", ["ar", "gru", "lstm"])
def test_forecasts_follow_a_level_that_moved_within_their_window(kind: str) -> None:
    params: dict[str, Any] = {"lookback": 288, "segment": 24, "hidden": 8, "epochs": 2}
    params = params if kind != "ar" else {"lags": 288}
    fitted = fit_fully(kind, DATA, Task(6, (0.025, 0.1, 0.5, 0.9, 0.975)), params)
    lookback = fitted.spec.lookback
    assert lookback >= 12 * DAY
    series, origins = origins_in(DATA, "test", lookback, 6, 7)
    asked = windows_at(DATA, series, origins, lookback, 6)
    lifted = replace(asked, y=asked.y + 1 - min(0.0, float(asked.y.min())))
    steady = fitted.forecast(replace(lifted, y=lifted.y * 30))
    y = lifted.y.copy()
    y[:, -3 * DAY :] *= 30
    moved = fitted.forecast(replace(lifted, y=y))
    apart = np.abs(moved.mean - steady.mean).mean() / np.abs(steady.mean).mean()
    assert apart < 0.15
