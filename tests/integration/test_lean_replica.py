"""What a process that serves imports, whichever model is champion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flts_ray.models import artifact
from flts_ray.models.base import Task, fit_fully
from flts_ray.models.blend import WeightTable, blend_of
from flts_ray.models.lean import lean_copy, load_lean
from flts_ray.prepare.arrays import windows_at
from flts_ray.serve.lean_process import WITHOUT
from flts_ray.serve.parity import request_of
from tests.served import LEVELS, true_calendar
from tests.synthetic import seasonal_set

pytestmark = pytest.mark.integration
TASK = Task(6, LEVELS)
DATA = true_calendar(seasonal_set(length=300))
QUICK = {"hidden": 4, "epochs": 1, "windows_per_epoch": 64, "refit_epochs": 0}
MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "naive": ("seasonal_naive", {"season": 24}),
    "ar": ("ar", {}),
    "gru": ("gru", QUICK),
    "lstm": ("lstm", QUICK),
    "own": ("gru", QUICK | {"group": "per_series"}),
    "prophet": ("prophet", {}),
}
HEAVY = (
    "torch", "pandas", "prophet", "cmdstanpy", "mlflow", "matplotlib", "sklearn", "scipy", "onnx",
    "ray.data", "ray.tune", "ray.train", "typer", "rich", "kafka", "minio",
)  # fmt: skip
PROCESS = """
import asyncio, json, sys
from pathlib import Path
import ray.serve._private.replica
from flts_ray.serve import replica, source
from flts_ray.config_serve import ServeConfig
from flts_ray.models.lean import load_lean
from flts_ray.serve.app import build_app
from flts_ray.serve.engine import ModelSlot, ServedModel, warm
import httpx

folder, body = Path(sys.argv[1]), sys.stdin.buffer.read()

async def ask():
    slot = ModelSlot("demo", ServeConfig())
    model = ServedModel("demo", "1", "0" * 64, load_lean(folder))
    warm(model)
    slot.install(model)
    transport = httpx.ASGITransport(build_app(slot))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as http:
        answer = await http.post("/v1/forecast", content=body)
        page = await http.get("/openapi.json")
    slot.close()
    return answer.json(), page.status_code

answer, page = asyncio.run(ask())
print(json.dumps({"answer": answer, "page": page, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lean blend with a member of every kind."""
    root = tmp_path_factory.mktemp("champion")
    fits = [(name, fit_fully(kind, DATA, TASK, given)) for name, (kind, given) in MEMBERS.items()]
    weights = np.full((1, len(fits)), 1 / len(fits))
    table = WeightTable.of(weights, np.zeros(DATA.n_series, np.int64), np.zeros((6, len(LEVELS))))
    artifact.save(blend_of(fits, table), root / "full")
    with lean_copy(root / "full") as lean:
        artifact.save(load_lean(lean), root / "lean")
    return root / "lean"


def test_a_replica_serves_every_kind_without_what_it_was_trained_with(champion: Path) -> None:
    windows = windows_at(DATA, np.array([0, 2]), np.array([250, 260]), 120, 6)
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(champion)],
        input=json.dumps(request_of(windows, LEVELS)).encode(),
        env={**os.environ, "PYTHONPATH": f"{WITHOUT}:{Path.cwd()}"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout.splitlines()[-1])
    modules = set(said["modules"])
    assert not modules & set(HEAVY), sorted(modules & set(HEAVY))
    assert "onnxruntime" in modules
    assert said["page"] == 200
    wanted = load_lean(champion).forecast(windows)
    for i, one in enumerate(said["answer"]["forecasts"]):
        np.testing.assert_allclose(one["mean"], wanted.mean[i], rtol=1e-6)
