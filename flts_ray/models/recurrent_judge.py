"""How good a network in training is, and what calibrates it: windows it does not learn from.

Design choices: the same windows every epoch, few enough that looking costs less than an epoch;
judged in the units the network works in, where the loss is the scaled pinball loss of the
forecasts and the calibration the one of their windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flts_ray.models.calibrate import fit_shift, sample_origins, share_apart
from flts_ray.models.recurrent_net import SegmentNet
from flts_ray.models.recurrent_shape import Shape
from flts_ray.models.recurrent_windows import Batch, WindowSet
from flts_ray.prepare.arrays import SeriesArrays

MAX_LOSS = 1e9
MAX_WINDOWS = 2000
MIN_WINDOWS = 100
MAX_STEPS = 2**20
CHUNK = 256


def held_out(data: SeriesArrays, span: str, windows: WindowSet) -> list[Batch]:
    """A bounded number of windows of one span, in chunks; none if none fits."""
    series, starts = windows.starts(_sampled(data, span, windows.shape))
    parts = torch.arange(len(series), device=series.device).split(CHUNK)
    return [windows.batch(series[part], starts[part], clipped=False) for part in parts if len(part)]


def apart_in(data: SeriesArrays, span: str, shape: Shape) -> float:
    """How many of those windows do not overlap; see `share_apart`."""
    return share_apart(*_sampled(data, span, shape), shape.horizon)


def _sampled(data: SeriesArrays, span: str, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    lookback, horizon = shape.lookback, shape.horizon
    most = min(max(MAX_STEPS // (lookback + horizon), MIN_WINDOWS), MAX_WINDOWS)
    return sample_origins(data, span, lookback, horizon, most)


def quantiles_of(net: SegmentNet, batches: Sequence[Batch]) -> torch.Tensor:
    """What the network says about held-out windows: [n, H, Q] in its own units."""
    net.eval()
    with torch.inference_mode():
        return torch.cat([net(batch.inputs)[1] for batch in batches])


def valid_loss(quantiles: torch.Tensor, batches: Sequence[Batch], levels: torch.Tensor) -> float:
    """Scaled pinball loss; a bound where the network overflowed."""
    loss, counted = pinball_sums(quantiles, joined(batches), levels)
    mean = float(loss.sum() / counted.sum().clamp_min(1))
    return min(mean, MAX_LOSS) if np.isfinite(mean) else MAX_LOSS


def pinball_sums(
    quantiles: torch.Tensor, batch: Batch, levels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled pinball loss of each window summed over its steps, and the steps counted: [...]."""
    error = batch.target.double()[..., None] - quantiles
    pinball = torch.maximum(levels * error, (levels - 1.0) * error).mean(-1) * batch.scale
    return torch.where(batch.counted > 0, pinball, 0.0).sum(-1), batch.counted.sum(-1)


def joined(batches: Sequence[Batch]) -> Batch:
    """Targets, marks and scales of all batches; the inputs of the first stand for all."""
    parts = zip(*((b.target, b.counted, b.scale) for b in batches), strict=True)
    return Batch(batches[0].inputs, *(torch.cat(part) for part in parts))


def shift_of(
    quantiles: torch.Tensor, batch: Batch, shape: Shape, weight: float = 1.0
) -> np.ndarray:
    """Conformal correction in units of the window scale: float32 [H, Q]; weight: of `apart_in`."""
    actual = torch.where(batch.counted > 0, batch.target, torch.nan).double().cpu().numpy()
    found = quantiles.double().cpu().numpy()
    shift = fit_shift(actual, found, np.ones(len(actual)), shape.levels, weight)
    return shift.astype(np.float32)
