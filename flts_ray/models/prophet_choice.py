"""What the validation span chooses of a Prophet: its covariates and its correction.

Design choices: covariates are one choice for all series, because a single series' validation span
is a few weeks; a sample of series tells it, so thousands cost little more than one fit each; marks
are what people expect to matter, so other sets must be clearly better; all sets are judged on the
same windows, each with the correction that suits it best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flts_ray.errors import DataError
from flts_ray.models.base import Compute, ModelSpec, Task
from flts_ray.models.calibrate import ResidualQuantiles, sample_origins, series_scale
from flts_ray.models.prophet_curve import Curves, Seasonality
from flts_ray.models.prophet_fit import fit_all, stack
from flts_ray.models.prophet_fitted import FittedProphet
from flts_ray.models.prophet_level import Correction, candidates, default_windows, fit_correction
from flts_ray.models.prophet_regressors import SETS, Regressors, regressors_of
from flts_ray.models.volatility import Volatility
from flts_ray.prepare.arrays import (
    SeriesArrays,
    Windows,
    actuals_at,
    origins_between,
    usable_windows,
    windows_at,
)

MAX_VALIDATION_WINDOWS = 2000
MAX_JUDGED = 200
"""Series on which the sets of covariates are compared."""
MARGIN = 0.005
"""Share of the error by which another set must be better than the usual one."""
KEPT_WINDOWS = 0.9
"""Share of the validation windows that a longer lookback must keep."""


@dataclass(frozen=True)
class Judged:
    """Validation windows, what happened after them, and the corrections that they can hold.

    pairs: window and cycles; see `prophet_level.candidates`.
    """

    windows: Windows
    actual: np.ndarray
    pairs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, data: SeriesArrays, task: Task, params: Mapping[str, Any], reach: int) -> Judged:
        """reach: steps that covariates need before the first residual.

        Raises DataError without a validation window.
        """
        season = data.contract.season
        tried = tuple(params["level_windows"] or default_windows(season))
        longest = max(int(np.median(data.train_end)) // 4, min(tried))
        back = {pair: max(pair[0], pair[1] * season) for pair in candidates(tried, season, longest)}
        series, origins, lookback = validation_windows(
            data, task.horizon, [reach + one for one in back.values()]
        )
        return cls(
            windows_at(data, series, origins, lookback, task.horizon),
            actuals_at(data, series, origins, task.horizon),
            tuple(pair for pair, one in back.items() if reach + one <= lookback),
        )


def validation_windows(
    data: SeriesArrays, horizon: int, lookbacks: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Validation windows, and the longest lookback that costs few of them and no series.

    Where gaps are many, a long lookback would judge by the few windows that have none.
    """
    shortest, *longer = sorted({*lookbacks})
    series, origins = sample_origins(data, "validation", shortest, horizon, MAX_VALIDATION_WINDOWS)
    if not len(series):
        raise DataError(
            f"prophet: no validation window of {shortest} + {horizon} steps without gaps; "
            "shorten task.horizon or enlarge split.validation",
            field="task.horizon",
        )
    base, whole, kept = len(series), len(np.unique(series)), shortest
    for lookback in longer:
        first, _ = origins_between(data, "validation", lookback, horizon)
        fits = origins >= first[series]
        at = series[fits], origins[fits]
        fits[fits] = usable_windows(data, "validation", *at, lookback, horizon)
        if fits.sum() < KEPT_WINDOWS * base or len(np.unique(series[fits])) < whole:
            break
        series, origins, kept = series[fits], origins[fits], lookback
    return series, origins, kept


def corrected(fitted: FittedProphet, judged: Judged) -> tuple[FittedProphet, float]:
    """The model with the correction that validation prefers, and its mean scaled error there."""
    missed, ahead = fitted.missed(judged.windows)
    scale, season = series_scale(judged.windows, fitted.stats), fitted.spec.contract.season
    error = judged.actual - ahead
    tried = [(window, cycles, season) for window, cycles in judged.pairs]
    correction, _ = fit_correction(missed, error, scale, tried)
    left = np.abs(error - correction.apply(missed)) / scale[:, None]
    spec = replace(fitted.spec, lookback=correction.lookback + fitted.regressors.reach)
    return replace(fitted, spec=spec, correction=correction), float(np.nanmean(left))


def uncorrected(
    data: SeriesArrays,
    task: Task,
    params: Mapping[str, Any],
    seasonalities: tuple[Seasonality, ...],
    regressors: Regressors,
    curves: Curves,
) -> FittedProphet:
    """A model that is its curves, without correction and bands."""
    none = Correction(1, 0, data.contract.season, np.zeros(task.horizon), np.zeros(task.horizon))
    no_band = ResidualQuantiles(np.zeros((0, 0)), np.zeros((0, 0, 0)), np.zeros(0, np.int64))
    spec = ModelSpec("prophet", task, 1 + regressors.reach, data.contract, {**params}, True)
    flat = Volatility.none()
    return FittedProphet(spec, data.stats, seasonalities, regressors, curves, none, flat, no_band)


def chosen_regressors(
    data: SeriesArrays,
    task: Task,
    params: Mapping[str, Any],
    seasonalities: tuple[Seasonality, ...],
    compute: Compute,
) -> tuple[str, Regressors]:
    """The set of covariates that validation prefers on a sample of series, and its name.

    Reads nothing of the test span. Raises DataError without a validation window.
    """
    sets = _different(data, task)
    if len(sets) == 1:
        return next(iter(sets.items()))
    rows = _sampled(data, task)
    part = data.take(rows)
    judged = Judged.of(part, task, params, max(one.reach for one in sets.values()))
    loss = {}
    for word, regressors in sets.items():
        fits, _ = fit_all(part, part.train_end, seasonalities, regressors, params, compute)
        plain = uncorrected(part, task, params, seasonalities, regressors, stack(fits))
        loss[word] = corrected(plain, judged)[1]
    word = preferred(loss)
    return word, sets[word]


def preferred(loss: Mapping[str, float]) -> str:
    """The set with the least error; the usual one unless another is better by a margin.

    loss: by name, from the fewest columns to the most; the usual set is that of marks, or none.
    """
    usual = "events" if "events" in loss else next(iter(loss))
    return min(loss, key=lambda word: loss[word] * (1.0 - MARGIN * (word == usual)))


def _different(data: SeriesArrays, task: Task) -> dict[str, Regressors]:
    """The sets by name, without those that add nothing or reach back beyond many gaps."""
    sets: dict[str, Regressors] = {}
    for word in SETS:
        one = regressors_of(data, word)
        needed = 1 + one.reach
        if one in sets.values() or validation_windows(data, task.horizon, [1, needed])[2] < needed:
            continue
        sets[word] = one
    return sets


def _sampled(data: SeriesArrays, task: Task) -> np.ndarray:
    """Rows of MAX_JUDGED series at most that have validation windows, evenly spread."""
    if data.n_series <= MAX_JUDGED:
        return np.arange(data.n_series)
    series, _ = sample_origins(data, "validation", 1, task.horizon, MAX_VALIDATION_WINDOWS)
    rows = np.unique(series)
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_JUDGED)).round().astype(np.int64)]
