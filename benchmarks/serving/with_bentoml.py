"""BentoML with ONNX Runtime and its adaptive batching.

    python -m benchmarks.serving.with_bentoml FOLDER PORT WORKERS

Batching was faster than none in three of four tries; with 10 ms of latency at most it refused
requests with 503, 1 s and 60 s could not be told apart. Metrics and the access log are off.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import bentoml  # type: ignore[import-not-found]

from benchmarks.serving.model import Model


@bentoml.service(
    workers=int(os.environ.get("SERVING_WORKERS", "1")),
    traffic={"timeout": 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Forecasts:
    """One process of it."""

    def __init__(self) -> None:
        self.model = Model(Path(os.environ["SERVING_FOLDER"]))

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)  # type: ignore[untyped-decorator]
    def forecast(self, series: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.model.answers(series)


def main(folder: str, port: str, workers: str) -> None:
    about = {
        "SERVING_FOLDER": folder,
        "SERVING_WORKERS": workers,
        "BENTOML_HOME": str(Path(folder) / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", port]
    place = "benchmarks.serving.with_bentoml:Forecasts"
    os.execve(sys.executable, [*command, place], os.environ | about)


if __name__ == "__main__":
    main(*sys.argv[1:4])
