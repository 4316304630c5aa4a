"""FastAPI tuned by hand: ONNX Runtime, micro-batches, orjson both ways, uvloop and httptools.

    python -m benchmarks.serving.with_fastapi_onnx FOLDER PORT WORKERS

At 32 callers batches in a thread were faster than in the event loop.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.serving.batching import MicroBatcher
from benchmarks.serving.model import Model

MOST = 64


def make_app() -> FastAPI:
    """One worker's app."""
    app = FastAPI()
    model = Model(Path(os.environ["SERVING_FOLDER"]))
    names = [repr(level) for level in (0.025, 0.1, 0.5, 0.9, 0.975)]

    def run(asked: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
        mean, quantiles = model.forecast(asked)
        return list(zip(np.ascontiguousarray(mean), np.ascontiguousarray(quantiles), strict=True))

    batcher = MicroBatcher(run, MOST)

    @app.post("/forecast")
    async def forecast(request: Request) -> Response:
        mean, quantiles = await batcher.submit(orjson.loads(await request.body()))
        answer = {"mean": mean, "quantiles": dict(zip(names, quantiles, strict=True))}
        body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type="application/json")

    return app


def main(folder: str, port: str, workers: str) -> None:
    os.environ["SERVING_FOLDER"] = folder
    uvicorn.run(
        "benchmarks.serving.with_fastapi_onnx:make_app", factory=True, port=int(port),
        workers=int(workers), access_log=False, log_level="warning", loop="uvloop",
        http="httptools", lifespan="off",
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:4])
