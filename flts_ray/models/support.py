"""Where a series has its floor: forecasts do not go below a zero that was touched and never passed.

Design choices: counts, traffic and what the sun delivers cannot be negative, but bands around a
mean do not know; a window that holds a zero and nothing below it shows such a floor, without any
state, so a series never seen before has it too, and one that passes zero loses it at once; to move
quantiles and mean up to a floor that holds makes no value less likely and no error larger.
"""

from __future__ import annotations

import numpy as np


def floored(
    y: np.ndarray, mean: np.ndarray, quantiles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [n, H] and quantiles [n, H, Q], not below zero where the window stood on it.

    y: [n, L], what the windows show. All in the input's units, without an offset or a scale.
    """
    floor = np.where(y.min(axis=1) == 0.0, 0.0, -np.inf)
    return np.maximum(mean, floor[:, None]), np.maximum(quantiles, floor[:, None, None])
