"""A trained recurrent forecaster: forecasts, and the arrays it is stored as.

Design choices: the network's shape is stored and its weights are checked against it by name,
shape and type before any memory is taken for them, so a foreign or damaged file is refused, not
bent into place; calibration is in units of the window's own scale, so it fits series of any size;
forecasts are computed in float64, because in float32 a forecast near zero would depend in its
fifth digit on which other windows share the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from flts_ray.errors import ArtifactError, DataError
from flts_ray.models.base import Forecast, ModelSpec
from flts_ray.models.calibrate import apply_shift
from flts_ray.models.recurrent_inputs import ColumnScaling, predict
from flts_ray.models.recurrent_net import SegmentNet, Shape
from flts_ray.prepare.arrays import SeriesStats, Windows


@dataclass
class FittedRecurrent:
    """A trained network with its column scaling and calibration.

    net: its weights are float32 values, held as float64 on the CPU.
    shift: float32 [H, Q], added to the quantiles in units of the window scale; centre: what is
    subtracted from a window, "last" or "mean"; penalty: ridge penalty of the net's linear map.
    """

    spec: ModelSpec
    stats: SeriesStats
    net: SegmentNet
    scaling: ColumnScaling
    shift: np.ndarray
    centre: str
    penalty: float

    def forecast(self, windows: Windows) -> Forecast:
        """Forecast windows of any series. Raises DataError for a wrong lookback or horizon."""
        task, lookback = self.spec.task, self.spec.lookback
        if windows.lookback < lookback or windows.horizon != task.horizon:
            raise DataError(
                f"{self.spec.kind} needs {lookback} past steps and forecasts {task.horizon}; "
                f"the windows have {windows.lookback} and ask for {windows.horizon}",
                field="history",
            )
        found = predict(self.net, windows, self.scaling, self.centre)
        return Forecast(
            ids=windows.ids,
            origin_us=windows.origin_us,
            levels=task.levels,
            mean=found.mean,
            quantiles=apply_shift(found.quantiles, self.shift.astype(np.float64), found.scale),
        )

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Shape of the network; weights, column scaling and calibration as float32 arrays."""
        shape = asdict(self.net.shape)
        values = {**shape, "levels": list(shape["levels"]), "centre": self.centre}
        values["penalty"] = self.penalty
        weights = {f"net.{n}": w.float().numpy() for n, w in self.net.state_dict().items()}
        columns = {f"columns.{n}": a for n, a in self.scaling.arrays().items()}
        return values, {**weights, **columns, "shift": self.shift}


def restored(
    spec: ModelSpec, stats: SeriesStats, values: dict[str, Any], arrays: dict[str, np.ndarray]
) -> FittedRecurrent:
    """Rebuild a model from its state. Raises ArtifactError for any name, shape or type off."""
    shape, centre, penalty = _shape(spec.kind, values)
    _check_spec(spec, shape)
    with torch.device("meta"):
        net = SegmentNet(shape)
    expected = {f"net.{name}": tuple(w.shape) for name, w in net.state_dict().items()}
    columns = {
        f"{name}_{part}": (getattr(shape, name),)
        for name in ("past", "future", "static")
        for part in ("mean", "std")
    }
    expected |= {f"columns.{name}": size for name, size in columns.items()}
    expected["shift"] = (shape.horizon, len(shape.levels))
    _check_arrays(spec.kind, expected, arrays)
    weights = {n: torch.tensor(arrays[f"net.{n}"]) for n in net.state_dict()}
    net.load_state_dict(weights, assign=True)
    scaling = ColumnScaling(**{name: arrays[f"columns.{name}"] for name in columns})
    return FittedRecurrent(
        spec, stats, net.double().eval(), scaling, arrays["shift"], centre, penalty
    )


def _shape(kind: str, values: Mapping[str, Any]) -> tuple[Shape, str, float]:
    rest = dict(values)
    centre, penalty = rest.pop("centre", None), rest.pop("penalty", None)
    names = set(Shape.__dataclass_fields__)
    if type(penalty) is not float or not penalty > 0:
        raise _refused(kind, f"penalty is {penalty!r}")
    whole = names - {"cell", "levels", "dropout"}
    if set(rest) != names or centre not in ("last", "mean"):
        raise _refused(kind, f"its values {sorted(values)} describe no network")
    least = {name: int(name not in ("past", "future", "static", "lags")) for name in whole}
    wrong = [n for n in sorted(whole) if type(rest[n]) is not int or rest[n] < least[n]]
    if wrong:
        raise _refused(kind, f"{wrong[0]} is {rest[wrong[0]]!r}")
    shape = Shape(**{**rest, "levels": tuple(rest["levels"])})
    if shape.lookback % shape.segment or shape.lags > shape.lookback or 0.5 not in shape.levels:
        raise _refused(kind, "its lookback, segment, lags and levels do not fit together")
    return shape, centre, penalty


def _check_spec(spec: ModelSpec, shape: Shape) -> None:
    contract = spec.contract
    said = (
        spec.kind,
        spec.lookback,
        spec.task.horizon,
        tuple(spec.task.levels),
        (len(contract.past), len(contract.future), len(contract.static)),
    )
    columns = (shape.past, shape.future, shape.static)
    held = (shape.cell, shape.lookback, shape.horizon, shape.levels, columns)
    if said != held:
        raise _refused(spec.kind, f"the network is {held} while its contract says {said}")


def _check_arrays(
    kind: str, expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]
) -> None:
    odd = sorted(set(expected) ^ set(arrays))
    if odd:
        raise _refused(kind, f"arrays are missing or unexpected: {odd}")
    for name, size in expected.items():
        found = arrays[name]
        if found.shape != size or found.dtype != np.float32:
            raise _refused(kind, f"{name} is {found.dtype} {found.shape}, expected float32 {size}")


def _refused(kind: str, problem: str) -> ArtifactError:
    return ArtifactError(
        f"{kind} model: {problem}; restore the artifact from the registry, or train again"
    )
