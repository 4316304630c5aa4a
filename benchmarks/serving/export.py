"""Writes everything that the servers need: `python -m benchmarks.serving.export FOLDER default`.

Design choices: the network is trained for a moment only, because its weights do not change what a
forecast costs; golden answers are those of the trained network, before it was exported; series
are known to the model and their requests hold just the history that it reads, as those of a
caller who knows the contract; values have two decimals, as meters have.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bulk import load_set
from flts_ray.config_serve import ServeConfig
from flts_ray.models import artifact
from flts_ray.models.base import Fitted, Task, fit_fully
from flts_ray.models.onnx_export import exported
from flts_ray.models.onnx_fitted import FittedOnnx
from flts_ray.panel import steps_after
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.serve.engine import ServedModel
from flts_ray.serve.history import stamps_text
from flts_ray.serve.laying import windows_of
from flts_ray.serve.predictor import asked_of, made_of
from flts_ray.serve.schemas import ForecastRequest, parse_body

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
SERIES, LENGTH, HORIZON, REQUESTS = 64, 2000, 24, 64
BRIEFLY = {"epochs": 1, "windows_per_epoch": 512}
MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    # One step of the recurrent layer for each step of the window.
    "stepwise": {"hidden": 128, "layers": 2, "lookback": 96, "segment": 1},
}
CYCLES = 2
"""Calendar columns of the data: the time of day, which both networks see in their window."""


def export(folder: Path, name: str) -> None:
    """Fit one of MODELS and write its artifacts, its graph and requests with their answers."""
    data = daily_set()
    fitted = fit_fully("gru", data, Task(HORIZON, LEVELS), MODELS[name] | BRIEFLY)
    lean = exported(fitted)
    assert isinstance(lean, FittedOnnx)  # a GRU for all series is exported as one network
    tags = {
        "kind": "gru",
        "prepared_hash": "0" * 64,
        "artifact_key": "full",
        "digest": artifact.save(fitted, folder / "store" / "full"),
        "lean_key": "lean",
        "lean_digest": artifact.save(lean, folder / "store" / "lean"),
    }
    (folder / "tags.json").write_text(json.dumps(tags))
    _write_plain(folder, fitted, lean)
    (folder / "golden.json").write_text(json.dumps(golden(fitted, data)))


def daily_set() -> SeriesArrays:
    """Hourly series with cycles and noise."""
    data = load_set(SERIES, LENGTH)
    contract = replace(data.contract, calendar=data.contract.calendar[:CYCLES])
    return replace(data, contract=contract, future=data.future[:, :CYCLES])


def _write_plain(folder: Path, fitted: Fitted, lean: FittedOnnx) -> None:
    """The model for servers that know nothing of the project."""
    reads = {one.name for one in lean.session.get_inputs()}
    if not reads <= {"z", "observed"}:
        raise SystemExit(f"the other servers do not build the inputs {sorted(reads)}")
    values, arrays = fitted.state()
    stored: dict[str, Any] = {n: array for n, array in arrays.items() if n.startswith("net.")}
    (folder / "model.onnx").write_bytes(lean.graph.tobytes())
    np.savez(folder / "model.npz", shift=lean.shift, **stored)
    about = {
        "lookback": fitted.spec.lookback,
        "horizon": HORIZON,
        "levels": LEVELS,
        "centre": lean.centre,
        "scales": dict(zip(fitted.stats.ids, fitted.stats.scale.tolist(), strict=True)),
        "network": values,
    }
    (folder / "model.json").write_text(json.dumps(about))


def golden(fitted: Fitted, data: SeriesArrays) -> list[dict[str, Any]]:
    """Requests, what the trained model forecasts for them, and how far an answer may be off."""
    model = ServedModel("bench", "1", "digest", fitted)
    rng, lookback = np.random.default_rng(3), fitted.spec.lookback
    found = []
    for at in range(REQUESTS):
        series = at % data.n_series
        begin = int(rng.integers(0, LENGTH - lookback))
        y = data.y[data.rows(series)][begin : begin + lookback].round(2)
        start = steps_after(data.start_us[series : series + 1], np.array([begin]), data.contract)
        body = {
            "unique_id": data.ids[series],
            "start": stamps_text(start.ravel())[0],
            "y": y.tolist(),
        }
        request = parse_body(ForecastRequest, json.dumps(body).encode())
        windows = windows_of(asked_of(request, ServeConfig()), model)
        made = made_of(fitted.forecast(windows), HORIZON, LEVELS, model)
        found.append(
            {
                "body": body,
                "mean": made.mean[0].tolist(),
                "quantiles": made.quantiles[0].tolist(),
                "tolerance": 1e-4 * float(y.std()),
            }
        )
    return found


if __name__ == "__main__":
    export(Path(sys.argv[1]), sys.argv[2])
