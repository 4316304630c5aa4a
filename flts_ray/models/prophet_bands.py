"""Bands of Prophet: conformal, on windows that its curves have not seen.

Design choices: the validation span alone is one season's weather, so curves are fitted again on
the first half and on three quarters of the training span and forecast what follows (rolling
origin, Tashman 2000), by the solver that costs milliseconds; the correction is the one that
validation chose; of those older forecasts only the spread counts, because a curve of another
season leans its own way; series too short for that calibrate on validation alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from flts_ray.models.bands import Scored, fit_bands, scored
from flts_ray.models.base import Compute
from flts_ray.models.calibrate import chunks, sample_origins
from flts_ray.models.prophet_fit import fit_all, stack
from flts_ray.models.prophet_fitted import FittedProphet
from flts_ray.models.volatility import Sign, signs_of
from flts_ray.prepare.arrays import SeriesArrays, actuals_at, windows_at

SHARES = (0.5, 0.75, 1.0)
"""Of the training span: where fits end, and the windows that they forecast."""
MAX_WINDOWS = 2000
"""Windows that one fit forecasts."""
MIN_SEASONS = 4
"""Seasons of history below which a fit says nothing about the model."""


def calibrated(
    fitted: FittedProphet, data: SeriesArrays, params: Mapping[str, Any], compute: Compute
) -> tuple[FittedProphet, float]:
    """The model with bands, and its scaled pinball loss on validation windows.

    fitted: curves of the training span with the chosen correction.
    """
    spec = fitted.spec
    signs = signs_of(spec.contract.season, spec.lookback, spec.task.horizon)
    validation = _forecast(fitted, data, np.arange(data.n_series), signs)
    windows = validation
    for begin, end in pairwise(SHARES):
        before = _crossed(fitted, data, (begin, end), signs, params, compute)
        windows = windows + before.recentred(validation)
    season = spec.contract.season
    bands = fit_bands(windows, signs, spec.task.levels, data.n_series, season)
    loss = bands.loss(validation, spec.task.levels)
    return replace(fitted, volatility=bands.volatility, band=bands.band), loss


def _crossed(
    fitted: FittedProphet,
    data: SeriesArrays,
    shares: tuple[float, float],
    signs: tuple[Sign, ...],
    params: Mapping[str, Any],
    compute: Compute,
) -> Scored:
    """Training windows between two shares of it, forecast by curves fitted on what is before."""
    begin, end = ((share * data.train_end).astype(np.int64) for share in shares)
    rows = np.flatnonzero(begin >= MIN_SEASONS * data.contract.season)
    if not len(rows):
        return Scored.none(fitted.spec.task.horizon, len(signs))
    whole = data.take(rows)
    part = replace(whole, train_end=begin[rows], valid_end=end[rows])
    quick = {**params, "solver": "map"}
    # The whole training span says which cycles a series has: those of the model in the bands.
    curves, failed = fit_all(
        whole, part.train_end, fitted.seasonalities, fitted.regressors, quick, compute
    )
    before = replace(fitted, stats=part.stats, curves=stack(curves))
    found = _forecast(before, part, rows, signs)
    return found.at(~np.isin(found.series, rows[failed]))


def _forecast(
    fitted: FittedProphet, data: SeriesArrays, rows: np.ndarray, signs: tuple[Sign, ...]
) -> Scored:
    """Windows of the validation span of `data`, whose series are those `rows` of the model."""
    lookback, horizon = fitted.spec.lookback, fitted.spec.task.horizon
    series, origins = sample_origins(data, "validation", lookback, horizon, MAX_WINDOWS)
    actual = actuals_at(data, series, origins, horizon)
    found = Scored.none(horizon, len(signs))
    for part in chunks(len(series)):
        windows = windows_at(data, series[part], origins[part], lookback, horizon)
        mean = fitted.point(windows)
        where = rows[series[part]], origins[part]
        found = found + scored(windows, data.stats, signs, actual[part], mean, *where)
    return found
