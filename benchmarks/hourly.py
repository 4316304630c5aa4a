"""Hourly series that are made up, as a set that models fit."""

from __future__ import annotations

import numpy as np

from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats

SEASON = 24


def hourly_set(y: np.ndarray, start_us: int = 0) -> SeriesArrays:
    """y: float64 [series, steps], complete and without covariates; 60/20/20 % split."""
    n_series, length = y.shape
    train_end, valid_end = length * 6 // 10, length * 8 // 10
    known = y[:, :train_end]
    stats = SeriesStats(
        ids=tuple(f"s{i}" for i in range(n_series)),
        mean=known.mean(axis=1),
        std=known.std(axis=1),
        scale=np.abs(known[:, SEASON:] - known[:, :-SEASON]).mean(axis=1),
        clip_lo=np.full(n_series, -np.inf),
        clip_hi=np.full(n_series, np.inf),
    )
    return SeriesArrays(
        contract=Contract(freq="1h", season=SEASON),
        stats=stats,
        offsets=np.arange(n_series + 1) * length,
        start_us=np.full(n_series, start_us, dtype=np.int64),
        train_end=np.full(n_series, train_end),
        valid_end=np.full(n_series, valid_end),
        y=y.ravel(),
        observed=np.ones(y.size, dtype=bool),
        future=np.zeros((y.size, 0), dtype=np.float32),
        past=np.zeros((y.size, 0), dtype=np.float32),
        static=np.zeros((n_series, 0), dtype=np.float32),
    )
