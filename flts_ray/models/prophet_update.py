"""A fitted Prophet that follows its series without another fit.

Design choices: the curves and their changepoints stay, because they say what a series is like over
years; what it has missed of late is read from each window anyway, so what there is to learn is how
much of that to add: the shares of the new windows are averaged with the old ones by the windows
that stand behind each, and the bands follow the scores.
"""

from __future__ import annotations

from dataclasses import replace

from flts_ray.models.calibrate import sample_origins, series_scale
from flts_ray.models.follow import with_bands
from flts_ray.models.memory import needed_memory
from flts_ray.models.news import News, learned
from flts_ray.models.prophet_fitted import FittedProphet
from flts_ray.models.prophet_level import Correction, fit_correction
from flts_ray.prepare.arrays import actuals_at, windows_at

MAX_WINDOWS = 2000


def updated(fitted: FittedProphet, news: News, *, bands: bool = True) -> FittedProphet:
    """The same curves with a correction and bands that know the new windows."""
    found = learned(fitted, news, fitted.served, own=True, bands=bands)
    memory, more = found.memory, found.memory.count - needed_memory(fitted).count
    return replace(
        with_bands(fitted, found),
        stats=news.stats,
        correction=_followed(fitted, news, more / (memory.base + memory.count + 1)),
    )


def _followed(fitted: FittedProphet, news: News, share: float) -> Correction:
    """The correction moved by `share` to the one that the new windows ask for."""
    lookback, horizon, old = fitted.spec.lookback, fitted.spec.task.horizon, fitted.correction
    data, _ = news.tail(lookback)
    series, origins = sample_origins(data, "validation", lookback, horizon, MAX_WINDOWS)
    if not len(series):
        return old
    windows = windows_at(data, series, origins, lookback, horizon)
    missed, ahead = fitted.missed(windows)
    scale = series_scale(windows, data.stats)
    error = actuals_at(data, series, origins, horizon) - ahead
    tried = [(old.window, old.cycles, old.season)]
    new, _ = fit_correction(missed, error, scale, tried)
    return replace(
        old,
        level=(1 - share) * old.level + share * new.level,
        phase=(1 - share) * old.phase + share * new.phase,
    )
