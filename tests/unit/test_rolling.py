"""Backtests whose bands are kept up to date, and artifacts that are: the same bands."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flts_ray.evaluate.backtest import Backtest, Origins, backtest
from flts_ray.evaluate.rolling import known_at, rolling_backtest, update_instants
from flts_ray.models import artifact
from flts_ray.models.base import KINDS, Compute, Fitted, Task, fit_fully, follower, updater
from flts_ray.models.blend import WeightTable, blend_of
from flts_ray.models.memory import needed_memory, seen_positions
from flts_ray.prepare.arrays import SeriesArrays, origins_in
from tests.synthetic import seasonal_set

TASK = Task(6, (0.025, 0.1, 0.5, 0.9, 0.975))
QUICK: dict[str, dict[str, Any]] = {
    kind: {"epochs": 2, "hidden": 8, "windows_per_epoch": 256} for kind in ("gru", "lstm")
}
DAY = 24


@cache
def louder() -> SeriesArrays:
    """Errors are three times as large from the start of the test span on; series tick as one."""
    data = seasonal_set(length=800)
    rng, y = np.random.default_rng(1), data.y.copy()
    for i in range(data.n_series):
        rows = data.rows(i)
        y[rows][640:] += 0.3 * 10.0**i * rng.standard_normal(160)
    return replace(data, y=y)


@cache
def model(kind: str) -> Fitted:
    if kind == "blend":
        named = [(one, model(one)) for one in ("ar", "seasonal_naive")]
        table = WeightTable.of(np.full((1, 2), 0.5), np.zeros(3), np.zeros((6, 5)))
        return blend_of(named, table)
    return fit_fully(kind, louder(), TASK, QUICK.get(kind, {}), Compute(seed=1))


@pytest.fixture(params=[*KINDS, "blend"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def origins_of(fitted: Fitted, stride: int = 5) -> Origins:
    return Origins(*origins_in(louder(), "test", fitted.spec.lookback, 6, stride))


def rolled(fitted: Fitted, data: SeriesArrays, every: int | None = None) -> Backtest:
    found = rolling_backtest(fitted, data, origins_of(fitted), every)
    assert found is not None
    return found


def test_daily_updates_of_an_artifact_serve_what_the_backtest_forecast(
    kind: str, tmp_path: Path
) -> None:
    data, served = louder(), model(kind)
    expected, origins = rolled(served, data), origins_of(served)
    at = origins.positions - data.valid_end[origins.series]
    for day in range(6):
        newest = known_at(data, int(update_instants(data, DAY)[day]))
        artifact.save(follower(kind).follow(served, newest), tmp_path / str(day))
        served = artifact.load(tmp_path / str(day))
        today = np.flatnonzero(at // DAY == day)
        found = backtest(served, data, origins.part(today))
        np.testing.assert_allclose(found.quantiles, expected.quantiles[today], rtol=1e-9)


@pytest.mark.parametrize("kind", ["seasonal_naive", "ar"])
def test_an_update_moves_the_bands_as_following_them_does(kind: str) -> None:
    data = louder()
    newest = known_at(data, int(update_instants(data, 48)[2]))
    update = updater(kind).update(model(kind), newest, Compute())
    follow = follower(kind).follow(model(kind), newest)
    for name, array in follow.state()[1].items():
        if name.startswith(("memory.until", "memory.theta", "band_", "volatility_")):
            np.testing.assert_array_equal(update.state()[1][name], array, err_msg=name)


def test_what_bands_saw_alone_is_learned_by_a_later_update(kind: str) -> None:
    data, served = louder(), model(kind)
    newest = known_at(data, int(update_instants(data, 48)[2]))
    ahead = follower(kind).follow(served, newest)
    np.testing.assert_array_equal(seen_positions(ahead, data), [736] * 3)
    straight = updater(kind).update(served, newest, Compute())
    later = updater(kind).update(ahead, newest, Compute())
    origins = origins_of(served, 13)
    mean = [backtest(one, data, origins).mean for one in (straight, later)]
    np.testing.assert_allclose(mean[1], mean[0], rtol=1e-6)
    np.testing.assert_array_equal(seen_positions(later, data), [736] * 3)
    tracks = [needed_memory(one).track.theta for one in (ahead, later)]
    np.testing.assert_array_equal(tracks[1], tracks[0])
    assert updater(kind).update(later, newest, Compute()) is later
    assert follower(kind).follow(later, newest) is later


def test_following_leaves_the_forecast_itself_as_it_was(kind: str) -> None:
    frozen = backtest(model(kind), louder(), origins_of(model(kind)))
    found = rolled(model(kind), louder())
    np.testing.assert_allclose(found.mean, frozen.mean, rtol=1e-9)
    np.testing.assert_array_equal(found.actual, frozen.actual)
    np.testing.assert_array_equal(found.origin_us, frozen.origin_us)
    first = frozen.origins.positions < 640 + DAY
    np.testing.assert_allclose(found.quantiles[first], frozen.quantiles[first], rtol=1e-9)
    assert (np.diff(found.quantiles, axis=2) >= 0).all()


def inside(found: Backtest) -> float:
    held = (found.actual >= found.quantile(0.1)) & (found.actual <= found.quantile(0.9))
    return float(held.mean())


def test_bands_that_follow_come_nearer_to_what_they_promise(kind: str) -> None:
    frozen = inside(backtest(model(kind), louder(), origins_of(model(kind))))
    found = inside(rolled(model(kind), louder(), 6))
    assert frozen < 0.7
    assert abs(found - 0.8) < 0.7 * abs(frozen - 0.8)


@settings(max_examples=12, deadline=None)
@given(
    step=st.integers(640, 799),
    every=st.integers(1, 60),
    value=st.sampled_from([0.0, 1e12, -3.0]),
    kind=st.sampled_from(["seasonal_naive", "ar", "blend"]),
)
def test_nothing_after_an_origin_touches_its_forecast(
    step: int, every: int, value: float, kind: str
) -> None:
    data, fitted = louder(), model(kind)
    y, observed = data.y.copy(), data.observed.copy()
    for i in range(data.n_series):
        later = slice(data.rows(i).start + step, data.rows(i).stop)
        y[later], observed[later] = value, value != 0
    poisoned = rolled(fitted, replace(data, y=y, observed=observed), every)
    clean = rolled(fitted, data, every)
    before = clean.origins.positions <= step
    # In a batch of other windows a product of matrices may round otherwise in the last bit.
    np.testing.assert_allclose(poisoned.quantiles[before], clean.quantiles[before], rtol=1e-9)


def test_a_series_learns_nothing_from_the_future_of_another() -> None:
    data = louder()
    lagging = replace(data, valid_end=np.array([640, 700, 780]))
    instants = update_instants(lagging, DAY)
    assert instants[0] == data.start_us[0] + 640 * 3_600_000_000
    assert (np.diff(instants) == DAY * 3_600_000_000).all()
    for number, instant in enumerate(instants):
        found = known_at(lagging, int(instant))
        np.testing.assert_array_equal(found.valid_end, [640 + DAY * number] * 3)


def test_a_long_span_is_updated_more_seldom() -> None:
    assert len(update_instants(louder(), 1)) == 160
    long = seasonal_set(n_series=1, length=5000)
    assert len(update_instants(long, 1)) == 200


def test_a_model_that_does_not_tell_what_it_has_seen_cannot_be_rolled() -> None:
    silent: Any = model("seasonal_naive")
    assert rolling_backtest(replace(silent, memory=None), louder(), origins_of(silent)) is None
