"""The linear map that a recurrent network starts from.

Design choices: a direct ridge regression of every step of the horizon on the normalised window
is solved before the first epoch and then held fixed, so that a network trained for few epochs is
never far behind a linear model; only sums of products are kept, so memory does not grow with the
number of windows; the penalty is the one that forecasts the validation span best.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from flts_ray.models.recurrent_inputs import ColumnScaling, inputs_of
from flts_ray.models.recurrent_net import SegmentNet
from flts_ray.models.recurrent_train import MAX_WEIGHT, TrainingSet
from flts_ray.prepare.arrays import Windows

LINEAR_WINDOWS = 8192
LINEAR_BLOCK = 1024
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
DEFAULT_PENALTY = 1e-1


def fit_linear(
    net: SegmentNet,
    windows: TrainingSet,
    validation: tuple[Windows, np.ndarray] | None,
    scaling: ColumnScaling,
    seed: int,
) -> float:
    """Solve the network's linear map by ridge regression (Hoerl & Kennard 1970) and fix it.

    validation: windows and actual values [n, H] that choose the penalty. Windows count by
    their scale, as they do in the loss. Also starts the bands at the size of the error left.
    Returns the penalty.
    """
    sums = _sums(net, windows, seed)
    maps = [_ridge(sums.gram, sums.cross, penalty) for penalty in PENALTIES]
    chosen = _best_penalty(maps, net.shape.lags, validation, scaling, windows.centre)
    best = maps[chosen]
    _put(net, best)
    left = sums.power - 2.0 * (best * sums.cross).sum(0) + (best * (sums.gram @ best)).sum(0)
    variance = max(float(left.median()), 0.0) / max(sums.weights, 1e-12)
    net.start_at(max(math.sqrt(variance), 1e-3))
    return PENALTIES[chosen]


def refit_linear(net: SegmentNet, windows: TrainingSet, penalty: float, seed: int) -> None:
    """Solve the linear map again on other windows; the bands stay as they are."""
    sums = _sums(net, windows, seed)
    _put(net, _ridge(sums.gram, sums.cross, penalty))


class _Sums(NamedTuple):
    """Weighted sums of products over windows: gram [lags + 1, lags + 1], cross [lags + 1, H],
    power (squared targets) [H], and of the weights."""

    gram: torch.Tensor
    cross: torch.Tensor
    power: torch.Tensor
    weights: float


def _sums(net: SegmentNet, windows: TrainingSet, seed: int) -> _Sums:
    shape, device = net.shape, windows.y.device
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    gram = torch.zeros(shape.lags + 1, shape.lags + 1, dtype=torch.float64, device=device)
    cross = torch.zeros(shape.lags + 1, shape.horizon, dtype=torch.float64, device=device)
    power = torch.zeros(shape.horizon, dtype=torch.float64, device=device)
    weights = 0.0
    for chosen in order[:LINEAR_WINDOWS].to(device).split(LINEAR_BLOCK):
        batch = windows.batch(chosen)
        x = _regressors(batch.inputs.z, shape.lags)
        weight = batch.scale.double().clamp_max(MAX_WEIGHT)
        target = batch.target.double()
        gram += x.T @ (weight * x)
        cross += x.T @ (weight * target)
        power += (weight * target.square()).sum(0)
        weights += float(weight.sum())
    return _Sums(gram, cross, power, weights)


def _put(net: SegmentNet, linear: torch.Tensor) -> None:
    net.linear.data.copy_(linear[:-1].T)
    net.offset.data.copy_(linear[-1])


def _regressors(z: torch.Tensor, lags: int) -> torch.Tensor:
    """The last `lags` steps and a one: float64 [n, lags + 1]."""
    return torch.cat([z[:, z.shape[1] - lags :], z.new_ones(len(z), 1)], dim=1).double()


def _ridge(gram: torch.Tensor, cross: torch.Tensor, penalty: float) -> torch.Tensor:
    """Coefficients [lags + 1, H]; the penalty is in units of the mean square of the lags."""
    strength = torch.full_like(gram.diagonal(), 1e-9)
    strength[:-1] += penalty * gram.diagonal()[:-1].sum() / max(len(gram) - 1, 1)
    return torch.linalg.solve(gram + torch.diag(strength), cross)


def _best_penalty(
    maps: list[torch.Tensor],
    lags: int,
    validation: tuple[Windows, np.ndarray] | None,
    scaling: ColumnScaling,
    centre: str,
) -> int:
    if validation is None:
        return PENALTIES.index(DEFAULT_PENALTY)
    inputs, scale = inputs_of(validation[0], scaling, centre)
    x = _regressors(inputs.z, lags)
    target = scale.forward(torch.from_numpy(validation[1]))
    own = torch.from_numpy(validation[0].scale)[:, None]
    weight = (scale.scale / own).clamp_max(MAX_WEIGHT)
    errors = [float((weight * (target - x @ each.cpu()).square()).nanmean()) for each in maps]
    return int(np.argmin(errors))
