from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.errors import DataError
from flts_ray.evaluate.backtest import Origins, backtest, choose_origins, instant_text, instants_of
from flts_ray.models.base import Forecast, ModelSpec, Task
from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, Windows
from tests.synthetic import seasonal_set

LEVELS = (0.1, 0.5, 0.9)
LOOKBACK, HORIZON = 48, 12


@dataclass(frozen=True)
class Daily:
    """Repeats yesterday; the quantiles are the mean minus and plus one."""

    spec: ModelSpec
    stats: SeriesStats
    poisoned_series: str = ""

    def forecast(self, windows: Windows) -> Forecast:
        mean = windows.y[:, -24 : -24 + self.spec.task.horizon].copy()
        mean[[name == self.poisoned_series for name in windows.ids], 2] = np.nan
        quantiles = mean[..., None] + np.array([-1.0, 0.0, 1.0])
        return Forecast(windows.ids, windows.origin_us, LEVELS, mean, quantiles)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {}, {}


def daily(data: SeriesArrays, poisoned_series: str = "") -> Daily:
    spec = ModelSpec("daily", Task(HORIZON, LEVELS), LOOKBACK, data.contract)
    return Daily(spec, data.stats, poisoned_series)


def test_origins_are_a_horizon_apart_and_their_targets_lie_in_the_test_span() -> None:
    data = seasonal_set(n_series=2, length=600)
    origins = choose_origins(data, "test", LOOKBACK, HORIZON)
    assert origins.series.tolist() == [0] * 10 + [1] * 10
    assert origins.positions[:10].tolist() == list(range(480, 600, HORIZON))


def test_the_stride_and_the_most_origins_of_a_series_are_kept() -> None:
    data = seasonal_set(n_series=2, length=600)
    assert np.diff(choose_origins(data, "test", LOOKBACK, HORIZON, 5).positions[:3]).tolist() == [
        5,
        5,
    ]
    few = choose_origins(data, "test", LOOKBACK, HORIZON, max_origins=3)
    assert np.bincount(few.series).tolist() == [3, 3]


@given(st.integers(1, 60), st.integers(1, 70))
def test_thinned_origins_are_spread_over_all_of_them(n: int, most: int) -> None:
    every = Origins(np.repeat(np.arange(n), 2), np.tile([5, 9], n))
    few = every.thinned(most)
    assert len(few) == min(most, 2 * n)
    place = 2 * few.series + (few.positions == 9)
    apart = np.diff(place)
    assert place[0] == 0
    assert not len(apart) or (place[-1] == 2 * n - 1 and apart.max() - apart.min() <= 1)


def test_no_window_is_an_error_that_names_the_horizon() -> None:
    with pytest.raises(DataError, match=r"test span: .* 500 forecast steps; shorten task.horizon"):
        choose_origins(seasonal_set(), "test", LOOKBACK, 500)


def test_forecasts_stand_beside_what_happened() -> None:
    data = seasonal_set(n_series=2, length=600)
    data.observed[485] = False
    bt = backtest(daily(data), data, choose_origins(data, "test", LOOKBACK, HORIZON))
    assert len(bt) == 20 and bt.quantiles.shape == (20, HORIZON, 3)
    assert np.array_equal(bt.mean[0], data.y[480 - 24 : 480 - 12])
    assert np.array_equal(bt.median, bt.mean)
    assert np.array_equal(bt.quantile(0.9), bt.mean + 1)
    assert np.flatnonzero(np.isnan(bt.actual[0])).tolist() == [5]
    assert bt.actual[1, 0] == data.y[492]
    assert bt.origin_us[0] == data.start_us[0] + 480 * 3_600_000_000


def test_actual_values_are_not_clipped() -> None:
    data = seasonal_set(n_series=1)
    high = float(np.quantile(data.y, 0.97))  # more would be a level shift, which is not clipped
    data = replace(data, stats=replace(data.stats, clip_hi=np.array([high])))
    bt = backtest(daily(data), data, choose_origins(data, "test", LOOKBACK, HORIZON))
    assert bt.mean.max() == high and bt.actual.max() > high


@settings(max_examples=20)
@given(chunk=st.integers(1, 30))
def test_the_chunk_does_not_change_a_result(chunk: int) -> None:
    data = seasonal_set(n_series=2, length=600)
    origins = choose_origins(data, "test", LOOKBACK, HORIZON)
    whole, parts = (backtest(daily(data), data, origins, c) for c in (1024, chunk))
    for name in ("origin_us", "mean", "quantiles", "actual"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def test_a_forecast_that_is_not_finite_names_model_series_and_origin() -> None:
    data = seasonal_set(n_series=2)
    origins = Origins(np.array([0, 1, 1]), np.array([480, 480, 492]))
    where = instant_text(int(instants_of(data, origins)[1]))
    with pytest.raises(DataError, match=rf"model daily: .* series s1 at origin {where} .*2 of 3"):
        backtest(daily(data, poisoned_series="s1"), data, origins)


@pytest.mark.parametrize("position", [LOOKBACK - 1, 600 - HORIZON + 1])
def test_an_origin_that_does_not_fit_is_refused(position: int) -> None:
    data = seasonal_set(n_series=2, length=600)
    with pytest.raises(DataError, match=f"series s1: origin {position} does not leave"):
        backtest(daily(data), data, Origins(np.array([0, 1]), np.array([480, position])))


def test_a_forecast_of_another_shape_is_refused() -> None:
    data = seasonal_set(n_series=1)
    spec = ModelSpec("daily", Task(HORIZON, (0.1, 0.9)), LOOKBACK, data.contract)
    with pytest.raises(DataError, match="shape"):
        backtest(Daily(spec, data.stats), data, Origins(np.array([0]), np.array([480])))


def test_a_level_that_was_not_forecast_is_an_error() -> None:
    data = seasonal_set(n_series=1)
    bt = backtest(daily(data), data, choose_origins(data, "test", LOOKBACK, HORIZON))
    with pytest.raises(DataError, match=r"level 0\.975"):
        bt.quantile(0.975)


def test_instants_follow_the_local_clock_across_a_daylight_saving_change() -> None:
    midnight_us = 1_711_753_200_000_000  # 2024-03-30T00:00 in Berlin, the day before the change
    data = replace(
        seasonal_set(n_series=1, length=10, season=2),
        contract=Contract(freq="1D", season=7, time_zone="Europe/Berlin"),
        start_us=np.array([midnight_us]),
    )
    found = instants_of(data, Origins(np.array([0, 0]), np.array([1, 2])))
    assert [instant_text(t) for t in found] == ["2024-03-30T23:00Z", "2024-03-31T22:00Z"]
