"""What bands have missed of late, and bands that follow it.

Design choices: each new window is scored by the model as it was before it learned from that
window (prequential, Dawid 1984), so scores never flatter; a window counts once, in the update that
brings its last target, so no window falls between two updates; scores are distances to every
quantile in units of the window's band (conformalised quantile regression, Romano, Patterson &
Candes 2019), so one rule (`track.py`) serves every kind of model; of neighbouring windows, which
say nearly the same, only some are scored, at all phases of the season, so an update costs what is
new and not more for a long horizon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import gcd

import numpy as np

from flts_ray.models import calibrate
from flts_ray.models.base import Task
from flts_ray.models.track import Served
from flts_ray.prepare.arrays import SeriesArrays, Windows, actuals_at, origins_in, windows_at

MAX_ENTRIES = 2**22
"""Bound of the scores of one update (float64), 32 MiB."""
MIN_WINDOWS = 64
OVERLAP = 8
"""Windows of one series that are scored in one horizon of time, about."""
Ask = Callable[[Windows], tuple[np.ndarray, np.ndarray]]
"""Quantiles [n, H, Q] of windows in the input's units, and the scale of their bands, [n] or
[n, H]."""


def most_windows(horizon: int, levels: int) -> int:
    """Windows that one update scores at most."""
    return max(MIN_WINDOWS, MAX_ENTRIES // (horizon * levels))


def score_windows(
    data: SeriesArrays,
    begin: np.ndarray,
    known: int,
    task: Task,
    lookback: int,
    ask: Ask,
    there: int | None = None,
) -> Served:
    """Scores of windows whose last target lies in the validation span.

    data: of `News.tail` with `lookback` and a horizon before the new rows; begin: int64 [S],
    positions in the source where its series begin; known: the first so many series were known
    before, the others have nothing to say about the bands of what was; there: how many of those
    the source has, all by default. Slots are counted back from
    the end of each series' span and are one horizon long, or shorter so that equal ones cover all.
    """
    horizon, levels = task.horizon, len(task.levels)
    fresh = (data.valid_end - data.train_end) * (np.arange(data.n_series) < known)
    first = replace(data, train_end=np.maximum(data.train_end - horizon + 1, 0))
    series, origins = origins_in(first, "validation", lookback, horizon)
    stride = _stride(data.contract.season, horizon)
    kept = (begin[series] + origins) % stride == 0
    age = data.valid_end[series] - origins - horizon
    kept &= age < fresh[series]
    rows = _thinned(np.flatnonzero(kept), most_windows(horizon, levels))
    series, origins, age = series[rows], origins[rows], age[rows]
    scores = np.empty((len(series), horizon, levels))
    for part in calibrate.chunks(len(series), calibrate.CHUNK // 4):
        quantiles, scale = ask(windows_at(data, series[part], origins[part], lookback, horizon))
        actual = actuals_at(data, series[part], origins[part], horizon)
        scores[part] = (actual[..., None] - quantiles) / calibrate.per_step(scale)[..., None]
    span = max(1, int(fresh.max(initial=1)))
    parts = -(-span // horizon)
    share = float((fresh > 0).sum()) / max(known if there is None else there, 1)
    return Served(scores, parts - 1 - age * parts // span, series, span / (parts * horizon), share)


def _stride(season: int, horizon: int) -> int:
    stride = max(1, horizon // OVERLAP)
    while gcd(stride, season) > 1:
        stride += 1
    return stride


def _thinned(rows: np.ndarray, most: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def moved(band: calibrate.ResidualQuantiles, by: np.ndarray) -> calibrate.ResidualQuantiles:
    """Bands moved by a correction [H, Q] in their own units, in order again."""
    if not by.any():
        return band
    return replace(
        band,
        pooled=np.sort(band.pooled + by, axis=-1),
        own=np.sort(band.own + by, axis=-1),
    )
