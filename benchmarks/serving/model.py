"""The exported model as the other servers run it: NumPy, ONNX Runtime and nothing of the project.

Design choices: what comes before and after the network is the same arithmetic as the project's
own, vectorised over a batch, so that servers differ in how they serve alone; one thread, because
every server runs as many processes as the machine has cores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SCALE_FLOOR, UNSEEN_FLOOR, TINY = 0.1, 1e-3, 1e-12
Network = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Normalised windows and which of their steps were observed, float32 [n, L]; mean [n, H] and
quantiles [n, H, Q] in normalised units."""


class Model:
    """From histories to answers. `folder` is what `export` wrote."""

    def __init__(self, folder: Path, make_network: Callable[[Path], Network] | None = None) -> None:
        about = json.loads((folder / "model.json").read_text())
        self._lookback = int(about["lookback"])
        self._centre = str(about["centre"])
        self._scales: dict[str, float] = about["scales"]
        self._names = [repr(level) for level in about["levels"]]
        self._shift = np.load(folder / "model.npz")["shift"].astype(np.float64)
        self._network = (make_network or onnx_network)(folder)

    def forecast(self, asked: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Mean [n, H] and quantiles [n, Q, H] of series with `unique_id` and `y`."""
        y = np.array([one["y"][-self._lookback :] for one in asked], dtype=np.float64)
        own = np.array([self._scales.get(one["unique_id"], np.nan) for one in asked])[:, None]
        mean = y.mean(axis=1, keepdims=True)
        spread = np.sqrt(np.square(y - mean).mean(axis=1, keepdims=True))
        floor = np.where(np.isnan(own), UNSEEN_FLOOR * np.abs(mean), SCALE_FLOOR * own)
        scale = np.maximum(np.maximum(spread, floor), TINY)
        centre = y[:, -1:] if self._centre == "last" else mean
        z = ((y - centre) / scale).astype(np.float32)
        found, quantiles = self._network(z, np.ones_like(z))
        moved = quantiles * scale[..., None] + centre[..., None] + self._shift * scale[..., None]
        return found * scale + centre, np.sort(moved, axis=-1).transpose(0, 2, 1)

    def answers(self, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What a caller gets for each series, in lists."""
        mean, quantiles = self.forecast(asked)
        return [
            {"mean": one, "quantiles": dict(zip(self._names, each, strict=True))}
            for one, each in zip(mean.tolist(), quantiles.tolist(), strict=True)
        ]


def onnx_network(folder: Path) -> Network:
    """The network in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=providers)
    read = {one.name for one in session.get_inputs()}

    def run(z: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        feed = {"z": z, "observed": observed}
        given = {name: array for name, array in feed.items() if name in read}
        mean, quantiles = session.run(("mean", "quantiles"), given)
        return mean, quantiles

    return run
