"""FastAPI as its tutorial has it: a body of pydantic's, the trained network run for each request.

python -m benchmarks.serving.with_fastapi_torch FOLDER PORT WORKERS
"""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving.model import Model, Network
from flts_ray.models.recurrent_net import Inputs, SegmentNet
from flts_ray.models.recurrent_shape import Shape


class Asked(BaseModel):
    unique_id: str
    start: str
    y: list[float]


def torch_network(folder: Path) -> Network:
    """The network as it was trained, eager, in float32 and one thread."""
    import json

    torch.set_num_threads(1)
    values = json.loads((folder / "model.json").read_text())["network"]
    named = {one.name: values[one.name] for one in fields(Shape)}
    shape = Shape(**(named | {"levels": tuple(values["levels"]), "categories": ()}))
    arrays = np.load(folder / "model.npz")
    weights = {n.removeprefix("net."): torch.tensor(arrays[n]) for n in arrays if n != "shift"}
    net = SegmentNet(shape)
    net.load_state_dict(weights)
    net.eval()

    def run(z: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nothing = torch.zeros(len(z), 0)
        with torch.inference_mode():
            inputs = Inputs(
                torch.from_numpy(z), torch.from_numpy(observed), nothing, nothing, nothing
            )
            mean, quantiles = net(inputs)
        return mean.numpy().astype(np.float64), quantiles.numpy().astype(np.float64)

    return run


def make_app() -> FastAPI:
    """One worker's app."""
    app = FastAPI()
    model = Model(Path(os.environ["SERVING_FOLDER"]), torch_network)

    @app.post("/forecast")
    def forecast(asked: Asked) -> dict[str, Any]:
        return model.answers([asked.model_dump()])[0]

    return app


def main(folder: str, port: str, workers: str) -> None:
    os.environ["SERVING_FOLDER"] = folder
    uvicorn.run(
        "benchmarks.serving.with_fastapi_torch:make_app", factory=True, port=int(port),
        workers=int(workers), access_log=False, log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:4])
