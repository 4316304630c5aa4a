"""LitServe with ONNX Runtime and its own batching.

    python -m benchmarks.serving.with_litserve FOLDER PORT WORKERS
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
    about = os.environ
    api = Forecasts(
        max_batch_size=int(about.get("LIT_BATCH", "64")),
        batch_timeout=float(about.get("LIT_WAIT", "0.001")),
    )
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(about.get("LIT_WORKERS", workers)),
        timeout=60, fast_queue=about.get("LIT_FAST", "1") == "1",
    )  # fmt: skip
    server.run(
        host="127.0.0.1", port=int(port), num_api_servers=int(about.get("LIT_APIS", workers)),
        log_level="warning", generate_client_file=False, access_log=False,
        api_server_worker_type=about.get("LIT_TYPE", "process"),
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:4])
