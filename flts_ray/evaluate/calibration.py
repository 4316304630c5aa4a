"""Whether quantiles mean what they say: coverage of each level, and the PIT histogram.

Design choices: everything comes from the levels that are forecast, nothing is interpolated, so a
bin of the histogram lies between two levels and its height is the share of values over the share
that belongs there; a value that ties with a quantile counts half on either side, so that series
of whole numbers are not called uncalibrated (Czado, Gneiting & Held 2009).

Shapes: actual: [n, H], NaN where not observed; quantiles: [n, H, Q]; levels: Q numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from flts_ray.evaluate.backtest import Backtest
from flts_ray.evaluate.metrics import Average, by_step, overall, together


def level_coverage(
    actual: np.ndarray, quantiles: np.ndarray, average: Average = overall
) -> np.ndarray:
    """Share of observed values at or below each level, by group: [..., Q]."""
    found = []
    for column in range(quantiles.shape[2]):
        below = actual < quantiles[..., column]
        half = 0.5 * (below.astype(float) + (actual <= quantiles[..., column]))
        found.append(average(np.where(np.isnan(actual), np.nan, half)))
    return np.stack(found, axis=-1)


def calibration_error(
    actual: np.ndarray,
    quantiles: np.ndarray,
    levels: Sequence[float],
    average: Average = overall,
) -> np.ndarray:
    """Mean distance of the levels' coverage from the levels, a share by group.

    Zero for a perfect forecaster with endless data (Kuleshov, Fenner & Ermon 2018).
    """
    missed = level_coverage(actual, quantiles, average) - np.asarray(levels)
    return np.asarray(np.abs(missed).mean(axis=-1))


def pit_shares(covered: np.ndarray) -> np.ndarray:
    """Shares of values between neighbouring levels and beyond the ends: [..., Q + 1].

    covered: [..., Q] of `level_coverage`. The probability integral transform, cut at the levels
    (Dawid 1984; Diebold, Gunther & Tay 1998).
    """
    ends = np.zeros((*covered.shape[:-1], 1))
    # Nothing observed: NaN in the first level is NaN everywhere.
    ends = ends + 0 * covered[..., :1]
    return np.diff(np.concatenate([ends, covered, ends + 1], axis=-1), axis=-1)


def pit_table(bt: Backtest) -> pa.Table:
    """The PIT histogram of a backtest, a row a bin: above, below, share, expected, height.

    `height` is one everywhere for a perfect forecaster; high ends mean bands too narrow, a hill
    in the middle bands too wide, a slope a forecast that leans to one side.
    """
    edges = np.array([0.0, *bt.levels, 1.0])
    share, expected = pit_shares(level_coverage(bt.actual, bt.quantiles)), np.diff(edges)
    columns = {
        "above": edges[:-1],
        "below": edges[1:],
        "share": share,
        "expected": expected,
        "height": share / expected,
    }
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def coverage_table(bt: Backtest) -> pa.Table:
    """Coverage of each level at each step: `step` (0 for all together), then a column a level."""
    covered = level_coverage(bt.actual, bt.quantiles, together(overall, by_step))
    steps = np.arange(len(covered))
    columns = {f"q{level:g}": covered[:, i] for i, level in enumerate(bt.levels)}
    return pa.table({"step": pa.array(steps), **{n: pa.array(c) for n, c in columns.items()}})
