"""From windows to what the recurrent network reads, and from its answers back to forecasts.

Design choices: covariates are scaled with the mean and spread of all training steps pooled,
because a forecast for a series never seen before has nothing else; scaled covariates are bounded,
so that a value far outside training bends a forecast instead of breaking it; windows are
normalised in float64, because a small cycle on a large level is lost in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch

from flts_ray.models.recurrent_net import Inputs, SegmentNet, WindowScale, window_scale
from flts_ray.prepare.arrays import SeriesArrays, Windows
from flts_ray.prepare.calendar import shown_columns

CHUNK = 256
COVARIATE_BOUND = 5.0
HIDDEN = 1e12


@dataclass(frozen=True)
class ColumnScaling:
    """Pooled mean and standard deviation of every covariate column, float32 [columns]."""

    past_mean: np.ndarray
    past_std: np.ndarray
    future_mean: np.ndarray
    future_std: np.ndarray
    static_mean: np.ndarray
    static_std: np.ndarray

    def apply(self, name: str, values: np.ndarray) -> np.ndarray:
        """Scale the columns of `past`, `future` or `static`; a missing value becomes the mean."""
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        scaled = (values.astype(np.float32) - mean) / std
        return np.nan_to_num(np.clip(scaled, -COVARIATE_BOUND, COVARIATE_BOUND), nan=0.0)

    def arrays(self) -> dict[str, np.ndarray]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def training_rows(data: SeriesArrays) -> np.ndarray:
    """Flat indices of all training steps, int64, in the order of the series."""
    position = np.arange(len(data.y)) - np.repeat(data.offsets[:-1], data.lengths)
    return np.flatnonzero(position < np.repeat(data.train_end, data.lengths))


def fit_columns(data: SeriesArrays, rows: np.ndarray) -> ColumnScaling:
    """Learn the scaling of every covariate on the training steps `rows`.

    Calendar columns whose cycle the training span does not show twice are scaled to nothing.
    """
    moments = [_moments(columns) for columns in (data.past[rows], data.future[rows], data.static)]
    scaling = ColumnScaling(*(array for pair in moments for array in pair))
    contract = data.contract
    shown = shown_columns(contract.calendar, contract.freq, int(data.train_end.max(initial=0)))
    hidden = [name in contract.calendar and name not in shown for name in contract.future]
    scaling.future_std[hidden] = HIDDEN
    return scaling


def _moments(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    told = np.isfinite(columns)
    count = np.maximum(told.sum(axis=0), 1)
    mean = np.where(told, columns, 0.0).sum(axis=0, dtype=np.float64) / count
    apart = np.where(told, columns - mean, 0.0)
    std = np.sqrt((apart**2).sum(axis=0, dtype=np.float64) / count)
    still = std <= 1e-6 * np.abs(mean)
    return mean.astype(np.float32), np.where(still, 1.0, std).astype(np.float32)


def inputs_of(windows: Windows, scaling: ColumnScaling, centre: str) -> tuple[Inputs, WindowScale]:
    """Network inputs (float32) of windows, and the scale of each (float64)."""
    y = torch.from_numpy(np.ascontiguousarray(windows.y, np.float64))
    own = torch.from_numpy(np.asarray(windows.scale, np.float64))[:, None]
    scale = window_scale(y, own, centre)
    inputs = Inputs(
        z=scale.forward(y).float(),
        observed=torch.from_numpy(windows.observed.astype(np.float32)),
        past=torch.from_numpy(scaling.apply("past", windows.past)),
        future=torch.from_numpy(scaling.apply("future", windows.future)),
        static=torch.from_numpy(scaling.apply("static", windows.static)),
    )
    return inputs, scale


class Prediction(NamedTuple):
    """Mean [n, H], quantiles [n, H, Q] and window scale [n], float64, in the input's units."""

    mean: np.ndarray
    quantiles: np.ndarray
    scale: np.ndarray


def predict(
    net: SegmentNet, windows: Windows, scaling: ColumnScaling, centre: str, device: str = "cpu"
) -> Prediction:
    """Forecast windows in chunks of bounded memory, in the precision of the network's weights."""
    net.eval()
    precision = net.head.weight.dtype
    windows = windows.last(net.shape.lookback)
    n, horizon, levels = len(windows), net.shape.horizon, len(net.shape.levels)
    found = Prediction(np.empty((n, horizon)), np.empty((n, horizon, levels)), np.empty(n))
    with torch.inference_mode():
        for start in range(0, n, CHUNK):
            part = slice(start, start + CHUNK)
            inputs, (centres, scale) = inputs_of(windows.part(part), scaling, centre)
            mean, quantiles = net(Inputs(*(each.to(device, precision) for each in inputs)))
            found.mean[part] = (mean.cpu().double() * scale + centres).numpy()
            spread = quantiles.cpu().double() * scale[..., None] + centres[..., None]
            found.quantiles[part] = spread.numpy()
            found.scale[part] = scale[:, 0].numpy()
    return found
