"""A process that serves: what its environment hides, and what models import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flts_ray.serve.lean_process import WITHOUT, lean_environment


def run(code: str) -> str:
    """Output of a process with the environment of a replica."""
    path = lean_environment()["PYTHONPATH"].replace("${PYTHONPATH}", os.getcwd())
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_path_of_the_cluster_stays_behind_ours() -> None:
    assert lean_environment() == {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{WITHOUT}:${{PYTHONPATH}}",
    }


@pytest.mark.parametrize("hidden", ["pandas", "rich"])
def test_what_is_hidden_cannot_be_imported(hidden: str) -> None:
    assert (WITHOUT / f"{hidden}.py").is_file()
    code = f"""
try:
    import {hidden}
except ImportError as error:
    print(error)
"""
    assert "a process that serves forecasts" in run(code)


def test_tables_work_without_pandas() -> None:
    code = """
import pyarrow as pa
table = pa.table({"y": [[1.0], [2.0, 3.0]], "at": pa.array([1, 2], "timestamp[us]")})
print(table["y"].combine_chunks().flatten().to_numpy().tolist(), str(table["at"].to_numpy().dtype))
"""
    assert run(code).strip() == "[1.0, 2.0, 3.0] datetime64[us]"


def test_models_are_loaded_without_what_they_were_trained_with() -> None:
    heavy = {"torch", "pandas", "scipy", "sklearn", "prophet", "cmdstanpy", "mlflow", "onnx", "ray"}
    code = f"""
import sys
from flts_ray.models import lean
from flts_ray.models.base import KINDS
for kind in [*KINDS, "blend"]:
    lean.lean_restorer(kind)
print(sorted({heavy!r} & set(sys.modules)))
"""
    assert run(code).strip() == "[]"
