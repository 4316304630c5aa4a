"""From windows to what the recurrent network reads, and from its answers back to forecasts.

Design choices: covariates are scaled with the mean and spread of all training steps pooled,
because a forecast for a series never seen before has nothing else; scaled covariates are bounded,
so that a value far outside training bends a forecast instead of breaking it; a cycle of the
calendar that the window shows twice is read from there, because where no event depends on it its
columns would only let the network tell one week of training from another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from flts_ray.models import recurrent_readings as readings
from flts_ray.models.recurrent_columns import ColumnScaling
from flts_ray.models.recurrent_net import Inputs, SegmentNet, WindowScale
from flts_ray.models.recurrent_readings import Prediction, WindowUnits, readings_of
from flts_ray.prepare.arrays import SeriesArrays, Windows
from flts_ray.prepare.calendar import HOLIDAY_COLUMN, shown_columns

CHUNK = 256


def training_rows(data: SeriesArrays) -> np.ndarray:
    """Flat indices of all training steps, int64, in the order of the series."""
    position = np.arange(len(data.y)) - np.repeat(data.offsets[:-1], data.lengths)
    return np.flatnonzero(position < np.repeat(data.train_end, data.lengths))


def fit_columns(
    data: SeriesArrays,
    rows: np.ndarray,
    lookback: int,
    labels: bool = False,
    known_future: bool = True,
    with_past: bool = True,
) -> ColumnScaling:
    """Learn the scaling of every covariate on the training steps `rows`.

    labels: static text is read as labels, not as numbers; known_future, with_past: whether
    known-future columns, calendar and holidays apart, and columns of the past are read.

    Left out are calendar columns whose cycle the training span does not show twice, and those
    whose cycle every window of `lookback` steps shows twice, unless there are events: what a
    holiday does to a load depends on the hour.
    """
    moments = [_moments(columns) for columns in (data.past[rows], data.future[rows], data.static)]
    contract = data.contract
    names, freq = contract.calendar, contract.freq
    learned = shown_columns(names, freq, int(data.train_end.max(initial=0)))
    known = contract.known_future if known_future else ()
    events = (*known, *(name for name in names if name == HOLIDAY_COLUMN))
    told = () if events else shown_columns(names, freq, lookback)
    cycles = [name for name in learned if name not in told and name not in events]
    (past, future, static) = moments
    return ColumnScaling(
        *past,
        *future,
        *static,
        tuple(contract.future.index(name) for name in cycles),
        tuple(sorted(contract.future.index(name) for name in events)),
        tuple(map(len, contract.categories)) if labels else (),
        with_past,
    )


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
    found, units = readings_of(windows, scaling, centre)
    return (
        Inputs(*(torch.from_numpy(each) for each in found)),
        WindowScale(*(torch.from_numpy(each) for each in units)),
    )


def prepared(
    windows: Windows, lookback: int, scaling: ColumnScaling, centre: str
) -> Iterator[tuple[Inputs, WindowScale]]:
    """Inputs and scales of consecutive chunks of windows; one empty chunk if there are none."""
    windows = windows.last(lookback)
    for start in range(0, max(len(windows), 1), CHUNK):
        yield inputs_of(windows.part(slice(start, start + CHUNK)), scaling, centre)


def predict(
    net: SegmentNet, chunks: Iterable[tuple[Inputs, WindowScale]], device: str = "cpu"
) -> Prediction:
    """Forecast `prepared` windows in the precision of the network's weights."""
    net.eval()
    precision = net.head.weight.dtype
    found = []
    with torch.inference_mode():
        for inputs, scale in chunks:
            mean, quantiles = net(Inputs(*(each.to(device, precision) for each in inputs)))
            found.append(denormalised(mean, quantiles, scale))
    return Prediction(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def denormalised(mean: torch.Tensor, quantiles: torch.Tensor, scale: WindowScale) -> Prediction:
    """Forecasts [n, H] and [n, H, Q] of the network in the units of the input."""
    units = WindowUnits(*(each.numpy() for each in scale))
    return readings.denormalised(mean.cpu().numpy(), quantiles.cpu().numpy(), units)
