"""The house rules that a reader relies on: floors, light imports, short files and functions."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CLUSTERS

PACKAGE = Path(__file__).parents[2] / "flts_ray"
FLOORS = {
    "panel": 1, "schema": 1, "config": 1, "config_blend": 1, "config_serve": 1, "config_stream": 1,
    "errors": 1, "__init__": 1,
    "store": 2, "store_errors": 2, "s3_clients": 2, "atomic_files": 2, "local": 2,
    "streams": 2, "events": 2,
    "sources": 3, "prepare": 3,
    "models": 4,
    "evaluate": 5, "registry": 5, "promotions": 5, "runs": 5, "run_tables": 5,
    "tracking": 5, "champion": 5,
    "tune": 6, "serve": 6, "ingest": 6, "services": 6, "narrate": 6, "picture": 6,
    "pipeline": 7, "promote": 7, "sampled": 7,
    "jobs": 8, "report": 8, "report_models": 8, "report_calibration": 8, "report_bands": 8,
    "report_stream": 8,
    "cli": 9, "cli_stream": 9, "cli_dlq": 9, "cli_models": 9, "cli_serve": 9, "cli_options": 9,
    "cli_forecast": 9,
}  # fmt: skip
MAY_IMPORT = {
    "ray": (
        "tune/", "serve/", "jobs/", "prepare/dataset.py",
        "ingest/supervisor.py", "ingest/metrics.py", "ingest/compact_ray.py",
    ),
    "kafka": ("streams/kafka_python",),
    "confluent_kafka": ("streams/confluent",),
    "torch": ("models/recurrent",),
    "prophet": ("models/prophet_fit.py",),
    "onnx": ("models/onnx_graph.py",),
    "onnxruntime": ("models/onnx_fitted.py",),
    "mlflow": ("tracking.py", "runs.py", "registry.py", "local/"),
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_from_its_own_floor_or_below(path: Path) -> None:
    mine = FLOORS[room(path)]
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "flts_ray" and len(parts) > 1 and parts[1] in FLOORS:
            assert FLOORS[parts[1]] <= mine, f"{path.name} imports {name}"


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_heavy_libraries_are_imported_where_they_belong(library: str) -> None:
    allowed = MAY_IMPORT[library]
    for path in modules():
        place = str(path.relative_to(PACKAGE))
        if any(name.split(".")[0] == library for name in imports(path)):
            assert place.startswith(allowed), f"{place} imports {library}"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): imports(path)
        for path in modules()
    }
    edges = {m: {n for n in names if n in graph and n != m} for m, names in graph.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join((*trail, module))}"
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(edges):
        visit(module, ())


def test_files_and_functions_stay_short() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in modules()}
    assert {p.name: n for p, n in lines.items() if n > 400} == {}
    assert statistics.median(lines.values()) <= 150
    lengths: list[tuple[int, str]] = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                lengths.append((length, f"{path.name}:{node.name}"))
    assert [where for length, where in lengths if length > 60] == []
    sizes = sorted(length for length, _ in lengths)
    assert sizes[int(0.9 * len(sizes))] <= 30
    assert statistics.median(sizes) <= 14


@pytest.mark.parametrize("module", ["flts_ray", "flts_ray.config", "flts_ray.cli"])
def test_light_entry_points_load_nothing_heavy(module: str) -> None:
    heavy = {"ray", "torch", "prophet", "mlflow", "pandas", "matplotlib", "fastapi"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


def test_the_files_that_share_a_process_for_their_clusters_are_there() -> None:
    assert [name for name in sorted(CLUSTERS) if not (PACKAGE.parent / name).is_file()] == []
