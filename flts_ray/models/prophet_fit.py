"""Fits Prophet's curves, one series at a time, many of them side by side.

Design choices: the default solver is our own (`prophet_map.py`): it maximises the posterior that
Stan maximises and never ends below it, a hundred times faster, because Prophet starts a process a
series; `solver: stan` fits with Prophet itself and is the reference. A series gets only the cycles
that its own history shows: on part of a cycle, season and trend cancel each other, and the curve
runs away where the history ends. A series that cannot be fitted falls back to its training mean
and is counted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import structlog

from flts_ray.models.base import Compute
from flts_ray.models.prophet_curve import Curves, Seasonality, fourier
from flts_ray.models.prophet_map import Problem, map_estimate
from flts_ray.models.prophet_regressors import Regressors
from flts_ray.models.spread import Failed
from flts_ray.panel import US_PER_DAY, Contract, steps_after, to_local_us
from flts_ray.prepare.arrays import SeriesArrays

YEARS_FOR_YEARLY = 2
DEFAULT_ORDERS = {"daily": (1.0, 6), "weekly": (7.0, 4), "yearly": (365.25, 8)}
CHANGEPOINT_RANGE = 0.8
"""Share of the history, from its start, that may hold changes of the rate."""
REGRESSOR_SD = 10.0
BASE_COST = 200
"""Observations whose fit costs as much as what every series costs."""

Row = dict[str, np.ndarray]
"""One series' row of `Curves`, by field; rate changes as many as that series has."""


@dataclass(frozen=True)
class History:
    """What one series is fitted on: wall_us int64 [n], rising; y [n]; regressors [n, R]."""

    wall_us: np.ndarray
    y: np.ndarray
    regressors: np.ndarray


def seasonalities_for(contract: Contract, longest_steps: int) -> tuple[Seasonality, ...]:
    """Cycles that the step and the longest training span can show: daily, weekly, yearly."""
    step = contract.frequency.step_us
    days = longest_steps * step / US_PER_DAY
    wanted = {
        "daily": step < US_PER_DAY and days >= 2,
        "weekly": step < 7 * US_PER_DAY and days >= 14,
        "yearly": days >= YEARS_FOR_YEARLY * 365,
    }
    return tuple(
        Seasonality(name, *DEFAULT_ORDERS[name]) for name, present in wanted.items() if present
    )


def fit_all(
    data: SeriesArrays,
    ends: Sequence[int] | np.ndarray,
    seasonalities: tuple[Seasonality, ...],
    regressors: Regressors,
    params: Mapping[str, Any],
    compute: Compute,
) -> tuple[list[Row], list[int]]:
    """A row of `Curves` for each series, and which series could not be fitted.

    ends: position in each series before which its history ends, int [series].
    """
    most = int(params["max_history"])
    parts = [(series, int(end)) for series, end in enumerate(ends)]
    work = partial(
        fit_series, seasonalities=seasonalities, regressors=regressors, params=dict(params)
    )
    costs = [float(min(end, most) + BASE_COST) for _, end in parts]
    rows, failed, first = [], [], ""
    for part, found in zip(parts, compute.over_parts(work, data, parts, costs), strict=True):
        if isinstance(found, Failed):
            first = first or f"{data.ids[part[0]]}: {found.reason}"
            failed.append(part[0])
            found = flat_row(history_of(data, *part, most, regressors), seasonalities)
        rows.append(found)
    if failed:
        structlog.get_logger().warning(
            "prophet_fallback", series=len(failed), of=data.n_series, first=first
        )
    return rows, failed


def fit_series(
    data: SeriesArrays,
    part: tuple[int, int],
    seasonalities: tuple[Seasonality, ...],
    regressors: Regressors,
    params: Mapping[str, Any],
) -> Row:
    """Fit the series in one row of `data` up to a position; part: both of them.

    Coefficients of cycles that it does not show are zero. Raises RuntimeError or ValueError if it
    cannot be fitted.
    """
    history = history_of(data, *part, int(params["max_history"]), regressors)
    solve = {"map": fit_map, "stan": run_prophet}[params["solver"]]
    own = shown(data.contract, int(data.train_end[part[0]]), history, seasonalities)
    return with_cycles(solve(history, own, params), own, seasonalities)


def shown(
    contract: Contract, training: int, history: History, seasonalities: tuple[Seasonality, ...]
) -> tuple[Seasonality, ...]:
    """The cycles of which the training span has two and the history one.

    Two is Prophet's own rule for a series; `training` counts its steps, so that fits of parts of a
    series and refits have the cycles that validation judged. One whole cycle is the least that
    tells a season from a trend.
    """
    if not len(history.y):
        return ()
    own = {cycle.name for cycle in seasonalities_for(contract, training)}
    seen = int(history.wall_us[-1] - history.wall_us[0]) + contract.frequency.step_us
    return tuple(
        cycle
        for cycle in seasonalities
        if cycle.name in own and seen >= int(cycle.period) * US_PER_DAY
    )


def with_cycles(row: Row, own: Sequence[Seasonality], every: Sequence[Seasonality]) -> Row:
    """A row fitted with its own cycles as one of all cycles; what it lacks is zero."""
    seasonal = [np.full(2 * cycle.order, cycle in own) for cycle in every]
    n_regressors = len(row["regressor_mean"])
    used = np.concatenate([*seasonal, np.full(n_regressors, True)])
    beta = np.zeros(len(used))
    beta[used] = row["beta"]
    return {**row, "beta": beta}


def history_of(
    data: SeriesArrays, series: int, end: int, most: int, regressors: Regressors
) -> History:
    """Observed values before `end`, within the bounds of the training span; `most` steps."""
    first = max(0, end - most)
    steps = np.arange(first, end)
    steps = steps[data.observed[int(data.offsets[series]) + steps]]
    rows = int(data.offsets[series]) + steps
    instants = steps_after(data.start_us[series], steps, data.contract)
    wall = to_local_us(instants, data.contract.time_zone)
    order = np.argsort(wall, kind="stable")
    y = np.clip(data.y[rows[order]], data.stats.clip_lo[series], data.stats.clip_hi[series])
    told = regressors.history(data, series, first, end)
    return History(wall[order], y, told[(steps - first)[order]])


def fit_map(
    history: History, seasonalities: tuple[Seasonality, ...], params: Mapping[str, Any]
) -> Row:
    """Fit with `map_estimate`, scaled as Prophet scales. Raises ValueError as Prophet does."""
    wall, y = history.wall_us, history.y
    if len(y) < 2:
        raise ValueError("fewer than 2 observations")
    y_scale = float(np.abs(y).max()) or 1.0
    t = (wall - wall[0]) / (wall[-1] - wall[0])
    changepoints = t[_changepoint_rows(len(y), params)]
    mean, std = _standard(history.regressors)
    scaled = (history.regressors - mean) / std
    season = fourier(wall, seasonalities).T
    found = map_estimate(
        Problem(
            y=y / y_scale,
            t=t,
            # Prophet has one dummy change at the start where it has no other.
            changepoints=changepoints if len(changepoints) else np.zeros(1),
            x=np.concatenate([season, scaled], axis=1),
            sds=np.concatenate(
                [
                    np.full(season.shape[1], float(params["seasonality_prior_scale"])),
                    np.full(scaled.shape[1], REGRESSOR_SD),
                ]
            ),
            tau=float(params["changepoint_prior_scale"]),
            multiplicative=params["seasonality_mode"] == "multiplicative",
            flat=params["growth"] == "flat",
        )
    )
    slope, delta = found.trend[1], found.trend[2:]
    if not len(changepoints):
        slope, delta = slope + delta[0], delta[:0]
    return {
        "start_us": np.asarray(wall[0]),
        "span_us": np.asarray(wall[-1] - wall[0]),
        "y_scale": np.asarray(y_scale),
        "k": np.asarray(slope),
        "m": np.asarray(found.trend[0]),
        "delta": delta,
        "changepoints": changepoints,
        "beta": found.beta,
        "regressor_mean": mean,
        "regressor_std": std,
    }


def _changepoint_rows(n: int, params: Mapping[str, Any]) -> np.ndarray:
    """Rows of the history where the rate may change: evenly over its first part."""
    last = int(np.floor(n * CHANGEPOINT_RANGE)) - 1
    return np.linspace(0, last, _changepoints(n, params) + 1).round().astype(np.int64)[1:]


def _changepoints(n: int, params: Mapping[str, Any]) -> int:
    return min(int(params["n_changepoints"]), max(0, n // 4))


def _standard(regressors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each regressor; 0 and 1 for one of zeros and ones, or constant."""
    count = regressors.shape[1]
    mean, std = np.zeros(count), np.ones(count)
    for column in range(count):
        values = np.unique(regressors[:, column])
        if len(values) > 1 and not np.array_equal(values, [0.0, 1.0]):
            mean[column] = regressors[:, column].mean()
            std[column] = regressors[:, column].std(ddof=1)
    return mean, std


def run_prophet(
    history: History, seasonalities: tuple[Seasonality, ...], params: Mapping[str, Any]
) -> Row:
    """Fit with Prophet and Stan. Raises RuntimeError or ValueError where they do."""
    from pandas import DataFrame, to_datetime

    frame = DataFrame({"ds": to_datetime(history.wall_us, unit="us"), "y": history.y})
    names = [f"r{column}" for column in range(history.regressors.shape[1])]
    frame[names] = history.regressors
    model = _prophet(len(frame), names, seasonalities, params)
    model.fit(frame)
    found = {name: np.asarray(model.params[name]).ravel() for name in ("delta", "beta")}
    # Stan keeps a slope that a flat trend does not use, and a coefficient where there is none.
    used = 0.0 if params["growth"] == "flat" else 1.0
    width = 2 * sum(s.order for s in seasonalities) + len(names)
    return {
        "start_us": np.asarray(model.start.value // 1000),
        "span_us": np.asarray(model.t_scale.value // 1000),
        "y_scale": np.asarray(model.y_scale),
        "k": used * np.asarray(model.params["k"]).reshape(()),
        "m": np.asarray(model.params["m"]).reshape(()),
        "delta": used * found["delta"],
        "changepoints": np.asarray(model.changepoints_t, dtype=np.float64).ravel(),
        "beta": found["beta"][:width],
        "regressor_mean": np.asarray([model.extra_regressors[n]["mu"] for n in names], float),
        "regressor_std": np.asarray([model.extra_regressors[n]["std"] for n in names], float),
    }


def _prophet(
    n: int,
    regressors: Sequence[str],
    seasonalities: tuple[Seasonality, ...],
    params: Mapping[str, Any],
) -> Any:
    for noisy in ("cmdstanpy", "prophet"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from prophet import Prophet

    model = Prophet(
        growth=params["growth"],
        changepoint_prior_scale=params["changepoint_prior_scale"],
        seasonality_prior_scale=params["seasonality_prior_scale"],
        seasonality_mode=params["seasonality_mode"],
        changepoint_range=CHANGEPOINT_RANGE,
        n_changepoints=_changepoints(n, params),
        daily_seasonality=False,
        weekly_seasonality=False,
        yearly_seasonality=False,
        uncertainty_samples=0,
    )
    for seasonality in seasonalities:
        model.add_seasonality(seasonality.name, seasonality.period, seasonality.order)
    for name in regressors:
        model.add_regressor(name, prior_scale=REGRESSOR_SD)
    return model


def flat_row(history: History, seasonalities: tuple[Seasonality, ...]) -> Row:
    """A constant curve at the mean of the history."""
    n_regressors = history.regressors.shape[1]
    columns = 2 * sum(s.order for s in seasonalities) + n_regressors
    return {
        "start_us": np.asarray(0),
        "span_us": np.asarray(1),
        "y_scale": np.asarray(1.0),
        "k": np.asarray(0.0),
        "m": np.asarray(float(history.y.mean()) if len(history.y) else 0.0),
        "delta": np.zeros(0),
        "changepoints": np.zeros(0),
        "beta": np.zeros(columns),
        "regressor_mean": np.zeros(n_regressors),
        "regressor_std": np.ones(n_regressors),
    }


def stack(fits: Sequence[Row]) -> Curves:
    """Rows of single fits as arrays; changepoints are zero-padded to the most any series has."""
    width = max((len(fit["delta"]) for fit in fits), default=0)

    def padded(name: str, fit: Row) -> np.ndarray:
        row = fit[name]
        if name in ("delta", "changepoints"):
            # Prophet keeps one dummy change of rate zero where it placed no changepoint.
            row = row[: min(len(fit["delta"]), len(fit["changepoints"]))]
            return np.pad(row, (0, width - len(row)))
        return row

    return Curves(**{name: np.stack([padded(name, fit) for fit in fits]) for name in fits[0]})
