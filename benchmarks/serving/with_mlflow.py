"""`mlflow models serve` with ONNX Runtime, which does not batch.

python -m benchmarks.serving.with_mlflow FOLDER PORT WORKERS
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import mlflow


class Forecasts(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """The model as MLflow stores it."""

    def load_context(self, context: Any) -> None:
        from benchmarks.serving.model import Model

        self.model = Model(Path(context.artifacts["folder"]))

    def predict(self, context: Any, model_input: Any, params: Any = None) -> list[dict[str, Any]]:
        return self.model.answers(model_input.to_dict("records"))


def main(folder: str, port: str, workers: str) -> None:
    from benchmarks.serving import with_mlflow

    stored, parts = Path(folder) / "mlflow", Path(folder) / "mlflow-parts"
    for old in (stored, parts):
        shutil.rmtree(old, ignore_errors=True)
    parts.mkdir()
    for name in ("model.json", "model.npz", "model.onnx"):
        shutil.copy(Path(folder) / name, parts)
    os.chdir(folder)
    mlflow.pyfunc.save_model(
        stored, python_model=with_mlflow.Forecasts(), artifacts={"folder": str(parts)},
        pip_requirements=["mlflow", "onnxruntime"],
    )  # fmt: skip
    command = ["-m", "mlflow", "models", "serve", "--model-uri", str(stored), "--port", port]
    more = ["--host", "127.0.0.1", "--workers", workers, "--env-manager", "local"]
    # It starts `uvicorn` by name.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    os.execve(sys.executable, [sys.executable, *command, *more], os.environ | {"PATH": path})


if __name__ == "__main__":
    main(*sys.argv[1:4])
