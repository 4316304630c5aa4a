"""The loss every model is trained, chosen and judged on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pinball(actual: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Pinball loss of each forecast value (Koenker & Bassett 1978), in the units of `actual`.

    actual: [n, H], may hold NaN; quantiles: [n, H, Q]; levels: Q numbers in (0, 1).
    Returns float64 [n, H, Q], NaN where `actual` is.
    """
    error = actual[..., None] - quantiles
    level = np.asarray(levels)
    return np.maximum(level * error, (level - 1.0) * error)
