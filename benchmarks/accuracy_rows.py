"""The rows of the accuracy benchmark: which there are, which are there already, how one is run.

Design choices: every model is a process of its own, so that CPU seconds are its own and nothing it
does ends the others; a row is known by a hash of all it depends on (the task's numbers, settings,
budget, source of the runner), so that a run that was interrupted goes on where it was; what fails
is a row with its error; the file of all rows is replaced after every row, so it is whole whenever
it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy_judge import judge
from benchmarks.accuracy_tasks import JOBS, Job, job_arrays, job_config, task_of
from benchmarks.peers.protocol import ForecastData, TaskData
from benchmarks.peers.run import peer_settings
from benchmarks.peers.settings import PEERS
from flts_ray.errors import DataError, FltsError

OURS = "ours"
NETWORKS = ("neuralforecast", "darts")
SINGLE = ("seasonal_naive", "ar", "prophet", "gru", "lstm")
OUR_MODELS = (*SINGLE, "blend", "champion")
HERE = Path(__file__).parent
SOURCES = {
    OURS: ("accuracy_ours.py", "accuracy_tasks.py", "../flts_ray/models", "../flts_ray/prepare",
           "../flts_ray/evaluate", "../flts_ray/tune"),
    **{library: (f"peers/with_{library}.py", "peers/requirements.txt") for library in PEERS},
}  # fmt: skip
"""What a row depends on besides its task and settings."""
PATIENCE_S = 4 * 3600
"""Wall-clock seconds after which a process is ended."""
TAIL = 400

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One model of one task. library: `ours` or a peer's."""

    task: str
    library: str
    model: str

    @property
    def name(self) -> str:
        return f"{self.library}/{self.model}"


@dataclass(frozen=True)
class Setting:
    """How cells are run. root: scratch folder. python: interpreter of the peers."""

    root: Path
    python: Path
    budget_s: float


Start = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def cells(tasks: Sequence[str], only: Sequence[str] = (), models: Sequence[str] = ()) -> list[Cell]:
    """What there is to run, peers first and the cheap ones before the networks.

    only: libraries; models: names; all without them.
    """
    ordered = [
        *(Cell(t, library, m) for t in tasks for library in PEERS for m in PEERS[library]),
        *(Cell(t, OURS, m) for t in tasks for m in OUR_MODELS),
    ]
    return [
        cell
        for cell in ordered
        if (not only or cell.library in only) and (not models or cell.model in models)
    ]


def write_task(job: Job, root: Path) -> TaskData:
    """The task's file below `root`, written again if its numbers changed."""
    config = job_config(job, root)
    task, path = task_of(job, config, job_arrays(config)), root / job.name / "task.npz"
    if not path.exists() or TaskData.load(path).digest() != task.digest():
        task.save(path)
    return task


def row_key(cell: Cell, task: TaskData, setting: Setting) -> str:
    """Hash of everything a row depends on."""
    about: dict[str, Any] = {"task": task.digest(), "model": cell.name}
    if cell.library == OURS:
        job = JOBS[cell.task]
        about["config"] = job_config(job, setting.root).canonical("models", "task", "split", "tune")
    else:
        about["settings"] = peer_settings(task, cell.library, cell.model)
        about["budget"] = setting.budget_s if cell.library in NETWORKS else None
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    shared = ("peers/training.py",) if cell.library in NETWORKS else ()
    for path in _files((*SOURCES[cell.library], *shared)):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _files(names: Sequence[str]) -> list[Path]:
    paths = [HERE / name for name in names]
    return [
        file for path in paths for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])
    ]


def run_cell(cell: Cell, task: TaskData, setting: Setting, start: Start | None = None) -> Row:
    """Run and judge one cell. What goes wrong is in `error`; nothing is raised for it."""
    key = row_key(cell, task, setting)
    output = setting.root / cell.task / f"{cell.library}-{cell.model}.npz"
    output.unlink(missing_ok=True)
    row: Row = {"task": cell.task, "library": cell.library, "model": cell.model, "key": key}
    try:
        done = (start or _start)(command(cell, setting, output))
    except subprocess.TimeoutExpired:
        return {**row, "error": f"ended after {PATIENCE_S / 3600:g} hours"}
    if done.returncode or not output.exists():
        return {**row, "error": _why(done)}
    try:
        found = ForecastData.load(output)
        scored = judge(task, found, scaled=JOBS[cell.task].scaled)
    except (FltsError, ValueError, KeyError, OSError) as error:
        return {**row, "error": f"its forecasts cannot be judged: {error}"}
    return {**row, **found.about, "error": None, "scores": scored}


def command(cell: Cell, setting: Setting, output: Path) -> list[str]:
    """The process that makes the forecasts of a cell."""
    if cell.library == OURS:
        return [
            sys.executable, "-m", "benchmarks.accuracy_ours", "--task", cell.task,
            "--model", cell.model, "--root", str(setting.root), "--output", str(output),
        ]  # fmt: skip
    return [
        str(setting.python), "-m", "benchmarks.peers.run", "--library", cell.library,
        "--model", cell.model, "--task", str(setting.root / cell.task / "task.npz"),
        "--output", str(output), "--budget", f"{setting.budget_s:g}",
    ]  # fmt: skip


def _start(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run(
        words, cwd=HERE.parent, env=environment, timeout=PATIENCE_S,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip


def _why(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        said = "out of CPU seconds" if done.returncode == -24 else "ended from outside"
        return f"{said} (signal {-done.returncode})"
    lines = [line for line in (done.stdout or "").splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit code {done.returncode}")[-TAIL:]


class Table:
    """All rows in one JSON file, which is replaced after every change."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[tuple[str, str, str], Row] = {}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, Mapping) or "rows" not in found:
                raise DataError(f"{path}: holds no rows of this benchmark; move it away")
            for row in found["rows"]:
                self.rows[row["task"], row["library"], row["model"]] = row

    def has(self, cell: Cell, key: str) -> bool:
        """Whether the row is there, went well and depends on nothing that has changed."""
        row = self.rows.get((cell.task, cell.library, cell.model))
        return row is not None and row["key"] == key and row["error"] is None

    def put(self, row: Row, about: Mapping[str, Any]) -> None:
        """Add or replace a row, and write the file."""
        self.rows[row["task"], row["library"], row["model"]] = row
        self.write(about)

    def sorted(self) -> list[Row]:
        """The rows in the order in which cells are listed."""
        order = [(cell.task, cell.library, cell.model) for cell in cells(tuple(JOBS))]
        return [self.rows[name] for name in order if name in self.rows]

    def write(self, about: Mapping[str, Any]) -> None:
        text = json.dumps({**about, "rows": self.sorted()}, indent=1, allow_nan=False)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(self._path)
