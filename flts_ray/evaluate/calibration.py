"""Whether quantiles mean what they say: coverage of each level, and the PIT histogram.

Design choices: everything comes from the levels that are forecast, nothing is interpolated, so a
bin of the histogram lies between two levels and its height is the share of values over the share
that belongs there; a value that ties with quantiles is spread over their levels and half the way to
the next ones, so that whole numbers and forecasts that end at zero are not called uncalibrated (the
nonrandomised PIT of Czado, Gneiting & Held 2009).

Shapes: actual: [n, H], NaN where not observed; quantiles: [n, H, Q]; levels: Q numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from flts_ray.evaluate.metrics import Average, overall


def level_coverage(
    actual: np.ndarray,
    quantiles: np.ndarray,
    levels: Sequence[float],
    average: Average = overall,
) -> np.ndarray:
    """Share of observed values at or below each level, by group: [..., Q]."""
    ties = np.zeros(actual.shape, dtype=bool)
    for column in range(len(levels)):
        ties |= actual == quantiles[..., column]
    shared = _spread(actual[ties], quantiles[ties], np.asarray(levels, dtype=np.float64))
    found = []
    for column in range(len(levels)):
        below = (actual < quantiles[..., column]).astype(float)
        below[ties] = shared[:, column]
        found.append(average(np.where(np.isnan(actual), np.nan, below)))
    return np.stack(found, axis=-1)


def _spread(actual: np.ndarray, quantiles: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Shares at or below each level of values [m] that tie with some of the quantiles [m, Q]."""
    lower, upper = quantiles < actual[:, None], quantiles > actual[:, None]
    tied = ~(lower | upper)
    before, after = (
        np.where(lower, levels, 0.0).max(axis=1),
        np.where(upper, levels, 1.0).min(axis=1),
    )
    first, last = np.where(tied, levels, 1.0).min(axis=1), np.where(tied, levels, 0.0).max(axis=1)
    start = np.where(lower.any(axis=1), (before + first) / 2, 0.0)[:, None]
    end = np.where(upper.any(axis=1), (last + after) / 2, 1.0)[:, None]
    return np.asarray(np.clip((levels - start) / (end - start), 0.0, 1.0))


def calibration_error(covered: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Mean distance of the levels' coverage, [..., Q] of `level_coverage`, from the levels: [...].

    Zero for a perfect forecaster with endless data (Kuleshov, Fenner & Ermon 2018).
    """
    return np.asarray(np.abs(covered - np.asarray(levels)).mean(axis=-1))


def pit_shares(covered: np.ndarray) -> np.ndarray:
    """Shares of values between neighbouring levels and beyond the ends: [..., Q + 1].

    covered: [..., Q] of `level_coverage`. The probability integral transform, cut at the levels
    (Dawid 1984; Diebold, Gunther & Tay 1998).
    """
    ends = np.zeros((*covered.shape[:-1], 1))
    # Nothing observed: NaN in the first level is NaN everywhere.
    ends = ends + 0 * covered[..., :1]
    return np.diff(np.concatenate([ends, covered, ends + 1], axis=-1), axis=-1)


def pit_table(levels: Sequence[float], covered: np.ndarray) -> pa.Table:
    """The PIT histogram, a row a bin: above, below, share, expected, height.

    covered: [Q], the overall `level_coverage`.
    `height` is one everywhere for a perfect forecaster; high ends mean bands too narrow, a hill
    in the middle bands too wide, a slope a forecast that leans to one side.
    """
    edges = np.array([0.0, *levels, 1.0])
    share, expected = pit_shares(covered), np.diff(edges)
    columns = {
        "above": edges[:-1],
        "below": edges[1:],
        "share": share,
        "expected": expected,
        "height": share / expected,
    }
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def coverage_table(levels: Sequence[float], covered: np.ndarray) -> pa.Table:
    """Coverage of each level at each step: `step` (0 for all together), then a column a level.

    covered: [1 + H, Q], the `level_coverage` of all together and of each step.
    """
    steps = np.arange(len(covered))
    columns = {f"q{level:g}": covered[:, i] for i, level in enumerate(levels)}
    return pa.table({"step": pa.array(steps), **{n: pa.array(c) for n, c in columns.items()}})
