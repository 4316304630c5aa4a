"""Windows whose level has moved for good: what lies before is brought to the level of now.

A cell that takes over the load of a neighbour, or a feeder that is switched to another one, has the
same shape at another level from one step to the next. A model that looks back over weeks would
mix both levels for weeks.

Design choices: seasons are compared whole, so that neither nights nor the hour of a forecast count;
a level has moved when every season after some moment lies beyond every season before it by
`RATIO`; there are `LEAST` on either side, so that an odd day is no move, and `WEEK` on one of them,
so that a weekend is none; only values that are never below zero have a ratio; the season in which
it happened is cut where both sides fit best; whatever has not moved is handed back as it came.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flts_ray.prepare.arrays import Windows

RATIO = 3.0
"""Between two levels, so that they count as different ones."""
LEAST, WEEK = 2, 7
"""Whole seasons on either side, and on one of them."""


def relevelled(windows: Windows) -> Windows:
    """The windows, with the older part of those that have moved multiplied to the new level."""
    season = windows.contract.season
    y = windows.y
    count = y.shape[1] // season
    if season < 2 or count <= LEAST + WEEK:
        return windows
    whole = y[:, y.shape[1] - count * season :].reshape(len(y), count, season)
    levels = whole.mean(axis=2)
    lowest = levels.min(axis=1)
    doubtful = np.flatnonzero((lowest > 0) & (levels.max(axis=1) > RATIO * lowest))
    doubtful = doubtful[y[doubtful].min(axis=1) >= 0]
    at = moved_at(levels[doubtful])
    if not at.any():
        return windows
    changed = y.copy()
    for row, moved in zip(doubtful[at > 0].tolist(), at[at > 0].tolist(), strict=True):
        older, factor = _older(whole[row], moved)
        changed[row, : y.shape[1] - count * season + older] *= factor
    return replace(windows, y=changed)


def moved_at(levels: np.ndarray) -> np.ndarray:
    """The season in which each window moved, 0 where it did not: int64 [n].

    levels: [n, K], of whole seasons, above zero. The season found may hold both levels, so it
    counts on no side.
    """
    count = levels.shape[1]
    top, bottom = np.maximum.accumulate(levels, axis=1), np.minimum.accumulate(levels, axis=1)
    turned = levels[:, ::-1]
    top_after = np.maximum.accumulate(turned, axis=1)[:, ::-1]
    bottom_after = np.minimum.accumulate(turned, axis=1)[:, ::-1]
    found, widest = np.zeros(len(levels), np.int64), np.full(len(levels), RATIO)
    for at in range(LEAST, count - LEAST):
        if max(at, count - at - 1) < WEEK:
            continue
        up = bottom_after[:, at + 1] / top[:, at - 1]
        apart = np.maximum(up, bottom[:, at - 1] / top_after[:, at + 1])
        found = np.where(apart > widest, at, found)
        widest = np.maximum(apart, widest)
    return found


def _older(whole: np.ndarray, at: int) -> tuple[int, float]:
    """How many steps lie at the old level, and what brings them to the new one.

    whole: [K, season] of one window that moved in season `at`.
    """
    old, new = whole[:at].mean(axis=0), whole[at + 1 :].mean(axis=0)
    as_old, as_new = np.abs(whole[at] - old), np.abs(whole[at] - new)
    cost = np.concatenate([[0.0], np.cumsum(as_old)]) + np.concatenate(
        [np.cumsum(as_new[::-1])[::-1], [0.0]]
    )
    return at * whole.shape[1] + int(np.argmin(cost)), float(new.mean() / old.mean())
