"""Forecasts of one model of another library for one task, in a process of its own.

    .venv-bench/bin/python -m benchmarks.peers.run --library neuralforecast --model NHITS \\
        --task .flts/benchmark-accuracy/etth1-96/task.npz --output nhits.npz --budget 300

CPU seconds are user and system time of this process and its ended children. `fit` and `predict`
are counted apart, imports and reading in neither. A network that has spent the budget stops where
it is, with the weights that were best on validation, and says so.
"""

from __future__ import annotations

import argparse
import json
import resource
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.meter import Meter, cpu_seconds
from benchmarks.peers.protocol import ForecastData, TaskData
from benchmarks.peers.settings import FEW_ONLY, PEERS, settings_of

HARD_LIMIT = 6
"""A process that has used this many budgets of CPU is ended by the system."""


def chosen_windows(task: TaskData, model: str) -> np.ndarray:
    """The windows a model is run on, int64, rising."""
    return np.flatnonzero(task.few) if model in FEW_ONLY else np.arange(len(task.series))


def peer_settings(task: TaskData, library: str, model: str) -> dict[str, Any]:
    """`settings_of` for a task in memory."""
    known, past = (columns.shape[1] > 0 for columns in (task.known, task.past))
    return settings_of(library, model, task.horizon, task.season, known, past)


def forecast(task: TaskData, library: str, model: str, budget_s: float) -> ForecastData:
    """Fit and forecast with one model. Whatever the library raises is raised."""
    runner = import_module(f"benchmarks.peers.with_{library}")
    settings, meter = peer_settings(task, library, model), Meter(budget_s)
    windows = chosen_windows(task, model)
    mean, quantiles = runner.forecast(task, model, settings, windows, meter)
    about = {
        "settings": settings,
        "fit_cpu_s": meter.spent.get("fit", 0.0),
        "predict_cpu_s": meter.spent.get("predict", 0.0),
        "process_cpu_s": cpu_seconds(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cut_off": meter.cut_off,
        "notes": meter.notes,
        "version": version(library),
    }
    return ForecastData(windows, mean, quantiles, about)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", choices=tuple(PEERS), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=300.0, help="CPU seconds of a fit")
    given = parser.parse_args()
    hard = int(HARD_LIMIT * given.budget) + 60
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard + 5))
    task = TaskData.load(given.task)
    found = forecast(task, given.library, given.model, given.budget)
    found.save(given.output)
    print(json.dumps(found.about))


if __name__ == "__main__":
    main()
