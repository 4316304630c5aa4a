"""From windows to what the recurrent network reads, and from its answers back to forecasts.

Design choices: covariates are scaled with the mean and spread of all training steps pooled,
because a forecast for a series never seen before has nothing else; scaled covariates are bounded,
so that a value far outside training bends a forecast instead of breaking it; a cycle of the
calendar that the window shows twice is read from there, because where no event depends on it its
columns would only let the network tell one week of training from another; windows are normalised
in float64, because a small cycle on a large level is lost in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch

from flts_ray.models.recurrent_net import Inputs, SegmentNet, WindowScale, window_scale
from flts_ray.prepare.arrays import SeriesArrays, Windows
from flts_ray.prepare.calendar import HOLIDAY_COLUMN, shown_columns

CHUNK = 256
COVARIATE_BOUND = 5.0


@dataclass(frozen=True)
class ColumnScaling:
    """Pooled mean and standard deviation of every covariate column, float32 [columns].

    cycles: calendar columns read for the horizon; events: columns of `future` read for both the
    window and the horizon; both as positions in the contract's `future`.
    """

    past_mean: np.ndarray
    past_std: np.ndarray
    future_mean: np.ndarray
    future_std: np.ndarray
    static_mean: np.ndarray
    static_std: np.ndarray
    cycles: tuple[int, ...]
    events: tuple[int, ...]

    def seen(self, past: np.ndarray, future: np.ndarray) -> np.ndarray:
        """What the network reads of past steps beside the target: [..., past and events]."""
        return np.concatenate(
            [self._scaled("past", past), self._scaled("future", future, self.events)], axis=-1
        )

    def ahead(self, future: np.ndarray) -> np.ndarray:
        """What the network reads of the steps to forecast: [..., cycles and events]."""
        return self._scaled("future", future, self.cycles + self.events)

    def static(self, values: np.ndarray) -> np.ndarray:
        return self._scaled("static", values)

    def _scaled(
        self, name: str, values: np.ndarray, columns: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """Bounded, and the mean in place of what is missing."""
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        if columns is not None:
            at = list(columns)
            values, mean, std = values[..., at], mean[at], std[at]
        scaled = (values.astype(np.float32) - mean) / std
        return np.nan_to_num(np.clip(scaled, -COVARIATE_BOUND, COVARIATE_BOUND), nan=0.0)

    def arrays(self) -> dict[str, np.ndarray]:
        names = (f.name for f in fields(self) if f.name not in ("cycles", "events"))
        return {name: getattr(self, name) for name in names}


def training_rows(data: SeriesArrays) -> np.ndarray:
    """Flat indices of all training steps, int64, in the order of the series."""
    position = np.arange(len(data.y)) - np.repeat(data.offsets[:-1], data.lengths)
    return np.flatnonzero(position < np.repeat(data.train_end, data.lengths))


def fit_columns(data: SeriesArrays, rows: np.ndarray, lookback: int) -> ColumnScaling:
    """Learn the scaling of every covariate on the training steps `rows`.

    Left out are calendar columns whose cycle the training span does not show twice, and those
    whose cycle every window of `lookback` steps shows twice, unless there are events: what a
    holiday does to a load depends on the hour.
    """
    moments = [_moments(columns) for columns in (data.past[rows], data.future[rows], data.static)]
    contract = data.contract
    names, freq = contract.calendar, contract.freq
    learned = shown_columns(names, freq, int(data.train_end.max(initial=0)))
    events = (*contract.known_future, *(name for name in names if name == HOLIDAY_COLUMN))
    told = () if events else shown_columns(names, freq, lookback)
    cycles = [name for name in learned if name not in told and name not in events]
    (past, future, static) = moments
    return ColumnScaling(
        *past,
        *future,
        *static,
        tuple(contract.future.index(name) for name in cycles),
        tuple(sorted(contract.future.index(name) for name in events)),
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
    y = torch.from_numpy(np.ascontiguousarray(windows.y, np.float64))
    own = torch.from_numpy(np.asarray(windows.scale, np.float64))[:, None]
    scale = window_scale(y, own, centre)
    lookback = windows.lookback
    inputs = Inputs(
        z=scale.forward(y).float(),
        observed=torch.from_numpy(windows.observed.astype(np.float32)),
        seen=torch.from_numpy(scaling.seen(windows.past, windows.future[:, :lookback])),
        ahead=torch.from_numpy(scaling.ahead(windows.future[:, lookback:])),
        static=torch.from_numpy(scaling.static(windows.static)),
    )
    return inputs, scale


class Prediction(NamedTuple):
    """Mean [n, H], quantiles [n, H, Q] and window scale [n], float64, in the input's units."""

    mean: np.ndarray
    quantiles: np.ndarray
    scale: np.ndarray


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
    centre, size = scale
    return Prediction(
        (mean.cpu().double() * size + centre).numpy(),
        (quantiles.cpu().double() * size[..., None] + centre[..., None]).numpy(),
        size[:, 0].numpy(),
    )
