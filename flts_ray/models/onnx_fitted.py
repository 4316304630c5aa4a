"""Trained networks that forecast through ONNX Runtime, without the library they were trained in.

Design choices: the network alone is exported; scaling before it and calibration after it are the
float64 NumPy code that trained models use; one thread, because replicas scale as processes and a
second thread only waits for the first; float32 inside, which measures 4 to 9 times faster than the
trained network in float64 and agrees with it within a millionth of the scale of a window, whatever
else is in the batch; a few made-up windows are stored with what the trained network said of them,
and a model that says anything else on this machine is refused before it answers anybody; networks
of single series are rows of weights that one graph is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from flts_ray.errors import ArtifactError
from flts_ray.models.base import Forecast, ModelSpec
from flts_ray.models.calibrate import known_rows
from flts_ray.models.recurrent_columns import ColumnScaling
from flts_ray.models.recurrent_readings import (
    Prediction,
    Readings,
    calibrated,
    denormalised,
    inputs_of,
    windows_for,
)
from flts_ray.models.support import floored
from flts_ray.prepare.arrays import SeriesStats, Windows

NETWORKS = ("gru", "lstm")
"""Kinds that are exported."""
GRAPH = "onnx"
"""Array that holds the serialised graph; a state without it was not exported."""
GIVEN, GOLDEN, COLUMNS = "given.", "golden.", "columns."
_CHOSEN = tuple(
    one.name for one in fields(ColumnScaling) if not one.name.endswith(("_mean", "_std"))
)
"""What of the column scaling is no array."""
CHUNK = 256
"""Windows that are forecast at a time."""
TOLERANCE = 1e-5
"""Largest difference from the trained network, in units of the scale of a window."""


class Golden(NamedTuple):
    """Made-up windows and what the trained network forecast for them.

    rows: int64 [n], the series of each in the statistics, -1 for one never seen; mean: float64
    [n, H]; quantiles: float64 [n, H, Q]; the rest as in `Windows`.
    """

    rows: np.ndarray
    origin_us: np.ndarray
    y: np.ndarray
    observed: np.ndarray
    past: np.ndarray
    future: np.ndarray
    static: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    quantiles: np.ndarray

    def windows(self, spec: ModelSpec, stats: SeriesStats) -> Windows:
        new = unknown_name(stats)
        return Windows(
            contract=spec.contract,
            ids=tuple(stats.ids[row] if row >= 0 else new for row in self.rows.tolist()),
            **{name: getattr(self, name) for name in self._fields[1:-2]},
        )


@dataclass
class FittedOnnx:
    """An exported network, or one a series, with column scaling and calibration.

    graph: the serialised model, which `session` runs; given: weights [series + 1, ...] that the
    graph is given, rows as in `stats`, then that of new series; empty for one network for all.
    shift: float32 [H, Q], added to the quantiles in units of the window scale; centre: what is
    subtracted from a window, "last" or "mean".
    """

    spec: ModelSpec
    stats: SeriesStats
    scaling: ColumnScaling
    shift: np.ndarray
    centre: str
    graph: np.ndarray
    given: Mapping[str, np.ndarray]
    golden: Golden
    session: Any

    def forecast(self, windows: Windows) -> Forecast:
        """Forecast windows of any series. Raises DataError for a wrong lookback or horizon."""
        windows = windows_for(self.spec, windows)
        found = calibrated(self.predict(windows), self.shift)
        return floored(self.spec, windows, found.mean, found.quantiles)

    def predict(self, windows: Windows) -> Prediction:
        """What the network says of windows of its own lookback, before calibration."""
        n, task = len(windows), self.spec.task
        inputs, units = inputs_of(windows, self.scaling, self.centre, self._read)
        mean = np.empty((n, task.horizon))
        quantiles = np.empty((n, task.horizon, len(task.levels)))
        for at, weights in self._groups(windows):
            feed = {name: values[at] for name, values in inputs.items()}
            mean[at], quantiles[at] = self.session.run(("mean", "quantiles"), feed | weights)
        return denormalised(mean, quantiles, units)

    @cached_property
    def _read(self) -> list[str]:
        """Inputs of the graph that are readings of windows."""
        names = {each.name for each in self.session.get_inputs()}
        return [name for name in Readings._fields if name in names]

    def _groups(self, windows: Windows) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
        """Windows that run together, by index, and the weights they run with."""
        if not self.given:
            for start in range(0, len(windows), CHUNK):
                yield slice(start, start + CHUNK), {}
            return
        rows = known_rows(windows.ids, self.stats)
        for row in np.unique(rows):
            weights = {name: array[row] for name, array in self.given.items()}
            whole = np.flatnonzero(rows == row)
            for start in range(0, len(whole), CHUNK):
                yield whole[start : start + CHUNK], weights

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Everything beside the graph, and the graph itself as bytes."""
        scaling = self.scaling
        values = {
            "centre": self.centre,
            "series": len(self.stats.ids) if self.given else 0,
            **{name: _listed(getattr(scaling, name)) for name in _CHOSEN},
        }
        arrays = {GRAPH: self.graph, "shift": self.shift}
        arrays |= {COLUMNS + name: array for name, array in scaling.arrays().items()}
        arrays |= {GIVEN + name: array for name, array in self.given.items()}
        return values, arrays | {GOLDEN + n: array for n, array in self.golden._asdict().items()}


def restored(
    spec: ModelSpec, stats: SeriesStats, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> FittedOnnx:
    """Rebuild an exported model and try it on its golden windows.

    Raises ArtifactError for parts that do not fit together and for other forecasts than those of
    the trained network.
    """
    try:
        columns: dict[str, Any] = {name: _frozen(values[name]) for name in _CHOSEN}
        scaling = ColumnScaling(**(columns | _named(arrays, COLUMNS)))
        fitted = FittedOnnx(
            spec,
            stats,
            scaling,
            arrays["shift"],
            str(values["centre"]),
            arrays[GRAPH],
            _named(arrays, GIVEN),
            Golden(**_named(arrays, GOLDEN)),
            open_session(spec.kind, arrays[GRAPH].tobytes()),
        )
        _check_parts(fitted, int(values["series"]))
    except (KeyError, TypeError, ValueError) as error:
        raise refused(spec.kind, f"its parts are no exported network ({error!r})") from None
    check_golden(fitted)
    return fitted


def open_session(kind: str, graph: bytes) -> Any:
    """A session of one thread. Raises ArtifactError for bytes that are no usable graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    # The arena keeps the memory of the largest batch for ever.
    options.enable_cpu_mem_arena = False
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 -- the runtime's errors have no common base
        raise refused(kind, f"its graph cannot be run ({str(error)[:300]})") from None


def check_golden(fitted: FittedOnnx) -> None:
    """Raise ArtifactError unless the model repeats what its trained network forecast."""
    golden, spec = fitted.golden, fitted.spec
    try:
        windows = golden.windows(spec, fitted.stats)
        made = fitted.forecast(windows)
        found = np.concatenate([made.mean[..., None], made.quantiles], axis=-1)
        wanted = np.concatenate([golden.mean[..., None], golden.quantiles], axis=-1)
        units = inputs_of(windows, fitted.scaling, fitted.centre, ())[1]
        apart = np.abs(found - wanted) / units.scale[..., None]
    except Exception as error:  # noqa: BLE001 -- the runtime's errors have no common base
        raise refused(spec.kind, f"it cannot forecast its golden windows ({error!r})") from None
    worst = float(apart.max(initial=0.0))
    if not (len(apart) and worst <= TOLERANCE):
        raise refused(
            spec.kind,
            f"its forecasts of golden windows are {worst:.2g} of the scale away from those of the "
            f"trained network, more than {TOLERANCE:.0e}",
        )


def unknown_name(stats: SeriesStats) -> str:
    """A name that no series of the statistics has."""
    name = "new"
    while name in stats.row_of:
        name += "'"
    return name


def refused(kind: str, problem: str) -> ArtifactError:
    return ArtifactError(
        f"exported {kind} model: {problem}; promote its version again, which exports it anew"
    )


def _named(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): array for n, array in arrays.items() if n.startswith(prefix)}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_parts(fitted: FittedOnnx, series: int) -> None:
    """Raise ValueError for arrays of another shape or type than the rest implies."""
    task, rows = fitted.spec.task, len(fitted.stats.ids)
    if fitted.shift.shape != (task.horizon, len(task.levels)):
        raise ValueError(f"shift is {fitted.shift.shape}")
    if series not in (0, rows) or bool(fitted.given) != bool(series):
        raise ValueError(f"networks of {series} series among {rows}")
    if any(len(array) != rows + 1 for array in fitted.given.values()):
        raise ValueError(f"weights are not those of {rows} series and one more")
    if fitted.golden.rows.max(initial=-1) >= rows:
        raise ValueError(f"golden windows of series beyond {rows}")
    if fitted.centre not in ("last", "mean"):
        raise ValueError(f"centre {fitted.centre!r}")
