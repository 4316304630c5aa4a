"""LitServe with ONNX Runtime and its own batching.

    python -m benchmarks.serving.with_litserve FOLDER PORT WORKERS

As many API processes as the others have workers, and one process for the model: at 32 callers a
second one made it slower. Either queue, and waits of 0 to 5 ms, could not be told apart.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]

from benchmarks.serving.model import Model


class Forecasts(litserve.LitAPI):  # type: ignore[misc]
    """LitServe hands `predict` the decoded requests of a batch as a list."""

    def setup(self, device: str) -> None:
        self.model = Model(Path(os.environ["SERVING_FOLDER"]))

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs

    def predict(self, batch: Any) -> Any:
        return self.model.answers(batch)

    def unbatch(self, output: Any) -> Any:
        return output


def main(folder: str, port: str, workers: str) -> None:
    os.environ["SERVING_FOLDER"] = folder
    api = Forecasts(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=1, timeout=60, fast_queue=True
    )
    server.run(
        host="127.0.0.1", port=int(port), num_api_servers=int(workers), log_level="warning",
        generate_client_file=False, access_log=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:4])
