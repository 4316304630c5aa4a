"""The linear map that a recurrent network starts from.

Design choices: a direct ridge regression of every step of the horizon on the normalised window
is solved before the first epoch and then held fixed, so that a network trained for few epochs is
never far behind a linear model; what is uncertain is shrunk not to zero but to repeating the
season, the older a lag the more (Doan, Litterman & Sims 1984), and there is no intercept, because
a drift of the training span need not go on; only sums of products are kept, so memory does not
grow with the number of windows; the setting is the one that forecasts validation best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from flts_ray.models.recurrent_net import SegmentNet
from flts_ray.models.recurrent_train import MAX_WEIGHT
from flts_ray.models.recurrent_windows import Batch, Origins, WindowSet
from flts_ray.models.season import DECAYS, POWERS, seasonal_prior

LINEAR_WINDOWS = 16384
LINEAR_BLOCK = 1024
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


class Shrinkage(NamedTuple):
    """One setting of the ridge regression.

    power: the penalty grows with the age of a lag to this power; decay: weight of a cycle
    relative to the next newer one in what the map is drawn to, 0: to the centre of the window;
    penalty: in units of the mean square of the lags.
    """

    power: float
    decay: float
    penalty: float


UNCHOSEN = Shrinkage(1.0, 0.9, 1e-1)


def fit_linear(
    net: SegmentNet,
    windows: WindowSet,
    origins: Origins,
    validation: list[Batch],
    season: int,
) -> Shrinkage:
    """Solve the network's linear map by ridge regression (Hoerl & Kennard 1970) and fix it.

    origins: training windows; validation: windows that choose the setting, none: UNCHOSEN.
    Windows count by their scale, as they do in the loss. Also starts the bands at the size of
    the error left.
    """
    sums = _sums(net, windows, origins)
    chosen = (
        _best(sums, net.shape.lags, validation, season)
        if validation and net.shape.lags
        else UNCHOSEN
    )
    best = _solved(sums, chosen, season)
    net.linear.data.copy_(best.T)
    left = sums.power - 2.0 * (best * sums.cross).sum(0) + (best * (sums.gram @ best)).sum(0)
    variance = max(float(left.median()), 0.0) / max(sums.weights, 1e-12)
    net.start_at(max(math.sqrt(variance), 1e-3))
    return chosen


def refit_linear(
    net: SegmentNet, windows: WindowSet, origins: Origins, setting: Shrinkage, season: int
) -> None:
    """Solve the linear map again on other windows; the bands stay as they are."""
    net.linear.data.copy_(_solved(_sums(net, windows, origins), setting, season).T)


def prior_of(lags: int, horizon: int, season: int, decay: float) -> torch.Tensor:
    """Coefficients that repeat the season: float64 [lags, H], rows from the oldest lag."""
    return torch.from_numpy(seasonal_prior(lags, horizon, season, decay)[::-1].copy())


class _Sums(NamedTuple):
    """Weighted sums of products over windows: gram [lags, lags], cross [lags, H], power
    (squared targets) [H], and of the weights."""

    gram: torch.Tensor
    cross: torch.Tensor
    power: torch.Tensor
    weights: float


def _sums(net: SegmentNet, windows: WindowSet, origins: Origins) -> _Sums:
    shape, device = net.shape, windows.y.device
    series, starts = windows.starts(origins)
    stride = -(-len(starts) // LINEAR_WINDOWS)
    gram = torch.zeros(shape.lags, shape.lags, dtype=torch.float64, device=device)
    cross = torch.zeros(shape.lags, shape.horizon, dtype=torch.float64, device=device)
    power = torch.zeros(shape.horizon, dtype=torch.float64, device=device)
    weights = 0.0
    for chosen in torch.arange(0, len(starts), stride, device=device).split(LINEAR_BLOCK):
        batch = windows.batch(series[chosen], starts[chosen])
        x = _regressors(batch, shape.lags)
        weight = batch.scale.double().clamp_max(MAX_WEIGHT)
        target = batch.target.double()
        gram += x.T @ (weight * x)
        cross += x.T @ (weight * target)
        power += (weight * target.square()).sum(0)
        weights += float(weight.sum())
    return _Sums(gram, cross, power, weights)


def _regressors(batch: Batch, lags: int) -> torch.Tensor:
    """The last `lags` steps: float64 [n, lags]."""
    z = batch.inputs.z
    return z[:, z.shape[1] - lags :].double()


def _solved(sums: _Sums, setting: Shrinkage, season: int) -> torch.Tensor:
    """Coefficients [lags, H] of one setting."""
    lags, horizon = sums.cross.shape
    if not lags:
        return sums.cross
    prior = prior_of(lags, horizon, season, setting.decay).to(sums.gram.device)
    return prior + _correction(sums, setting.power, setting.penalty, prior)


def _correction(sums: _Sums, power: float, penalty: float, prior: torch.Tensor) -> torch.Tensor:
    """What the data add to the priors [..., lags, H]."""
    lags = len(sums.gram)
    age = torch.arange(lags, 0, -1, dtype=torch.float64, device=sums.gram.device) ** power
    strength = penalty * age / age.mean() * sums.gram.diagonal().mean() + 1e-9
    factor = torch.linalg.cholesky(sums.gram + torch.diag(strength))
    return torch.cholesky_solve(sums.cross - sums.gram @ prior, factor)


def _best(sums: _Sums, lags: int, validation: list[Batch], season: int) -> Shrinkage:
    """The setting with the smallest weighted squared error of the validation windows."""
    x = torch.cat([_regressors(batch, lags) for batch in validation])
    target = torch.cat([batch.target for batch in validation]).double()
    scale = torch.cat([batch.scale for batch in validation]).double().clamp_max(MAX_WEIGHT)
    weight = scale * torch.cat([batch.counted for batch in validation])
    tried = (
        (float((weight * (target - forecast).square()).sum()), setting)
        for setting, forecast in _forecasts(sums, x, season)
    )
    return min(tried)[1]


def _forecasts(
    sums: _Sums, x: torch.Tensor, season: int
) -> Iterator[tuple[Shrinkage, torch.Tensor]]:
    """What every setting forecasts for the windows x [n, lags]: [n, H]."""
    lags, horizon = sums.cross.shape
    priors = torch.stack([prior_of(lags, horizon, season, decay) for decay in DECAYS])
    priors = priors.to(x.device)
    for power in POWERS:
        for penalty in PENALTIES:
            maps = priors + _correction(sums, power, penalty, priors)
            for decay, each in zip(DECAYS, maps, strict=True):
                yield Shrinkage(power, decay, penalty), x @ each
