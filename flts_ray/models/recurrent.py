"""GRU and LSTM forecasters: the whole horizon at once, one network for all series or one each.

Design choices: global unless asked otherwise, because a short series then borrows from the others
and a series never seen before is forecast as well as any; every epoch yields a model that can be
stored, so a fit may be stopped at any time. Architecture: `recurrent_net`; training:
`recurrent_train` and `recurrent_per_series`; the order of the steps: `recurrent_fit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from flts_ray.errors import ConfigError
from flts_ray.models.base import (
    Compute,
    Fitted,
    ModelSpec,
    Progress,
    Task,
    check_same_set,
    resolve_params,
)
from flts_ray.models.follow import followed
from flts_ray.models.memory import split_memory
from flts_ray.models.news import news_of
from flts_ray.models.recurrent_fit import Job, fit_global, fit_stack, refit_global, refit_stack
from flts_ray.models.recurrent_fitted import FittedRecurrent, restored
from flts_ray.models.recurrent_fitted_stack import FittedStack, restored_stack
from flts_ray.models.recurrent_settings import Settings, geometry, no_window, settings_of
from flts_ray.models.recurrent_update import banded, served, updated
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, origins_in, widened
from flts_ray.prepare.covariates import check_future


class _Recurrent:
    """A forecaster whose recurrent layer is `kind`."""

    kind: str
    iterative: bool = True
    defaults: Mapping[str, Any] = Settings().model_dump()

    def fit(
        self, data: SeriesArrays, task: Task, params: Mapping[str, Any], compute: Compute
    ) -> Iterator[Progress]:
        """Train; yields after each epoch the best model so far.

        Metrics: `train_loss`, `valid_loss`: scaled pinball losses of an epoch's training windows
        and of validation windows. Where no validation window fits, training windows stand in
        for them and nothing is calibrated. Raises DataError when no training window fits.
        """
        settings = settings_of(self.kind, resolve_params(self, params))
        if 0.5 not in task.levels:
            raise ConfigError(f"task.quantiles: {self.kind} needs the median; add 0.5")
        check_future(data)
        lookback, segment = geometry(self.kind, settings, data, task.horizon)
        origins = origins_in(data, "train", lookback, task.horizon)
        if not len(origins[0]):
            raise no_window(self.kind, lookback, task.horizon, data)
        chosen = settings.settled(lookback, segment)
        spec = ModelSpec(self.kind, task, lookback, data.contract, chosen.model_dump())
        job = Job(data, spec, chosen, origins, compute)
        return fit_stack(job) if chosen.group == "per_series" else fit_global(job)

    def refit(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> Fitted:
        """Go on training on the windows of both spans; see `Forecaster.refit`.

        The linear map is solved again with the penalty it has; `refit_epochs` follow, at a
        fraction of the learning rate that falls to zero, with averaged weights as in `fit`.
        Without epochs the model stays as it is.
        """
        assert isinstance(fitted, FittedRecurrent | FittedStack)
        check_same_set(fitted, data)
        settings = settings_of(self.kind, fitted.spec.params)
        if not settings.refit_epochs:
            return fitted
        whole, spec = widened(data), fitted.spec
        origins = origins_in(whole, "train", spec.lookback, spec.task.horizon)
        job = Job(whole, spec, settings, origins, compute)
        if isinstance(fitted, FittedStack):
            return refit_stack(fitted, job)
        return refit_global(fitted, job)

    def update(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> Fitted:
        """Train for a little longer, on new windows among recent ones; see `Updater.update`.

        The linear map stays. With a network for every series, a new series starts as all did.
        """
        assert isinstance(fitted, FittedRecurrent | FittedStack)
        news = news_of(fitted, data)
        if news is None:
            return fitted
        return updated(fitted, news, settings_of(self.kind, fitted.spec.params), compute)

    def follow(self, fitted: Fitted, data: SeriesArrays) -> Fitted:
        """See `Follower.follow`."""
        assert isinstance(fitted, FittedRecurrent | FittedStack)
        return followed(fitted, data, partial(served, fitted), banded)

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> Fitted:
        """Rebuild a fitted model. Raises ArtifactError for any name, shape or type off."""
        arrays, memory = split_memory(arrays, stats, spec.task)
        if values.get("series"):
            return replace(restored_stack(spec, stats, values, arrays), memory=memory)
        return replace(restored(spec, stats, values, arrays), memory=memory)


class GRU(_Recurrent):
    """Gated recurrent units (Cho et al. 2014, arXiv 1406.1078)."""

    kind = "gru"


class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997)."""

    kind = "lstm"
