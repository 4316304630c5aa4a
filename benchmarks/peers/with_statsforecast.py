"""statsforecast: every window is a fit of its own on the history before its origin."""

from __future__ import annotations

from typing import Any

import numpy as np
from statsforecast import models  # type: ignore[import-not-found]

from benchmarks.peers.meter import Meter
from benchmarks.peers.protocol import LEVELS, TaskData

COLUMNS = ("lo-95", "lo-80", "mean", "hi-80", "hi-95")
"""Bands of 95 % and 80 % are the outer levels of `LEVELS`; the mean stands for the median."""


def forecast(
    task: TaskData, model: str, settings: dict[str, Any], windows: np.ndarray, meter: Meter
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [m, H] and quantiles [m, H, Q] of these windows."""
    maker, history = getattr(models, model), int(settings["history"])
    season = settings["season_length"]
    quantiles = np.empty((len(windows), task.horizon, len(LEVELS)), np.float32)
    _compile(maker(season_length=season), task, history)
    with meter.part("predict"):
        for row, window in enumerate(windows):
            series, position = int(task.series[window]), int(task.positions[window])
            y = task.y[task.rows(series)][max(0, position - history) : position]
            fit = maker(season_length=season).forecast(y=y, h=task.horizon, level=[80, 95])
            quantiles[row] = np.stack([fit[name] for name in COLUMNS], axis=-1)
    meter.notes.append("fitted again at every origin: the fit is part of predict")
    return quantiles[..., COLUMNS.index("mean")], quantiles


def _compile(model: Any, task: TaskData, history: int) -> None:
    """The first call of a process compiles; that is no cost of a forecast."""
    model.forecast(y=task.y[task.rows(0)][:history], h=task.horizon, level=[80, 95])
