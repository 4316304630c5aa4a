"""Small prepared sets made in memory, for tests that need no files."""

from __future__ import annotations

import numpy as np

from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats

CALENDAR = ("minute_sin", "minute_cos")
START_US = 1_600_000_000_000_000 // 3_600_000_000 * 3_600_000_000


def seasonal_set(
    n_series: int = 3,
    length: int = 600,
    season: int = 24,
    noise: float = 0.1,
    seed: int = 0,
    covariates: bool = True,
) -> SeriesArrays:
    """Hourly daily-seasonal series with different levels; 60/20/20 % split.

    With `covariates`, one known-future covariate adds to y at the same step, one past covariate
    follows y with a lag, and one static column numbers the series.
    """
    rng = np.random.default_rng(seed)
    steps = np.arange(length)
    rows_y, rows_known, rows_past = [], [], []
    for i in range(n_series):
        known = (rng.random(length) < 0.2).astype(float) if covariates else np.zeros(length)
        level = 10.0 ** (i % 3)
        cycle = np.sin(2 * np.pi * (steps + i) / season)
        y = level * (3 + cycle + 0.5 * known + noise * rng.standard_normal(length))
        rows_y.append(y)
        rows_known.append(known)
        rows_past.append(np.concatenate([[y[0]], y[:-1]]))
    y = np.concatenate(rows_y)
    phase = 2 * np.pi * np.tile(steps % 24, n_series) / 24
    columns = [np.sin(phase), np.cos(phase)]
    if covariates:
        columns.append(np.concatenate(rows_known))
    train_end, valid_end = int(length * 0.6), int(length * 0.8)
    return SeriesArrays(
        contract=Contract(
            freq="1h",
            season=season,
            calendar=CALENDAR,
            known_future=("event",) if covariates else (),
            past=("lagged",) if covariates else (),
            static=("number",) if covariates else (),
        ),
        stats=stats_of([row[:train_end] for row in rows_y], season),
        offsets=np.arange(n_series + 1) * length,
        start_us=np.full(n_series, START_US, dtype=np.int64),
        train_end=np.full(n_series, train_end, dtype=np.int64),
        valid_end=np.full(n_series, valid_end, dtype=np.int64),
        y=y,
        observed=np.ones(len(y), dtype=bool),
        future=np.stack(columns, axis=1).astype(np.float32),
        past=np.concatenate(rows_past)[:, None].astype(np.float32)[:, : 1 if covariates else 0],
        static=np.arange(n_series, dtype=np.float32)[:, None][:, : 1 if covariates else 0],
    )


def stats_of(training: list[np.ndarray], season: int) -> SeriesStats:
    """Training statistics without clipping."""
    n = len(training)
    return SeriesStats(
        ids=tuple(f"s{i}" for i in range(n)),
        mean=np.array([row.mean() for row in training]),
        std=np.array([row.std() for row in training]),
        scale=np.array([np.abs(row[season:] - row[:-season]).mean() for row in training]),
        clip_lo=np.full(n, -np.inf),
        clip_hi=np.full(n, np.inf),
    )
