"""A trained network for every series as one model: forecasts, and the arrays it is stored as.

Design choices: one artifact with arrays [series + 1, ...], whose last row is the start that all
networks share: it adds nothing to the common linear map and forecasts series that are new or were
too short to learn from; windows of one series run together, so that its weights are read once;
float64 as for the global network, so that a forecast does not depend on the rest of its batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flts_ray.models.base import Forecast, ModelSpec
from flts_ray.models.calibrate import known_rows
from flts_ray.models.memory import Memory
from flts_ray.models.memory import stored as stored_memory
from flts_ray.models.recurrent_columns import ColumnScaling
from flts_ray.models.recurrent_inputs import denormalised, inputs_of
from flts_ray.models.recurrent_linear import Shrinkage
from flts_ray.models.recurrent_net import Inputs, SegmentNet, WindowScale
from flts_ray.models.recurrent_readings import (
    Prediction,
    calibrated,
    windows_for,
)
from flts_ray.models.recurrent_shape import Shape
from flts_ray.models.recurrent_stack import Stack
from flts_ray.models.recurrent_stored import (
    check_arrays,
    columns_of,
    network_on_paper,
    read_scaling,
    read_values,
    values_of,
)
from flts_ray.models.support import floored
from flts_ray.prepare.arrays import SeriesStats, Windows

TOGETHER = 16
"""Most windows of one series in one product."""
CHUNK = 256
"""Windows, padding included, that are forecast at a time."""


@dataclass
class FittedStack:
    """One network a series with their column scaling and calibration.

    weights: float32 [series + 1, P], rows as in `stats`, then the common start; linear: float32
    [H, lags], common to all; shift: float32 [H, Q], added to the quantiles in units of the
    window scale; centre: what is subtracted from a window; ridge: setting of the linear map.
    """

    spec: ModelSpec
    stats: SeriesStats
    shape: Shape
    weights: torch.Tensor
    linear: torch.Tensor
    scaling: ColumnScaling
    shift: np.ndarray
    centre: str
    ridge: Shrinkage
    memory: Memory | None = None

    def forecast(self, windows: Windows) -> Forecast:
        """Forecast windows of any series. Raises DataError for a wrong lookback or horizon."""
        windows = windows_for(self.spec, windows)
        found = self.banded(windows)
        return floored(self.spec, windows, found.mean, found.quantiles)

    def banded(self, windows: Windows) -> Prediction:
        """The same of windows that were checked, whatever floor they show."""
        return calibrated(self._predicted(windows), self.shift)

    def _predicted(self, windows: Windows) -> Prediction:
        n, shape = len(windows), self.shape
        found = Prediction(
            np.empty((n, shape.horizon)),
            np.empty((n, shape.horizon, len(shape.levels))),
            np.empty(n),
        )
        stack = stack_of(shape, self.linear.double())
        rows = known_rows(windows.ids, self.stats)
        rows = np.where(rows < 0, len(self.weights) - 1, rows)
        for owners, chosen, real in _grouped(rows):
            part = self._chunk(stack, windows, owners, chosen)
            for whole, values in zip(found, part, strict=True):
                whole[chosen[real]] = values.reshape(*chosen.shape, *whole.shape[1:])[real]
        return found

    def _chunk(
        self, stack: Stack, windows: Windows, owners: np.ndarray, chosen: np.ndarray
    ) -> Prediction:
        """Forecast windows `chosen` [networks, m], those of one row with one network."""
        inputs, scale = inputs_of(_picked(windows, chosen.ravel()), self.scaling, self.centre)
        folded = Inputs(*(each.double().unflatten(0, chosen.shape) for each in inputs))
        with torch.inference_mode():
            weights = self.weights[torch.from_numpy(owners)].double()
            mean, quantiles = stack.forecast(weights, folded)
        flat = WindowScale(*scale)
        return denormalised(mean.flatten(0, 1), quantiles.flatten(0, 1), flat)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Shape of the networks; weights, column scaling and calibration as float32 arrays."""
        views = stack_of(self.shape, self.linear).views(self.weights)
        weights = {f"net.{name}": w.contiguous().numpy() for name, w in views.items()}
        values = values_of(self.shape, self.scaling, self.centre, self.ridge, len(self.stats.ids))
        arrays = {**weights, "net.linear": self.linear.numpy(), "shift": self.shift}
        return values, {**arrays, **columns_of(self.scaling), **stored_memory(self.memory)}


def stack_of(shape: Shape, linear: torch.Tensor) -> Stack:
    """The forward pass of networks of this shape with a common linear map."""
    net = network_on_paper(shape)
    net.linear = torch.nn.Parameter(linear, requires_grad=False)
    return Stack(net)


def restored_stack(
    spec: ModelSpec, stats: SeriesStats, values: dict[str, Any], arrays: dict[str, np.ndarray]
) -> FittedStack:
    """Rebuild a model from its state. Raises ArtifactError for any name, shape or type off."""
    stored = read_values(spec, values, len(stats.ids))
    stack = Stack(network_on_paper(stored.shape))
    rows = stored.series + 1
    expected = {f"net.{name}": (rows, *shape) for name, shape in stack.shapes.items()}
    expected["net.linear"] = (stored.horizon, stored.lags)
    expected["shift"] = (stored.horizon, len(stored.levels))
    check_arrays(spec, expected, arrays)
    parts = [torch.tensor(arrays[f"net.{name}"]).reshape(rows, -1) for name in stack.shapes]
    return FittedStack(
        spec,
        stats,
        stored.shape,
        torch.cat(parts, dim=1),
        torch.tensor(arrays["net.linear"]),
        read_scaling(spec, stored, arrays),
        arrays["shift"],
        stored.centre,
        stored.shrinkage,
    )


def start_of(net: SegmentNet) -> torch.Tensor:
    """The weights of `net` with a head that adds nothing to the linear map: [P]."""
    stack = Stack(net)
    row = stack.row()
    stack.views(row)["head.weight"].zero_()
    return row


def _grouped(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Windows by network, a bounded number at a time.

    rows: network of each window. Yields networks [k], window numbers [k, m], repeated where a
    network has fewer, and which of them are no repetition: bool [k, m].
    """
    order = np.argsort(rows, kind="stable")
    owners, first, count = np.unique(rows[order], return_index=True, return_counts=True)
    width = min(TOGETHER, int(count.max(initial=1)))
    pieces = -(-count // width)
    owners = np.repeat(owners, pieces)
    piece = np.arange(len(owners)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = np.repeat(first, pieces) + piece * width
    left = np.minimum(np.repeat(first + count, pieces) - start, width)
    slot = np.arange(width)
    chosen = order[start[:, None] + np.minimum(slot, left[:, None] - 1)] if len(rows) else None
    for at in range(0, len(owners), max(1, CHUNK // width)):
        part = slice(at, at + max(1, CHUNK // width))
        assert chosen is not None  # there are windows where there are owners
        yield owners[part], chosen[part], slot < left[part, None]


def _picked(windows: Windows, at: np.ndarray) -> Windows:
    """The windows with these numbers, in this order."""
    return Windows(
        contract=windows.contract,
        ids=tuple(windows.ids[i] for i in at),
        origin_us=windows.origin_us[at],
        y=windows.y[at],
        observed=windows.observed[at],
        past=windows.past[at],
        future=windows.future[at],
        static=windows.static[at],
        scale=windows.scale[at],
    )
