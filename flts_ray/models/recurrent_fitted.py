"""A trained recurrent forecaster: forecasts, and the arrays it is stored as.

Design choices: calibration is in units of the window's own scale, so it fits series of any size;
forecasts are computed in float64, because in float32 a forecast near zero would depend in its
fifth digit on which other windows share the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flts_ray.models.base import Forecast, ModelSpec
from flts_ray.models.memory import Memory
from flts_ray.models.memory import stored as stored_memory
from flts_ray.models.recurrent_columns import ColumnScaling
from flts_ray.models.recurrent_inputs import predict, prepared
from flts_ray.models.recurrent_linear import Shrinkage
from flts_ray.models.recurrent_net import SegmentNet
from flts_ray.models.recurrent_readings import (
    Prediction,
    calibrated,
    windows_for,
)
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


@dataclass
class FittedRecurrent:
    """A trained network with its column scaling and calibration.

    net: its weights are float32 values, held as float64 on the CPU.
    shift: float32 [H, Q], added to the quantiles in units of the window scale; centre: what is
    subtracted from a window, "last" or "mean"; ridge: setting of the net's linear map.
    """

    spec: ModelSpec
    stats: SeriesStats
    net: SegmentNet
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
        chunks = prepared(windows, self.spec.lookback, self.scaling, self.centre)
        return calibrated(predict(self.net, chunks), self.shift)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Shape of the network; weights, column scaling and calibration as float32 arrays."""
        weights = {f"net.{n}": w.float().numpy() for n, w in self.net.state_dict().items()}
        values = values_of(self.net.shape, self.scaling, self.centre, self.ridge, series=0)
        arrays = {**weights, **columns_of(self.scaling), "shift": self.shift}
        return values, {**arrays, **stored_memory(self.memory)}


def restored(
    spec: ModelSpec, stats: SeriesStats, values: dict[str, Any], arrays: dict[str, np.ndarray]
) -> FittedRecurrent:
    """Rebuild a model from its state. Raises ArtifactError for any name, shape or type off."""
    stored = read_values(spec, values, series=0)
    net = network_on_paper(stored.shape)
    expected = {f"net.{name}": tuple(w.shape) for name, w in net.state_dict().items()}
    expected["shift"] = (stored.horizon, len(stored.levels))
    check_arrays(spec, expected, arrays)
    weights = {n: torch.tensor(arrays[f"net.{n}"]) for n in net.state_dict()}
    net.load_state_dict(weights, assign=True)
    return FittedRecurrent(
        spec,
        stats,
        net.double().eval(),
        read_scaling(spec, stored, arrays),
        arrays["shift"],
        stored.centre,
        stored.shrinkage,
    )
