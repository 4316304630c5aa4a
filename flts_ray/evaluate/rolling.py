"""A backtest of a service: the bands are kept up to date while the forecasts go on.

Design choices: at every so many steps the bands learn what they missed, by the same function that
serves them (`Follower.follow`), and the origins until the next time are forecast with them; what
is learned at an instant ends before it, and an origin is forecast with what was learned at or
before it, so nothing after an origin touches its forecast; the instants are those of all series
together, so no series tells another of its future; maps, weights and curves stay as they were, so
the numbers beside a frozen backtest say what the bands alone owe to being kept up to date.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flts_ray.evaluate.backtest import Backtest, Origins, backtest, instants_of
from flts_ray.models.base import Fitted, follower
from flts_ray.models.calibrate import chunks
from flts_ray.models.memory import memory_of, positions_of
from flts_ray.models.news import same_contract
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import SeriesArrays

WINDOWS_AT_ONCE = 2**13
"""Windows of one update that are forecast together."""
MOST_UPDATES = 200
"""Of one backtest; a longer span is updated more seldom."""


def default_every(season: int, horizon: int) -> int:
    """Steps between two updates: a season, as a job that runs every day does, or the horizon where
    that is longer, because an update begins with one horizon of new rows."""
    return max(season, horizon)


def rolling_backtest(
    fitted: Fitted, data: SeriesArrays, origins: Origins, every: int | None = None
) -> Backtest | None:
    """Forecast every origin by the model whose bands know what was missed up to then.

    every: steps between two updates, `default_every` if None. None for a model that does not tell
    how far it has seen its series, or was fitted on a set of another contract. Raises DataError as
    `backtest` does.
    """
    if memory_of(fitted) is None or not same_contract(fitted.spec.contract, data.contract):
        return None
    step = every or default_every(data.contract.season, fitted.spec.task.horizon)
    instants = update_instants(data, step)
    at = np.searchsorted(instants, instants_of(data, origins), side="right") - 1
    made, model = _empty(fitted, data, origins), fitted
    kept = follower(fitted.spec.kind)
    for number in range(int(at.max(initial=-1)) + 1):
        model = kept.follow(model, known_at(data, int(instants[number])))
        mine = np.flatnonzero(at == number)
        # A few at a time, so that their forecasts do not lie twice in memory.
        for some in chunks(len(mine), WINDOWS_AT_ONCE):
            rows = mine[some]
            part = backtest(model, data, origins.part(rows))
            made.mean[rows], made.quantiles[rows] = part.mean, part.quantiles
            made.actual[rows] = part.actual
    return made


def update_instants(data: SeriesArrays, every: int) -> np.ndarray:
    """When bands are updated: int64 [k], UTC microseconds, from the start of the test span on."""
    begins = steps_after(data.start_us, data.valid_end, data.contract)
    first = int(np.argmin(begins))
    ends = steps_after(data.start_us, data.lengths, data.contract)
    left = int(positions_of(ends.max(keepdims=True), begins[[first]], data.contract)[0])
    step = max(every, -(-left // MOST_UPDATES))
    positions = data.valid_end[first] + np.arange(0, max(left, 1), step)
    return steps_after(np.full(len(positions), data.start_us[first]), positions, data.contract)


def known_at(data: SeriesArrays, instant_us: int) -> SeriesArrays:
    """The set as it was at an instant: rows from there on are its test span."""
    at = positions_of(np.full(data.n_series, instant_us), data.start_us, data.contract)
    valid_end = np.clip(at, 0, data.lengths)
    return replace(data, train_end=np.minimum(data.train_end, valid_end), valid_end=valid_end)


def _empty(fitted: Fitted, data: SeriesArrays, origins: Origins) -> Backtest:
    """A backtest of these origins without forecasts yet."""
    task, n = fitted.spec.task, len(origins)
    return Backtest(
        origins=origins,
        origin_us=instants_of(data, origins),
        levels=task.levels,
        mean=np.empty((n, task.horizon)),
        quantiles=np.empty((n, task.horizon, len(task.levels))),
        actual=np.empty((n, task.horizon)),
    )
