"""The steps that a fit may read as one tensor, and the windows that are views into it.

Design choices: a window is index arithmetic on one float32 tensor, so no Python runs for a window
and none is stored; series are kept in units of their own seasonal-naive error, so that windows of
all series count alike and the loss is the scaled pinball loss forecasts are judged on; what is
learned from is clipped as the windows of a forecast are, what judges is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from flts_ray.models.recurrent_columns import ColumnScaling
from flts_ray.models.recurrent_net import Inputs, window_scale
from flts_ray.models.recurrent_shape import Shape
from flts_ray.prepare.arrays import MOVED, SeriesArrays

Origins = tuple[np.ndarray, np.ndarray]
"""Series and positions of windows, as `origins_in` gives them."""


@dataclass(frozen=True)
class Batch:
    """Windows [...]: inputs; normalised targets [..., H], which of them count; the scale of each
    window [..., 1] in units of its series' own."""

    inputs: Inputs
    target: torch.Tensor
    counted: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class WindowSet:
    """All steps before the test span on one device.

    y: float32 [rows], each series minus its mean in units of its own scale; bounds: [series, 2],
    what outliers are clipped to, None where there is none; observed: float32 [rows]; seen, ahead:
    [rows, columns]; static: [series, S]; floor: [series], the series' scale in the units of y;
    first: int64 [series], first row.
    """

    y: torch.Tensor
    bounds: torch.Tensor | None
    observed: torch.Tensor
    seen: torch.Tensor
    ahead: torch.Tensor
    static: torch.Tensor
    floor: torch.Tensor
    first: torch.Tensor
    shape: Shape
    centre: str

    def starts(self, origins: Origins) -> tuple[torch.Tensor, torch.Tensor]:
        """Series and row of each origin, as `batch` wants them."""
        series, positions = (torch.from_numpy(each).to(self.y.device) for each in origins)
        return series, self.first[series] + positions

    def batch(self, series: torch.Tensor, starts: torch.Tensor, clipped: bool = True) -> Batch:
        """The windows whose first step to forecast is row `starts`; any shape."""
        shape, device, rows = self.shape, self.y.device, starts[..., None]
        back = rows + torch.arange(-shape.lookback, 0, device=device)
        on = rows + torch.arange(shape.horizon, device=device)
        known, target = self.y[back], self.y[on]
        if self.bounds is not None:
            low, high = self.bounds[series].unsqueeze(-2).unbind(-1)
            known = _bounded(known, low, high)
            target = target.clamp(low, high) if clipped else target
        scale = window_scale(known, self.floor[series][..., None], self.centre)
        inputs = Inputs(
            z=scale.forward(known),
            observed=self.observed[back] if shape.marked else known,  # else it is not read
            seen=self.seen[back],
            ahead=self.ahead[on],
            static=self.static[series],
        )
        return Batch(inputs, scale.forward(target), self.observed[on], scale.scale)


def _bounded(y: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """As `prepare.arrays.bounded`."""
    clipped = y.clamp(low, high)
    moved = (clipped != y).float().mean(-1, keepdim=True) > MOVED
    return torch.where(moved, y, clipped)


def window_set(
    data: SeriesArrays, scaling: ColumnScaling, shape: Shape, centre: str, device: str
) -> WindowSet:
    """Put the training and the validation span of `data` on a device; nothing after is read."""
    stats = data.stats
    position = np.arange(len(data.y)) - np.repeat(data.offsets[:-1], data.lengths)
    rows = np.flatnonzero(position < np.repeat(data.valid_end, data.lengths))
    owner = np.repeat(np.arange(data.n_series), data.valid_end)
    unit = np.maximum(stats.scale, np.maximum(0.01 * stats.std, np.finfo(np.float32).tiny))
    truth = np.nan_to_num(data.y[rows])
    low, high = stats.clip_lo, stats.clip_hi
    outliers = bool(((truth < low[owner]) | (truth > high[owner])).any())

    def put(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    bounds = (np.stack([low, high], axis=1) - stats.mean[:, None]) / unit[:, None]
    return WindowSet(
        y=put(((truth - stats.mean[owner]) / unit[owner]).astype(np.float32)),
        bounds=put(bounds.astype(np.float32)) if outliers else None,
        observed=put(data.observed[rows].astype(np.float32)),
        seen=put(scaling.seen(data.past[rows], data.future[rows])),
        ahead=put(scaling.ahead(data.future[rows])),
        static=put(scaling.static(data.static)),
        floor=put((stats.scale / unit).astype(np.float32)),
        first=put(np.concatenate([[0], np.cumsum(data.valid_end)])[:-1].astype(np.int64)),
        shape=shape,
        centre=centre,
    )
