"""GRU and LSTM forecasters: one network for all series, the whole horizon at once.

Design choices: global across series, so a short series borrows from the others and a series
never seen before can be forecast; early stopping and calibration use the validation span, whose
windows are few enough that looking costs less than an epoch; every epoch yields a model that can
be stored, so a fit may be stopped at any time. Architecture: `recurrent_net`; training:
`recurrent_train`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

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
from flts_ray.models.recurrent_fitted import FittedRecurrent, restored
from flts_ray.models.recurrent_inputs import ColumnScaling, fit_columns, training_rows
from flts_ray.models.recurrent_judge import held_out, joined, quantiles_of, shift_of, valid_loss
from flts_ray.models.recurrent_linear import fit_linear, refit_linear
from flts_ray.models.recurrent_net import SegmentNet, Shape
from flts_ray.models.recurrent_settings import Settings, geometry, no_window, settings_of
from flts_ray.models.recurrent_train import Schedule, train
from flts_ray.models.recurrent_windows import Origins, window_set
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats, origins_in, widened

REFIT_RATE = 0.3
"""Learning rate of a refit in units of the fit's: the weights are near where they should be."""


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
        lookback, segment = geometry(self.kind, settings, data, task.horizon)
        origins = origins_in(data, "train", lookback, task.horizon)
        if not len(origins[0]):
            raise no_window(self.kind, lookback, task.horizon, data)
        chosen = settings.model_copy(update={"lookback": lookback, "segment": segment})
        spec = ModelSpec(self.kind, task, lookback, data.contract, chosen.model_dump())
        return _epochs(data, spec, chosen, origins, compute)

    def refit(self, fitted: Fitted, data: SeriesArrays, compute: Compute) -> Fitted:
        """Go on training on the windows of both spans; see `Forecaster.refit`.

        The linear map is solved again with the penalty it has; `refit_epochs` follow, at a
        fraction of the learning rate that falls to zero, with averaged weights as in `fit`.
        Without epochs the model stays as it is.
        """
        assert isinstance(fitted, FittedRecurrent)
        check_same_set(fitted, data)
        settings = settings_of(self.kind, fitted.spec.params)
        return _trained_on(fitted, data, settings, compute) if settings.refit_epochs else fitted

    def restore(
        self,
        spec: ModelSpec,
        stats: SeriesStats,
        values: dict[str, Any],
        arrays: dict[str, np.ndarray],
    ) -> FittedRecurrent:
        """Rebuild a fitted model. Raises ArtifactError for any name, shape or type off."""
        return restored(spec, stats, values, arrays)


class GRU(_Recurrent):
    """Gated recurrent units (Cho et al. 2014, arXiv 1406.1078)."""

    kind = "gru"


class LSTM(_Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997)."""

    kind = "lstm"


def _epochs(
    data: SeriesArrays, spec: ModelSpec, settings: Settings, origins: Origins, compute: Compute
) -> Iterator[Progress]:
    torch.set_num_threads(compute.threads)
    device, season = _device(compute.device), data.contract.season
    rows = training_rows(data)
    scaling = fit_columns(data, rows, spec.lookback)
    shape = _shape(spec, settings, scaling, marked=not data.observed[rows].all())
    windows = window_set(data, scaling, shape, settings.centre, device)
    validation = held_out(data, "validation", windows)
    judging = validation or held_out(data, "train", windows)
    levels = torch.tensor(shape.levels, dtype=torch.float64, device=device)
    net = _fresh(shape, compute.seed).to(device)
    ridge = fit_linear(net, windows, origins, validation, season)
    best, best_loss, best_epoch = None, math.inf, 0
    epochs = train(net, windows, origins, _schedule(settings, len(origins[0]), compute.seed))
    for epoch, (train_loss, trained) in enumerate(epochs, start=1):
        quantiles = quantiles_of(trained, judging)
        loss = valid_loss(quantiles, judging, levels)
        if best is None or loss < best_loss:
            shift = np.zeros((shape.horizon, len(shape.levels)), dtype=np.float32)
            if validation:
                shift = shift_of(quantiles, joined(validation), shape)
            stored = _stored(trained)
            best = FittedRecurrent(spec, data.stats, stored, scaling, shift, settings.centre, ridge)
            best_loss, best_epoch = loss, epoch
        yield Progress(epoch, {"train_loss": train_loss, "valid_loss": loss}, best)
        if epoch - best_epoch >= settings.patience:
            return


def _trained_on(
    fitted: FittedRecurrent, data: SeriesArrays, settings: Settings, compute: Compute
) -> FittedRecurrent:
    torch.set_num_threads(compute.threads)
    device, shape, whole = _device(compute.device), fitted.net.shape, widened(data)
    origins = origins_in(whole, "train", shape.lookback, shape.horizon)
    windows = window_set(whole, fitted.scaling, shape, fitted.centre, device)
    net = _copied(fitted.net).to(device)
    refit_linear(net, windows, origins, fitted.ridge, data.contract.season)
    schedule = replace(
        _schedule(settings, len(origins[0]), compute.seed),
        epochs=settings.refit_epochs,
        lr=REFIT_RATE * settings.lr,
    )
    *_, (_, trained) = train(net, windows, origins, schedule)
    return replace(fitted, net=_stored(trained))


def _shape(spec: ModelSpec, settings: Settings, scaling: ColumnScaling, marked: bool) -> Shape:
    contract = spec.contract
    assert settings.segment is not None  # `geometry` chose one
    return Shape(
        cell=spec.kind,
        lookback=spec.lookback,
        segment=settings.segment,
        horizon=spec.task.horizon,
        levels=tuple(spec.task.levels),
        marked=int(marked),
        seen=len(contract.past) + len(scaling.events),
        ahead=len(scaling.cycles) + len(scaling.events),
        static=len(contract.static),
        hidden=settings.hidden,
        layers=settings.layers,
        dropout=settings.dropout,
        lags=min(spec.lookback, settings.max_lags) if settings.skip == "linear" else 0,
    )


def _schedule(settings: Settings, windows: int, seed: int) -> Schedule:
    shared = set(Schedule.__dataclass_fields__) & set(Settings.model_fields)
    values = settings.model_dump(include=shared)
    return Schedule(**{**values, "windows_per_epoch": settings.drawn(windows), "seed": seed})


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {asked!r}: this machine offers no CUDA device; use cpu or auto")
    return asked


def _fresh(shape: Shape, seed: int) -> SegmentNet:
    """A network with weights drawn from the seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SegmentNet(shape)


def _copied(net: SegmentNet) -> SegmentNet:
    """A network of its own in float32 on the CPU, with the same weights."""
    copied = _fresh(net.shape, 0)
    copied.load_state_dict({name: w.detach().cpu() for name, w in net.state_dict().items()})
    return copied


def _stored(net: SegmentNet) -> SegmentNet:
    """A copy to forecast with, on the CPU, that further training does not touch."""
    return _copied(net).double().eval()
