"""prophet as its quick start has it: one fit a series, without holidays and regressors.

It is fitted on training and validation span, and never told what happened after them.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
from prophet import Prophet

from benchmarks.peers.meter import Meter
from benchmarks.peers.protocol import LEVELS, TaskData


def forecast(
    task: TaskData, model: str, settings: dict[str, Any], windows: np.ndarray, meter: Meter
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [m, H] and quantiles [m, H, Q] of these windows."""
    logging.getLogger("cmdstanpy").setLevel(logging.ERROR)
    np.random.seed(0)
    mean = np.empty((len(windows), task.horizon), np.float32)
    quantiles = np.empty((len(windows), task.horizon, len(LEVELS)), np.float32)
    for series in range(task.n_series):
        rows, start = task.rows(series), int(task.valid_end[series])
        stamps = pd.to_datetime(task.wall_us[rows], unit="us")
        seen = task.observed[rows][:start]
        history = pd.DataFrame({"ds": stamps[:start][seen], "y": task.y[rows][:start][seen]})
        with meter.part("fit"):
            fitted = Prophet(uncertainty_samples=settings["uncertainty_samples"]).fit(history)
        with meter.part("predict"):
            ahead = pd.DataFrame({"ds": stamps[start:]})
            middle = fitted.predict(ahead)["yhat"].to_numpy()
            bands = np.quantile(fitted.predictive_samples(ahead)["yhat"], LEVELS, axis=1).T
        mine = task.series[windows] == series
        at = (task.positions[windows][mine] - start)[:, None] + np.arange(task.horizon)
        mean[mine], quantiles[mine] = middle[at], bands[at]
    meter.notes.append("fitted once a series, on training and validation span")
    return mean, quantiles
