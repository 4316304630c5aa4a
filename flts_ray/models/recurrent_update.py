"""A trained network that goes on learning from rows that came since.

Design choices: a few epochs at the rate of a refit from the weights it has (warm start), on the
windows of the new rows mixed with a bounded number of the latest before them, so that the network
neither pays for its history again nor forgets it over one odd week; the linear map stays, because
a few weeks alone would solve it badly; the windows are scored first, by the network as it was.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from flts_ray.models.base import Compute
from flts_ray.models.news import Learned, News, learned
from flts_ray.models.recurrent_fit import Job, refit_global, refit_stack
from flts_ray.models.recurrent_fitted import FittedRecurrent
from flts_ray.models.recurrent_fitted_stack import FittedStack
from flts_ray.models.recurrent_readings import windows_for
from flts_ray.models.recurrent_settings import Settings
from flts_ray.prepare.arrays import SeriesArrays, Windows, origins_in, widened

WARM_EPOCHS = 2
RECENT_WINDOWS = 2048
"""Most windows of all series together, one a series at least, that are older than the news."""


def updated(
    fitted: FittedRecurrent | FittedStack, news: News, settings: Settings, compute: Compute
) -> FittedRecurrent | FittedStack:
    """The network after the news; see `Updater.update`."""
    spec = fitted.spec
    found = learned(fitted, news, partial(served, fitted), bands=compute.bands)
    wider = _grown(fitted, news) if isinstance(fitted, FittedStack) else fitted
    told = replace(banded(wider, found), stats=news.stats)
    data = recent(news, spec.lookback, spec.task.horizon)
    origins = origins_in(data, "train", spec.lookback, spec.task.horizon)
    if not len(origins[0]):  # every new window has a long gap
        return told
    job = Job(data, spec, settings, origins, compute)
    if isinstance(told, FittedStack):
        return refit_stack(told, job, WARM_EPOCHS)
    return refit_global(told, job, WARM_EPOCHS)


def banded(fitted: FittedRecurrent | FittedStack, found: Learned) -> FittedRecurrent | FittedStack:
    """The network with the bands it has learned."""
    shift = (fitted.shift + found.step.by).astype(np.float32)
    return replace(fitted, memory=found.memory, shift=shift)


def served(
    fitted: FittedRecurrent | FittedStack, windows: Windows
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles and the scale of their bands; see `recent_scores.Ask`."""
    found = fitted.banded(windows_for(fitted.spec, windows))
    return found.quantiles, found.scale


def recent(news: News, lookback: int, horizon: int) -> SeriesArrays:
    """The new rows and as many before them as the windows to be mixed need, all to learn from."""
    share = max(1, RECENT_WINDOWS // max(1, int((news.since < news.until).sum())))
    data, _ = news.tail(lookback + horizon - 1 + share)
    return widened(data)


def _grown(fitted: FittedStack, news: News) -> FittedStack:
    """With rows for new series, which start as all networks did."""
    start, known = fitted.weights[-1:], fitted.weights[: news.known]
    new = start.repeat(len(news.stats.ids) - news.known + 1, 1)
    return replace(fitted, weights=torch.cat([known, new]))
