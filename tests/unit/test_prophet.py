"""Prophet: our curve is Prophet's curve, clocks and covariates included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flts_ray.models.base import Compute, Task, fit_fully
from flts_ray.models.prophet import (
    FittedProphet,
    ProphetPerSeries,
    _run_prophet,
    _validation,
    seasonalities_for,
    stack,
)
from flts_ray.models.prophet_curve import Seasonality, evaluate
from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesArrays, actuals_at, origins_in, windows_at
from tests.synthetic import START_US, seasonal_set

HOUR = 3_600_000_000
CYCLES = (Seasonality("daily", 1.0, 6), Seasonality("weekly", 7.0, 4))


def frame(n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    wall = START_US + np.arange(n) * HOUR
    hours = np.arange(n)
    y = 50 + 0.01 * hours + 8 * np.sin(hours / 24 * 2 * np.pi) + rng.standard_normal(n)
    event = (rng.random(n) < 0.3).astype(float)
    load = rng.normal(20, 5, n)
    return pd.DataFrame(
        {"ds": pd.to_datetime(wall, unit="us"), "y": y + 3 * event, "r0": event, "r1": load}
    )


@pytest.mark.parametrize("mode", ["additive", "multiplicative"])
def test_the_curve_is_what_prophet_itself_predicts(mode: str) -> None:
    from prophet import Prophet

    table = frame(1100)
    past, ahead = table[:1000], table[1000:].drop(columns="y")
    params = {**ProphetPerSeries.defaults, "seasonality_mode": mode}
    curves = stack([_run_prophet(past.copy(), CYCLES, params)])
    reference = Prophet(
        seasonality_mode=mode,
        daily_seasonality=False,
        weekly_seasonality=False,
        yearly_seasonality=False,
        uncertainty_samples=0,
    )
    for cycle in CYCLES:
        reference.add_seasonality(cycle.name, cycle.period, cycle.order)
    reference.add_regressor("r0")
    reference.add_regressor("r1")
    expected = reference.fit(past.copy()).predict(ahead)["yhat"].to_numpy()
    wall = ahead["ds"].to_numpy().astype("datetime64[us]").astype(np.int64)
    regressors = ahead[["r0", "r1"]].to_numpy()
    found = evaluate(curves, 0, wall, regressors, CYCLES, mode == "multiplicative")
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("freq", "steps", "names"),
    [
        ("1h", 24 * 10, ["daily"]),
        ("1h", 24 * 30, ["daily", "weekly"]),
        ("1D", 60, ["weekly"]),
        ("1D", 800, ["weekly", "yearly"]),
        ("1W", 110, ["yearly"]),
    ],
)
def test_cycles_follow_from_step_and_length(freq: str, steps: int, names: list[str]) -> None:
    found = seasonalities_for(Contract(freq=freq, season=1), steps)
    assert [cycle.name for cycle in found] == names


def fitted_on(data: SeriesArrays, **params: Any) -> FittedProphet:
    fitted = fit_fully("prophet", data, Task(24, (0.025, 0.1, 0.5, 0.9, 0.975)), params, Compute())
    assert isinstance(fitted, FittedProphet)
    return fitted


def test_it_learns_cycle_level_and_event_of_each_series() -> None:
    data = seasonal_set(n_series=2, length=700, noise=0.02)
    fitted = fitted_on(data)
    back = fitted.spec.lookback
    series, origins = origins_in(data, "test", back, 24, 24)
    mean = fitted.forecast(windows_at(data, series, origins, back, 24)).mean
    error = np.abs(mean - actuals_at(data, series, origins, 24)).mean(axis=1)
    assert (error / data.stats.std[series] < 0.2).all()


def test_the_level_of_the_last_steps_corrects_the_curve() -> None:
    """A level shift long after the fit moves the forecast with it."""
    data = seasonal_set(n_series=1, length=700, noise=0.02, covariates=False)
    walk = np.cumsum(np.random.default_rng(1).normal(0, 0.05, len(data.y)))
    data = replace(data, y=data.y + walk)
    fitted = fitted_on(data)
    windows = windows_at(data, np.array([0]), np.array([600]), fitted.spec.lookback, 24)
    shifted = replace(windows, y=windows.y + 5.0)
    moved = fitted.forecast(shifted).mean - fitted.forecast(windows).mean
    assert moved[0, 0] > 3.0


def test_a_refit_reaches_to_the_test_span_and_keeps_the_correction() -> None:
    data = seasonal_set(n_series=2, length=600)
    fitted = fitted_on(data)
    again = ProphetPerSeries().refit(fitted, data, Compute())
    # From the first to the last step of both spans.
    np.testing.assert_array_equal(again.curves.span_us, (data.valid_end - 1) * HOUR)
    assert again.correction is fitted.correction
    assert again.band is fitted.band
    assert again.seasonalities == fitted.seasonalities


def test_a_series_that_a_refit_cannot_fit_keeps_its_curve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import flts_ray.models.prophet as module

    data = seasonal_set(n_series=2, length=600)
    fitted = fitted_on(data)

    def refuse(table: pd.DataFrame, *rest: Any) -> dict[str, np.ndarray]:
        if table["y"].mean() > 20:
            raise RuntimeError("optimisation failed")
        return _run_prophet(table, *rest)

    monkeypatch.setattr(module, "_run_prophet", refuse)
    again = ProphetPerSeries().refit(fitted, data, Compute())
    windows = windows_at(data, np.array([0, 1]), np.array([500, 500]), fitted.spec.lookback, 24)
    before, after = fitted.forecast(windows).mean, again.forecast(windows).mean
    np.testing.assert_array_equal(after[1], before[1])
    assert np.abs(after[0] - before[0]).max() > 0


def test_a_series_that_stan_cannot_fit_falls_back_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import flts_ray.models.prophet as module

    def refuse(table: pd.DataFrame, *rest: Any) -> dict[str, np.ndarray]:
        if table["y"].mean() > 20:
            raise RuntimeError("optimisation failed")
        return _run_prophet(table, *rest)

    monkeypatch.setattr(module, "_run_prophet", refuse)
    data = seasonal_set(n_series=2, length=600)
    steps = list(ProphetPerSeries().fit(data, Task(12, (0.1, 0.5, 0.9)), {}, Compute()))
    assert steps[-1].metrics["failed_series"] == 1.0
    back = steps[-1].fitted.spec.lookback
    windows = windows_at(data, np.array([0, 1]), np.array([500, 500]), back, 12)
    assert np.isfinite(steps[-1].fitted.forecast(windows).quantiles).all()


def test_gaps_shorten_what_the_correction_looks_back_to() -> None:
    """Else it would be chosen on the few windows that have none."""
    data = seasonal_set(n_series=2, length=1000)
    whole = _validation(data, 6, [1, 24, 96])
    assert whole[2] == 96
    y = data.y.copy()
    y[::60] = np.nan
    series, origins, lookback = _validation(replace(data, y=y), 6, [1, 24, 96])
    assert lookback == 1
    assert set(series) == {0, 1}
    assert len(origins) > 100
