"""One judge for everybody: the project's metrics on forecasts that a file holds.

Design choices: the judge looks up what happened by itself and refuses forecasts of other windows
than the task's, of a wrong shape or not finite; metrics are averaged over the observed values of a
series and then over the values of all series, so a table of all windows is one of equal values;
where a task is scaled, errors are in standard deviations of the series' training span.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.protocol import LEVELS, ForecastData, TaskData
from flts_ray.errors import DataError
from flts_ray.evaluate import metrics

METRICS = ("mse", "mae", "pinball", "coverage_80", "coverage_95")
BANDS = {"coverage_80": (0.1, 0.9), "coverage_95": (0.025, 0.975)}


def judge(task: TaskData, found: ForecastData, *, scaled: bool) -> dict[str, Any]:
    """Scores on every window and on the subsample: `{"all": ..., "few": ...}`.

    Each holds `windows`, `values`, the metrics of all series together, and `series` with those
    of each. "all" is None for forecasts of the subsample alone; metrics of quantiles are None
    where there are none. Raises DataError for forecasts that are not of this task.
    """
    check(task, found)
    few = np.flatnonzero(task.few)
    whole = len(found.windows) == len(task.series)
    return {
        "all": scores(task, found, np.arange(len(task.series)), scaled) if whole else None,
        "few": scores(task, found, few, scaled),
    }


def check(task: TaskData, found: ForecastData) -> None:
    """Raise DataError unless these are finite forecasts of all windows or the subsample."""
    windows, shape = found.windows, found.mean.shape
    whole, few = np.arange(len(task.series)), np.flatnonzero(task.few)
    if not any(np.array_equal(windows, these) for these in (whole, few)):
        raise DataError(
            f"{task.name}: forecasts of {len(windows)} windows that are neither all "
            f"{len(whole)} of the task nor its subsample of {len(few)}; forecast again"
        )
    if shape != (len(windows), task.horizon):
        raise DataError(
            f"{task.name}: mean of shape {shape}, expected {task.horizon} steps a window"
        )
    if found.quantiles is not None and found.quantiles.shape != (*shape, len(LEVELS)):
        raise DataError(
            f"{task.name}: quantiles of shape {found.quantiles.shape}, expected levels {LEVELS}"
        )
    for name, values in (("mean", found.mean), ("quantiles", found.quantiles)):
        if values is not None and not np.isfinite(values).all():
            raise DataError(f"{task.name}: {int((~np.isfinite(values)).sum())} {name} not finite")


def scores(
    task: TaskData, found: ForecastData, windows: np.ndarray, scaled: bool
) -> dict[str, Any]:
    """Scores of some windows of the task, all of which the forecasts must hold."""
    rows = np.searchsorted(found.windows, windows)
    each: dict[str, dict[str, float | None]] = {}
    for series in np.unique(task.series[windows]):
        mine = task.series[windows] == series
        mean, std = task.spread(int(series)) if scaled else (0.0, 1.0)
        actual = (task.actual(windows[mine]) - mean) / std
        if not np.isfinite(actual).any():
            continue
        forecast = (found.mean[rows[mine]].astype(np.float64) - mean) / std
        one = _point(actual, forecast)
        if found.quantiles is None:
            one |= dict.fromkeys(("pinball", *BANDS))
        else:
            one |= _bands(actual, (found.quantiles[rows[mine]].astype(np.float64) - mean) / std)
        each[str(task.ids[series])] = one
    return {**_pooled(each), "series": each}


def _point(actual: np.ndarray, forecast: np.ndarray) -> dict[str, float | None]:
    return {
        "windows": len(actual),
        "values": int(np.isfinite(actual).sum()),
        "mse": float(metrics.rmse(actual, forecast)) ** 2,
        "mae": float(metrics.mae(actual, forecast)),
    }


def _bands(actual: np.ndarray, quantiles: np.ndarray) -> dict[str, float | None]:
    """The MAE is that of the median, which is what minimises it."""
    found: dict[str, float | None] = {
        "mae": float(metrics.mae(actual, quantiles[..., LEVELS.index(0.5)])),
        "pinball": float(metrics.pinball(actual, quantiles, LEVELS)),
    }
    for name, (low, high) in BANDS.items():
        lower, upper = (quantiles[..., LEVELS.index(level)] for level in (low, high))
        found[name] = float(metrics.coverage(actual, lower, upper))
    return found


def _pooled(each: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    """Averages over the values of all series."""
    counts = np.array([one["values"] for one in each.values()], float)
    found: dict[str, Any] = {
        "windows": int(sum(one["windows"] or 0 for one in each.values())),
        "values": int(counts.sum()),
    }
    for name in METRICS:
        values = [one[name] for one in each.values()]
        known = all(value is not None for value in values)
        found[name] = float(np.average(np.array(values, float), weights=counts)) if known else None
    return found
