"""One regular history without covariates into its window, as most callers send it.

Design choices: a request of one series is checked with a few plain comparisons, because setting
up a block of one costs more than a small model; whatever is not so plain is nobody's refusal here,
it is left to `regular.py`, and the window is the one that it would lay.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from flts_ray.errors import DataError
from flts_ray.panel import Contract, steps_after
from flts_ray.prepare.arrays import Windows, bounded
from flts_ray.prepare.clean import EARLIEST_US, LATEST_US
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.history import EPOCH, MAX_MAGNITUDE, MICROSECOND, parse_stamps
from flts_ray.serve.rows import AskedSeries
from flts_ray.serve.stamps import calendars, read_stamps


def lone_window(series: AskedSeries, model: ServedModel) -> Windows | None:
    """The window of a series that needs no repair; None where that takes a closer look."""
    spec = model.fitted.spec
    contract, lookback = spec.contract, spec.lookback
    at = model.position.get(series.id, -1)
    if (
        series.y is None
        or not 1 <= lookback <= len(series.y)
        or (at < 0 and spec.needs_known_series)
        or not _target_alone(series, contract)
        or (series.observed is not None and len(series.observed) != len(series.y))
    ):
        return None
    values = np.array(series.y, dtype=np.float64)
    least, most = values.min(), values.max()
    if not -MAX_MAGNITUDE <= least <= most <= MAX_MAGNITUDE:  # or a NaN
        return None
    origin = _origin(series, len(values), contract)
    if origin is None:
        return None
    y, scale = values[None, -lookback:], _blank(lookback).scale
    if at >= 0:
        stats = model.fitted.stats
        one = slice(at, at + 1)
        scale = stats.scale[one]
        if not stats.clip_lo[at] <= least <= most <= stats.clip_hi[at]:
            y = bounded(y, stats.clip_lo[one, None], stats.clip_hi[one, None])
    origin_us = np.array([origin], dtype=np.int64)
    return Windows(
        contract=contract,
        ids=(series.id,),
        origin_us=origin_us,
        y=y,
        observed=_observed(series, lookback),
        past=_blank(lookback).past,
        future=calendars(origin_us, lookback, spec.task.horizon, contract),
        static=_blank(lookback).static,
        scale=scale,
    )


class _Blank(NamedTuple):
    """What the windows of most series share."""

    observed: np.ndarray
    past: np.ndarray
    static: np.ndarray
    scale: np.ndarray


@lru_cache(maxsize=16)
def _blank(lookback: int) -> _Blank:
    blank = _Blank(
        observed=np.ones((1, lookback), dtype=bool),
        past=np.zeros((1, lookback, 0), dtype=np.float32),
        static=np.zeros((1, 0), dtype=np.float32),
        scale=np.array([np.nan]),
    )
    for array in blank:
        array.flags.writeable = False
    return blank


def _target_alone(series: AskedSeries, contract: Contract) -> bool:
    """True when neither the model nor the series has a covariate."""
    return not (
        contract.known_future
        or contract.past
        or contract.static
        or series.known_future
        or series.past
        or series.static
    )


def _observed(series: AskedSeries, lookback: int) -> np.ndarray:
    if series.observed is None:
        return _blank(lookback).observed
    return np.asarray(series.observed, dtype=bool)[None, -lookback:]


def _origin(series: AskedSeries, length: int, contract: Contract) -> int | None:
    """Step after a regular history, UTC microseconds."""
    if series.origin is not None or (series.ds is None) == (series.start is None):
        return None
    step = _fixed_step(contract)
    try:
        if series.ds is None:
            first = _start(series.start, contract.time_zone)
        elif step is None or len(series.ds) != length:
            return None
        else:
            first = _regular(series, step, contract.time_zone)
    except DataError:
        return None  # it is read again, which tells what is wrong
    if first is None or not EARLIEST_US <= first < LATEST_US:
        return None
    return _end(first, length, contract) if step is None else first + length * step


def _start(start: str | int | None, time_zone: str) -> int | None:
    """First stamp; None where it takes a closer look. Raises DataError for one out of range."""
    if not isinstance(start, str):
        return start
    try:
        moment = datetime.fromisoformat(start)
    except ValueError:
        return None
    if moment.tzinfo is None:
        if time_zone != "UTC":
            return int(parse_stamps([start], time_zone, "start")[0])
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // MICROSECOND


def _regular(series: AskedSeries, step: int, time_zone: str) -> int | None:
    """First of the stamps if all follow each other by one step."""
    assert series.ds is not None  # the caller has looked
    given = series.ds
    ds_us = given if isinstance(given, np.ndarray) else read_stamps(given, time_zone, "ds")
    first, last = int(ds_us[0]), int(ds_us[-1])
    if not EARLIEST_US <= last < LATEST_US or not (ds_us[1:] - ds_us[:-1] == step).all():
        return None
    return first


@lru_cache
def _fixed_step(contract: Contract) -> int | None:
    """Microseconds of a step in UTC; None where it is one of the wall clock."""
    frequency = contract.frequency
    if frequency.wall_clock and contract.time_zone != "UTC":
        return None
    return frequency.step_us


@lru_cache(maxsize=256)
def _end(first: int, length: int, contract: Contract) -> int:
    return int(steps_after(np.asarray(first), np.asarray(length), contract))
