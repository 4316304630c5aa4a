"""Where a series has its floor: forecasts do not go below a zero that was touched and never passed.

Design choices: counts, traffic and what the sun delivers cannot be negative, but bands around a
mean do not know; a window that holds a zero and nothing below it shows such a floor, without any
state, so a series never seen before has it too, and one that passes zero loses it at once; to move
quantiles and mean up to a floor that holds makes no value less likely and no error larger.
"""

from __future__ import annotations

import numpy as np

from flts_ray.models.base import Forecast, ModelSpec
from flts_ray.prepare.arrays import Windows


def floored(spec: ModelSpec, windows: Windows, mean: np.ndarray, quantiles: np.ndarray) -> Forecast:
    """The forecast of these windows, not below zero where what the model sees stood on it.

    mean: [n, H]; quantiles: [n, H, Q]; both in the input's units.
    """
    stood = windows.last(spec.lookback).y.min(axis=1) == 0.0
    if stood.any():
        floor = np.where(stood, 0.0, -np.inf)
        mean = np.maximum(mean, floor[:, None])
        quantiles = np.maximum(quantiles, floor[:, None, None])
    return Forecast(windows.ids, windows.origin_us, spec.task.levels, mean, quantiles)
