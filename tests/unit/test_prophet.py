"""Prophet: our curve is Prophet's curve, clocks and covariates included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flts_ray.errors import ConfigError
from flts_ray.models.base import Compute, Task, fit_fully
from flts_ray.models.prophet import ProphetPerSeries
from flts_ray.models.prophet_choice import validation_windows
from flts_ray.models.prophet_curve import Curves, Seasonality, evaluate
from flts_ray.models.prophet_fit import History, Row, fit_map, seasonalities_for, shown, stack
from flts_ray.models.prophet_fitted import FittedProphet
from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesArrays, actuals_at, origins_in, windows_at
from tests.synthetic import START_US, seasonal_set

HOUR = 3_600_000_000
CYCLES = (Seasonality("daily", 1.0, 6), Seasonality("weekly", 7.0, 4))


YEARLY = (Seasonality("weekly", 7.0, 4), Seasonality("yearly", 365.25, 8))
DAY = 24 * HOUR


def history(n: int, seed: int = 0, step: int = HOUR, noise: float = 1.0) -> History:
    """A bent trend, a daily cycle, events and a covariate."""
    rng = np.random.default_rng(seed)
    at = np.arange(n)
    event, load = (rng.random(n) < 0.3).astype(float), rng.normal(20, 5, n)
    y = 50 + 0.01 * at - 0.02 * np.maximum(at - n // 2, 0) + 3 * event + 0.2 * load
    y += 8 * np.sin(at / 24 * 2 * np.pi) + noise * rng.standard_normal(n)
    return History(START_US + at * step, y, np.column_stack([event, load]))


def part(whole: History, rows: slice) -> History:
    return History(whole.wall_us[rows], whole.y[rows], whole.regressors[rows])


def with_params(**params: Any) -> dict[str, Any]:
    return {**ProphetPerSeries.defaults, **params}


def prophet_of(past: History, cycles: tuple[Seasonality, ...], params: dict[str, Any]) -> Any:
    """Prophet itself, fitted on the same history."""
    from prophet import Prophet

    model = Prophet(
        growth=params["growth"],
        seasonality_mode=params["seasonality_mode"],
        daily_seasonality=False,
        weekly_seasonality=False,
        yearly_seasonality=False,
        uncertainty_samples=0,
    )
    for cycle in cycles:
        model.add_seasonality(cycle.name, cycle.period, cycle.order)
    model.add_regressor("r0")
    model.add_regressor("r1")
    return model.fit(table(past).assign(y=past.y))


def table(rows: History) -> pd.DataFrame:
    stamps = pd.to_datetime(rows.wall_us, unit="us")
    return pd.DataFrame({"ds": stamps, "r0": rows.regressors[:, 0], "r1": rows.regressors[:, 1]})


def row_of(model: Any, growth: str) -> Row:
    """The parameters of a fitted Prophet as a row of `Curves`."""
    moves = 1.0 if growth == "linear" else 0.0
    regressors = [model.extra_regressors[name] for name in ("r0", "r1")]
    return {
        "start_us": np.asarray(model.start.value // 1000),
        "span_us": np.asarray(model.t_scale.value // 1000),
        "y_scale": np.asarray(model.y_scale),
        "k": moves * model.params["k"].reshape(()),
        "m": model.params["m"].reshape(()),
        "delta": moves * model.params["delta"].ravel(),
        "changepoints": model.changepoints_t,
        "beta": model.params["beta"].ravel(),
        "regressor_mean": np.asarray([one["mu"] for one in regressors]),
        "regressor_std": np.asarray([one["std"] for one in regressors]),
    }


CASES = [
    (mode, growth, cycles, step)
    for mode in ("additive", "multiplicative")
    for growth in ("linear", "flat")
    for cycles, step in ((CYCLES, HOUR), (YEARLY, DAY))
]


@pytest.mark.parametrize(("mode", "growth", "cycles", "step"), CASES)
def test_the_curve_is_what_prophet_itself_predicts(
    mode: str, growth: str, cycles: tuple[Seasonality, ...], step: int
) -> None:
    """Events, a covariate, two cycles; within the history and after it; two series at once."""
    whole, params = history(900, step=step), with_params(seasonality_mode=mode, growth=growth)
    models = [prophet_of(part(whole, slice(a, a + 700)), cycles, params) for a in (0, 100)]
    curves = stack([row_of(model, growth) for model in models])
    asked = part(whole, slice(650, 900))
    expected = [model.predict(table(asked))["yhat"].to_numpy() for model in models]
    found = evaluate(
        curves,
        np.array([0, 1, 0]),
        np.stack([asked.wall_us] * 3),
        np.stack([asked.regressors] * 3),
        cycles,
        mode == "multiplicative",
    )
    np.testing.assert_allclose(found, [*expected, expected[0]], rtol=1e-6)


@pytest.mark.parametrize(("mode", "growth", "cycles", "step"), CASES)
def test_our_solver_ends_where_prophet_does_and_never_below(
    mode: str, growth: str, cycles: tuple[Seasonality, ...], step: int
) -> None:
    """Stan stops before the corners of the lasso, so its curve may be a fifth of the noise off."""
    past, params = history(700, step=step), with_params(seasonality_mode=mode, growth=growth)
    own = stack([fit_map(past, cycles, params)])
    theirs = stack([row_of(prophet_of(past, cycles, params), growth)])
    posterior = [posterior_of(curves, past, cycles, params) for curves in (own, theirs)]
    assert posterior[0] <= posterior[1] + 1e-3
    told = [yhat(curves, past, cycles, params) for curves in (own, theirs)]
    assert np.abs(told[0] - told[1]).max() < 0.2 * np.std(past.y - told[0])


def yhat(
    curves: Curves, rows: History, cycles: tuple[Seasonality, ...], params: dict[str, Any]
) -> np.ndarray:
    mode = params["seasonality_mode"] == "multiplicative"
    where = (np.array([0]), rows.wall_us[None], rows.regressors[None])
    return evaluate(curves, *where, cycles, mode)[0]


def posterior_of(
    curves: Curves, past: History, cycles: tuple[Seasonality, ...], params: dict[str, Any]
) -> float:
    """Minus the log posterior at the best noise, written as Prophet's model file has it."""
    rss = float((((past.y - yhat(curves, past, cycles, params)) / curves.y_scale[0]) ** 2).sum())
    prior = (curves.k[0] ** 2 + curves.m[0] ** 2) / 50
    prior += np.abs(curves.delta[0]).sum() / params["changepoint_prior_scale"]
    prior += (curves.beta[0] ** 2).sum() / (2 * params["seasonality_prior_scale"] ** 2)
    noises = np.sqrt(rss / len(past.y)) * np.linspace(0.9, 1.1, 2001)
    likelihood = len(past.y) * np.log(noises) + rss / (2 * noises**2) + 2 * noises**2
    return float(prior + likelihood.min())


@pytest.mark.parametrize("solver", ["map", "stan"])
def test_either_solver_can_be_chosen(solver: str) -> None:
    data = seasonal_set(n_series=1, length=400)
    assert fitted_on(data, solver=solver).spec.params["solver"] == solver


@pytest.mark.parametrize("name", ["solver", "growth", "seasonality_mode", "regressors"])
def test_a_word_that_is_no_choice_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"models.prophet.params.{name}: 'sten'"):
        fitted_on(seasonal_set(n_series=1, length=400), **{name: "sten"})


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


@pytest.mark.parametrize(
    ("training", "fitted_days", "names"),
    [
        (13, 13, ["daily"]),
        (14, 14, ["daily", "weekly"]),
        (14, 7, ["daily", "weekly"]),
        (14, 6, ["daily"]),
        (13, 15, ["daily"]),
        (1, 1, []),
    ],
)
def test_a_series_has_the_cycles_that_it_shows(
    training: int, fitted_days: int, names: list[str]
) -> None:
    """Two of each in its training span, one at least in what a fit of part of it sees."""
    contract = Contract(freq="1h", season=24)
    found = shown(contract, training * 24, history(fitted_days * 24), CYCLES)
    assert [cycle.name for cycle in found] == names


SHORT, LONG = 200, 1000
"""Steps of a series that trains on five days, and of one that trains on three weeks."""


def long_and_short() -> SeriesArrays:
    """Two series; the level of both wanders, so that five days of it look like part of a week."""
    data = seasonal_set(n_series=2, length=LONG, covariates=False)
    rng = np.random.default_rng(4)
    walk = np.cumsum(rng.normal(0, 0.1, (2, LONG)), axis=1)
    y = data.y + (data.stats.std[:, None] * walk).ravel()
    kept = np.arange(LONG + SHORT)
    return replace(
        data,
        y=y[kept],
        observed=data.observed[kept],
        future=data.future[kept],
        past=data.past[kept],
        offsets=np.array([0, LONG, LONG + SHORT]),
        train_end=np.array([LONG, SHORT]) * 6 // 10,
        valid_end=np.array([LONG, SHORT]) * 8 // 10,
    )


@pytest.mark.parametrize("solver", ["map", "stan"])
def test_a_short_series_has_the_curve_that_it_has_alone(solver: str) -> None:
    """Part of a week tells no weekly cycle, whatever its neighbours show."""
    data = long_and_short()
    beside, alone = fitted_on(data, solver=solver), fitted_on(data.take([1]), solver=solver)
    assert [cycle.name for cycle in beside.seasonalities] == ["daily", "weekly"]
    assert [cycle.name for cycle in alone.seasonalities] == ["daily"]
    daily = alone.curves.beta.shape[1]
    np.testing.assert_array_equal(beside.curves.beta[1, :daily], alone.curves.beta[0])
    assert not beside.curves.beta[1, daily:].any()
    assert beside.curves.beta[0, daily:].all()
    np.testing.assert_array_equal(beside.curves.k[1], alone.curves.k[0])
    np.testing.assert_array_equal(beside.curves.m[1], alone.curves.m[0])


def test_the_curve_of_a_short_series_does_not_run_away() -> None:
    """Season and trend that cancel each other within five days do not do so after them."""
    data = long_and_short()
    fitted = fitted_on(data)
    origins = np.arange(data.train_end[1], data.valid_end[1])
    windows = windows_at(data, np.full(len(origins), 1), origins, fitted.spec.lookback, 24)
    swing = np.ptp(data.y[data.rows(1)])
    assert np.abs(fitted.curve(windows) - data.stats.mean[1]).max() < 2 * swing


def test_a_refit_gives_no_cycle_that_validation_has_not_judged() -> None:
    """Two weeks are reached with the validation span only."""
    data = seasonal_set(n_series=2, length=LONG, covariates=False)
    data = replace(data, train_end=np.array([600, 300]), valid_end=np.array([800, 500]))
    again = ProphetPerSeries().refit(fitted_on(data), data, Compute())
    daily = 2 * again.seasonalities[0].order
    assert again.curves.beta[0, daily:].all()
    assert not again.curves.beta[1, daily:].any()


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
    import flts_ray.models.prophet_fit as module

    data = seasonal_set(n_series=2, length=600)
    fitted = fitted_on(data)

    def refuse(past: History, *rest: Any) -> Row:
        if past.y.mean() > 20:
            raise RuntimeError("optimisation failed")
        return fit_map(past, *rest)

    monkeypatch.setattr(module, "fit_map", refuse)
    again = ProphetPerSeries().refit(fitted, data, Compute())
    windows = windows_at(data, np.array([0, 1]), np.array([500, 500]), fitted.spec.lookback, 24)
    before, after = fitted.forecast(windows).mean, again.forecast(windows).mean
    np.testing.assert_array_equal(after[1], before[1])
    assert np.abs(after[0] - before[0]).max() > 0


def test_a_series_that_cannot_be_fitted_falls_back_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import flts_ray.models.prophet_fit as module

    def refuse(past: History, *rest: Any) -> Row:
        if past.y.mean() > 20:
            raise RuntimeError("optimisation failed")
        return fit_map(past, *rest)

    monkeypatch.setattr(module, "fit_map", refuse)
    data = seasonal_set(n_series=2, length=600)
    steps = list(ProphetPerSeries().fit(data, Task(12, (0.1, 0.5, 0.9)), {}, Compute()))
    assert steps[-1].metrics["failed_series"] == 1.0
    back = steps[-1].fitted.spec.lookback
    windows = windows_at(data, np.array([0, 1]), np.array([500, 500]), back, 12)
    assert np.isfinite(steps[-1].fitted.forecast(windows).quantiles).all()


def test_gaps_shorten_what_the_correction_looks_back_to() -> None:
    """Else it would be chosen on the few windows that have none."""
    data = seasonal_set(n_series=2, length=1000)
    whole = validation_windows(data, 6, [1, 24, 96])
    assert whole[2] == 96
    y = data.y.copy()
    y[::60] = np.nan
    series, origins, lookback = validation_windows(replace(data, y=y), 6, [1, 24, 96])
    assert lookback == 1
    assert set(series) == {0, 1}
    assert len(origins) > 100
