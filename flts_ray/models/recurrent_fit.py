"""The order of the steps of a fit and a refit of recurrent networks.

Design choices: scaling, then the linear map, then the network on top of it, then calibration;
early stopping and calibration use the validation span, never what the network learns from; a
refit goes on from the weights it finds at a fraction of the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from flts_ray.errors import ConfigError
from flts_ray.models.base import Compute, ModelSpec, Progress
from flts_ray.models.memory import Memory
from flts_ray.models.recurrent_columns import ColumnScaling
from flts_ray.models.recurrent_fitted import FittedRecurrent
from flts_ray.models.recurrent_fitted_stack import FittedStack, start_of
from flts_ray.models.recurrent_inputs import fit_columns, training_rows
from flts_ray.models.recurrent_judge import (
    apart_in,
    held_out,
    joined,
    quantiles_of,
    shift_of,
    valid_loss,
)
from flts_ray.models.recurrent_linear import fit_linear, refit_linear
from flts_ray.models.recurrent_net import SegmentNet
from flts_ray.models.recurrent_per_series import held_windows, train_stack
from flts_ray.models.recurrent_settings import Settings
from flts_ray.models.recurrent_shape import Shape
from flts_ray.models.recurrent_stack import Stack
from flts_ray.models.recurrent_train import Schedule, train
from flts_ray.models.recurrent_windows import Origins, WindowSet, window_set
from flts_ray.prepare.arrays import SeriesArrays

REFIT_RATE = 0.3
"""Learning rate of a refit in units of the fit's: the weights are near where they should be."""


class Job(NamedTuple):
    """What is fitted on what; `settings` settled, `origins` of all training windows."""

    data: SeriesArrays
    spec: ModelSpec
    settings: Settings
    origins: Origins
    compute: Compute


class _Start(NamedTuple):
    scaling: ColumnScaling
    shape: Shape
    windows: WindowSet


def fit_global(job: Job) -> Iterator[Progress]:
    """One network for all series; yields after each epoch the best so far."""
    data, settings, compute = job.data, job.settings, job.compute
    scaling, shape, windows = _start(job)
    validation = held_out(data, "validation", windows)
    apart = apart_in(data, "validation", shape)
    judging = validation or held_out(data, "train", windows)
    levels = torch.tensor(shape.levels, dtype=torch.float64, device=windows.y.device)
    net = _fresh(shape, compute.seed).to(windows.y.device)
    ridge = fit_linear(net, windows, job.origins, validation, data.contract.season)
    best, best_loss, best_epoch = None, math.inf, 0
    memory = Memory.of(data, job.spec.task)
    epochs = train(net, windows, job.origins, _schedule(settings, compute.seed))
    for epoch, (train_loss, trained) in enumerate(epochs, start=1):
        quantiles = quantiles_of(trained, judging)
        loss = valid_loss(quantiles, judging, levels)
        if best is None or loss < best_loss:
            shift = np.zeros((shape.horizon, len(shape.levels)), dtype=np.float32)
            if validation:
                shift = shift_of(quantiles, joined(validation), shape, apart)
            best = FittedRecurrent(
                job.spec,
                data.stats,
                _stored(trained),
                scaling,
                shift,
                settings.centre,
                ridge,
                memory,
            )
            best_loss, best_epoch = loss, epoch
        yield Progress(epoch, {"train_loss": train_loss, "valid_loss": loss}, best)
        if epoch - best_epoch >= settings.patience:
            return


def fit_stack(job: Job) -> Iterator[Progress]:
    """A network for every series; yields after each epoch the best of each so far.

    The metrics are means over the series that train and over all that could be judged.
    """
    data, settings, compute = job.data, job.settings, job.compute
    scaling, shape, windows = _start(job)
    net = _fresh(shape, compute.seed).to(windows.y.device)
    validation = held_out(data, "validation", windows)
    ridge = fit_linear(net, windows, job.origins, validation, data.contract.season)
    linear, memory = net.linear.detach().cpu(), Memory.of(data, job.spec.task)
    stack, held = Stack(net), held_windows(data, windows)
    initial = start_of(net).repeat(data.n_series + 1, 1)
    schedule = _schedule(settings, compute.seed)
    epochs = train_stack(
        stack,
        initial,
        windows,
        job.origins,
        held,
        schedule,
        settings.patience,
        compute.threads,
    )
    for number, epoch in enumerate(epochs, start=1):
        shift = np.zeros((shape.horizon, len(shape.levels)), dtype=np.float32)
        if epoch.windows is not None:
            shift = shift_of(epoch.quantiles, epoch.windows, shape)
        metrics = {"train_loss": epoch.train_loss, "valid_loss": epoch.valid_loss}
        weights = epoch.weights.cpu()
        stats, centre = data.stats, settings.centre
        yield Progress(
            number,
            metrics,
            FittedStack(
                job.spec, stats, shape, weights, linear, scaling, shift, centre, ridge, memory
            ),
        )


def refit_global(
    fitted: FittedRecurrent, job: Job, warm_epochs: int | None = None
) -> FittedRecurrent:
    """Go on training on the windows of the job.

    warm_epochs: so many in place of `refit_epochs`, and the linear map stays as it is.
    """
    settings, compute, shape = job.settings, job.compute, fitted.net.shape
    windows = _windows(fitted.scaling, shape, job)
    net = _copied(fitted.net).to(windows.y.device)
    if warm_epochs is None:
        refit_linear(net, windows, job.origins, fitted.ridge, job.data.contract.season)
    again = _again(settings, compute.seed, warm_epochs)
    *_, (_, trained) = train(net, windows, job.origins, again)
    return replace(fitted, net=_stored(trained))


def refit_stack(fitted: FittedStack, job: Job, warm_epochs: int | None = None) -> FittedStack:
    """Go on training every network on the windows of the job; see `refit_global`."""
    settings, compute, shape = job.settings, job.compute, fitted.shape
    windows = _windows(fitted.scaling, shape, job)
    device = windows.y.device
    net = _fresh(shape, 0).to(device)
    net.linear.data.copy_(fitted.linear)
    if warm_epochs is None:
        refit_linear(net, windows, job.origins, fitted.ridge, job.data.contract.season)
    again = _again(settings, compute.seed, warm_epochs)
    *_, last = train_stack(
        Stack(net),
        fitted.weights.to(device),
        windows,
        job.origins,
        None,
        again,
        again.epochs,
        compute.threads,
    )
    return replace(fitted, weights=last.weights.cpu(), linear=net.linear.detach().cpu())


def _start(job: Job) -> _Start:
    rows = training_rows(job.data)
    settings = job.settings
    # In a network of one series a label would be a constant.
    labels = settings.group == "global"
    scaling = fit_columns(
        job.data, rows, job.spec.lookback, labels, settings.known_future, settings.past
    )
    marked = not job.data.observed[rows].all()
    shape = _shape(job.spec, job.settings, scaling, marked)
    return _Start(scaling, shape, _windows(scaling, shape, job))


def _windows(scaling: ColumnScaling, shape: Shape, job: Job) -> WindowSet:
    # Blocks of small networks run side by side; threads within one product would only wait.
    torch.set_num_threads(1 if job.settings.group == "per_series" else job.compute.threads)
    return window_set(job.data, scaling, shape, job.settings.centre, _device(job.compute.device))


def _again(settings: Settings, seed: int, warm_epochs: int | None) -> Schedule:
    schedule = _schedule(settings, seed)
    epochs = settings.refit_epochs if warm_epochs is None else warm_epochs
    return replace(schedule, epochs=epochs, lr=REFIT_RATE * schedule.lr)


def _shape(spec: ModelSpec, settings: Settings, scaling: ColumnScaling, marked: bool) -> Shape:
    contract = spec.contract
    assert settings.segment and settings.hidden and settings.dropout is not None  # settled
    return Shape(
        cell=spec.kind,
        lookback=spec.lookback,
        segment=settings.segment,
        horizon=spec.task.horizon,
        levels=tuple(spec.task.levels),
        marked=int(marked),
        seen=(len(contract.past) if scaling.with_past else 0) + len(scaling.events),
        ahead=len(scaling.cycles) + len(scaling.events),
        static=len(contract.static),
        categories=scaling.categories,
        hidden=settings.hidden,
        layers=settings.layers,
        dropout=settings.dropout,
        lags=min(spec.lookback, settings.max_lags) if settings.skip == "linear" else 0,
    )


def _schedule(settings: Settings, seed: int) -> Schedule:
    shared = set(Schedule.__dataclass_fields__) & set(Settings.model_fields)
    return Schedule(seed=seed, **settings.model_dump(include=shared))


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"tune.device {asked!r}: torch sees no CUDA device here; use cpu or auto, or give "
            "each trial one with tune.gpus_per_trial"
        )
    if asked.startswith("cuda:") and int(asked[5:]) >= torch.cuda.device_count():
        raise ConfigError(
            f"tune.device {asked!r}: torch sees {torch.cuda.device_count()} CUDA devices here, "
            "numbered from 0; where Ray gives a trial one, that is cuda"
        )
    return asked


def _fresh(shape: Shape, seed: int) -> SegmentNet:
    """A network with weights drawn from the seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # that of the processor alone
        return SegmentNet(shape)


def _copied(net: SegmentNet) -> SegmentNet:
    """A network of its own in float32 on the CPU, with the same weights."""
    copied = _fresh(net.shape, 0)
    copied.load_state_dict({name: w.detach().cpu() for name, w in net.state_dict().items()})
    return copied


def _stored(net: SegmentNet) -> SegmentNet:
    """A copy to forecast with, on the CPU, that further training does not touch."""
    return _copied(net).double().eval()
