"""Trained networks into exported ones, each checked against the network it came from.

Design choices: golden windows are made up from the statistics of the series, so that a model can
be exported wherever its artifact is and the export holds nobody's data; they show what is hard: a
constant window, a leap, values a million times larger and smaller, a series never seen before,
labels nobody knows; exporting the same model gives the same bytes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flts_ray.models.base import Fitted, Forecast, ModelSpec
from flts_ray.models.blend import Blend
from flts_ray.models.onnx_fitted import (
    COLUMNS,
    GIVEN,
    GOLDEN,
    GRAPH,
    NETWORKS,
    FittedOnnx,
    Golden,
    restored,
    unknown_name,
)
from flts_ray.models.onnx_graph import graph_of, in_onnx_order
from flts_ray.models.recurrent_shape import Shape
from flts_ray.prepare.arrays import SeriesStats, Windows

WINDOWS = 12
_SEED = 20_240_229
_ORIGIN_US = 1_700_000_000_000_000


def needs_export(fitted: Fitted) -> bool:
    """True for a model that holds a network which was not exported yet."""
    if isinstance(fitted, Blend):
        return any(needs_export(member) for member in fitted.members)
    return fitted.spec.kind in NETWORKS and not isinstance(fitted, FittedOnnx)


def exported(fitted: Fitted) -> Fitted:
    """The same model with exported networks; itself where it holds none.

    Raises ArtifactError where an exported network does not repeat what the trained one says.
    """
    if not needs_export(fitted):
        return fitted
    if isinstance(fitted, Blend):
        return replace(fitted, members=tuple(exported(member) for member in fitted.members))
    return _network(fitted)


def _network(fitted: Fitted) -> FittedOnnx:
    spec, stats = fitted.spec, fitted.stats
    values, arrays = fitted.state()
    shape = Shape.of(values)
    stored = {n.removeprefix("net."): array for n, array in arrays.items() if n.startswith("net.")}
    weights = in_onnx_order(shape.cell, stored)
    own = set(weights) - {"linear"} if values["series"] else set()
    given = {name: weights[name] for name in sorted(own)}
    graph = graph_of(shape, weights, {name: array.shape[1:] for name, array in given.items()})
    windows = golden_windows(spec, stats, arrays)
    golden = _golden(windows, stats, fitted.forecast(windows))
    state = {GRAPH: np.frombuffer(graph, np.uint8), "shift": arrays["shift"]}
    state |= {name: array for name, array in arrays.items() if name.startswith(COLUMNS)}
    state |= {GIVEN + name: array for name, array in given.items()}
    state |= {GOLDEN + name: array for name, array in golden._asdict().items()}
    return restored(spec, stats, values, state)


def _golden(windows: Windows, stats: SeriesStats, said: Forecast) -> Golden:
    rows = np.array([stats.row_of.get(name, -1) for name in windows.ids], np.int64)
    seen = {name: getattr(windows, name) for name in Golden._fields[1:-2]}
    return Golden(rows=rows, **seen, mean=said.mean, quantiles=said.quantiles)


def golden_windows(spec: ModelSpec, stats: SeriesStats, arrays: dict[str, np.ndarray]) -> Windows:
    """Made-up windows of known series, and the last of a new one; the same for the same model."""
    rng, contract = np.random.default_rng(_SEED), spec.contract
    n, lookback, steps = WINDOWS, spec.lookback, spec.lookback + spec.task.horizon
    rows = np.linspace(0, len(stats.ids) - 1, n).round().astype(np.int64)
    ids = [*(stats.ids[row] for row in rows[:-1]), unknown_name(stats)]

    def columns(role: str, *size: int) -> np.ndarray:
        mean, std = (arrays[f"{COLUMNS}{role}_{part}"] for part in ("mean", "std"))
        return (mean + std * rng.standard_normal((*size, len(mean)))).astype(np.float32)

    static = columns("static", n)
    for column, labels in enumerate(contract.categories):
        if labels:
            static[:, column] = rng.integers(-1, len(labels), n)
    return Windows(
        contract=contract,
        ids=tuple(ids),
        origin_us=np.full(n, _ORIGIN_US // contract.frequency.step_us * contract.frequency.step_us),
        y=_histories(rng, stats, rows, lookback, contract.season),
        observed=rng.random((n, lookback)) < 0.9,
        past=columns("past", n, lookback),
        future=columns("future", n, steps),
        static=static,
        scale=np.append(stats.scale[rows[:-1]], np.nan),
    )


def _histories(
    rng: np.random.Generator, stats: SeriesStats, rows: np.ndarray, lookback: int, season: int
) -> np.ndarray:
    """Noisy cycles about the mean of each series, with some that are unlike any: [n, L]."""
    steps = np.arange(lookback)
    wave = np.sin(2 * np.pi * (steps + rng.integers(0, max(season, 1), (len(rows), 1))) / season)
    noise = rng.standard_normal((len(rows), lookback))
    y = stats.mean[rows, None] + stats.std[rows, None] * (wave + 0.3 * noise)
    y[1] = y[1, 0]
    y[2] *= 1e6
    y[3] *= 1e-6
    y[4, -1] += 20.0 * stats.std[rows[4]]
    return np.asarray(y)
