"""Accuracy and cost of the project's models beside what one would pick instead.

    make bench-setup                                    # once: .venv-bench with the other libraries
    python -m benchmarks.accuracy                       # everything that is not there yet
    python -m benchmarks.accuracy --only ours --refresh # the project's own models again
    python -m benchmarks.accuracy --task etth1-96 --model NHITS --refresh
    python -m benchmarks.accuracy --quick               # a few minutes, beside the results
    python -m benchmarks.accuracy --render              # tables and picture again, runs nothing

Every model forecasts the same windows of the test span and is judged by one judge. Rows are kept
in `benchmarks/results/accuracy.json`; `accuracy.md` and `accuracy.png` beside it are drawn again
after each, so a run may be ended at any time and goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.accuracy_report import draw, markdown
from benchmarks.accuracy_rows import (
    OUR_MODELS,
    OURS,
    SINGLE,
    Cell,
    Row,
    Setting,
    Table,
    cells,
    row_key,
    run_cell,
    write_task,
)
from benchmarks.accuracy_tasks import JOBS, Job, few_stride, job_config
from benchmarks.peers.protocol import LEVELS, TaskData
from benchmarks.peers.settings import PEERS

OUTPUT = Path("benchmarks/results/accuracy.json")
ROOT = Path(".flts/benchmark-accuracy")
SHOWN = ("etth1-96", "etth1-192", "etth1-336", "etth1-720", "lte-1", "lte-30", "demo-48")
"""Tasks in the order of the tables."""
QUICK_BUDGET_S = 10.0
QUICK = (
    Cell("demo-48", "statsforecast", "SeasonalNaive"), Cell("demo-48", "prophet", "Prophet"),
    Cell("demo-48", "neuralforecast", "NHITS"), Cell("demo-48", OURS, "seasonal_naive"),
    Cell("demo-48", OURS, "ar"),
)  # fmt: skip
METHOD = """\
Every model forecasts the same windows of the test span, at every step of it, and one judge
scores them all. Nobody learns from the test span. Networks (`gru`, `lstm` and those of
neuralforecast and darts) learn from the training span and stop early on the validation span,
with the weights that were best there; all other models learn from both. Bands of the project's
models are calibrated on validation. One network serves all series of a task. The project's
models are what `flts train` makes of the configurations in `configs/`: `champion` is what it
would put before its gate, the best on validation, and its CPU seconds are those of all models
together. Other libraries are set up as their own documentation advises for the size
(`benchmarks/peers/settings.py`); where a task has covariates (demand: temperature, calendar,
working day; LTE: load of the cell), their networks are fitted with and without, half of the
budget each, and validation chooses.

A fit of another library's network may use {budget:g} CPU seconds; one that was stopped by that
says so. MSTL and AutoETS are fitted again at every origin, hence run on every k-th window only,
and all others are scored on those too. Prophet is fitted once a series. The MAE is that of the
median, the MSE that of the mean (of neuralforecast and darts, trained for quantiles: of the
median). CPU seconds are user and system time of one process with one thread, without imports;
other programs on the machine disturb them less than seconds by the clock, but shared caches and
memory still cost. A dash: no quantiles.""".splitlines()
COMMANDS = (
    "make bench-setup",
    "python -m benchmarks.accuracy --budget {budget:g}",
    "python -m benchmarks.accuracy --only ours --refresh   # the project's own models again",
)


def describe(
    jobs: Mapping[str, Job], tasks: Mapping[str, TaskData], setting: Setting
) -> dict[str, Any]:
    """What the tables need to know besides their rows."""
    return {
        "method": [line.format(budget=setting.budget_s) for line in METHOD],
        "commands": [line.format(budget=setting.budget_s) for line in COMMANDS],
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "levels": ", ".join(f"{level:g}" for level in LEVELS),
        "budget_s": setting.budget_s,
        "tasks": {
            name: describe_task(jobs[name], tasks[name], setting) for name in SHOWN if name in tasks
        },
    }


def describe_task(job: Job, task: TaskData, setting: Setting) -> dict[str, Any]:
    units = job_config(job, setting.root).data.units or "the input's units"
    long = "standard deviations of each series' training span (z-scores)" if job.scaled else units
    return {
        "title": job.title,
        "units": long,
        "short_units": "z-scores" if job.scaled else units,
        "apart": job.apart,
        "series": [str(name) for name in task.ids],
        "horizon": task.horizon,
        "windows": len(task.series),
        "few": int(task.few.sum()),
        "stride": few_stride(task.series, task.season),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def render(about: Mapping[str, Any], rows: Sequence[Row], output: Path) -> None:
    """Tables and picture beside the JSON file."""
    output.with_suffix(".md").write_text(markdown(about, rows), encoding="utf-8")
    draw(about, rows, output.with_suffix(".png"))


def run(
    wanted: Sequence[Cell],
    setting: Setting,
    table: Table,
    output: Path,
    *,
    refresh: bool = False,
    jobs: int = 1,
) -> None:
    """Run what is missing of the wanted cells, and keep the files in step."""
    tasks = {name: write_task(job, setting.root) for name, job in JOBS.items()}
    about = describe(JOBS, tasks, setting)

    def one(cell: Cell) -> tuple[Row, float]:
        began = time.monotonic()
        return run_cell(cell, tasks[cell.task], setting), time.monotonic() - began

    left = [
        cell
        for cell in wanted
        if refresh or not table.has(cell, row_key(cell, tasks[cell.task], setting))
    ]
    done = 0
    for stage in stages(left):
        with ThreadPoolExecutor(jobs) as pool:
            for ended in as_completed([pool.submit(one, cell) for cell in stage]):
                row, seconds = ended.result()
                done += 1
                table.put(row, about)
                render(about, table.sorted(), output)
                print(f"{done}/{len(left)} {_line(row, seconds)}", flush=True)
    table.write(about)
    render(about, table.sorted(), output)


def stages(wanted: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that may run side by side: what is put together waits for its members."""

    def stage(cell: Cell) -> int:
        if cell.library != OURS:
            return 0
        return 1 if cell.model in SINGLE else 2 + OUR_MODELS.index(cell.model)

    numbers = sorted({stage(cell) for cell in wanted})
    return [[cell for cell in wanted if stage(cell) == number] for number in numbers]


def _line(row: Row, seconds: float) -> str:
    name = f"{row['task']} {row['library']}/{row['model']}"
    if row["error"]:
        return f"{name}: no result, {row['error']}"
    few = row["scores"]["few"]
    cut = ", cut off" if row["cut_off"] else ""
    return (
        f"{name}: MSE {few['mse']:.4g} MAE {few['mae']:.4g} on the subsample, "
        f"fit {row['fit_cpu_s']:.1f} + predict {row['predict_cpu_s']:.1f} CPU s "
        f"({seconds:.0f} s by the clock{cut})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", action="append", choices=tuple(JOBS), help="repeatable")
    parser.add_argument("--only", action="append", choices=(OURS, *PEERS), help="repeatable")
    known = sorted({*OUR_MODELS, *(model for models in PEERS.values() for model in models)})
    parser.add_argument("--model", action="append", choices=known, help="repeatable")
    parser.add_argument("--refresh", action="store_true", help="run what is there already again")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--render", action="store_true", help="run nothing")
    parser.add_argument("--budget", type=float, default=200.0, help="CPU seconds of a peer's fit")
    parser.add_argument("--jobs", type=int, default=1, help="models side by side")
    parser.add_argument("--python", type=Path, default=Path(".venv-bench/bin/python"))
    parser.add_argument("--output", type=Path, help=f"JSON file, by default {OUTPUT}")
    given = parser.parse_args()
    setting = Setting(ROOT, given.python, QUICK_BUDGET_S if given.quick else given.budget)
    output = given.output or (ROOT / "quick.json" if given.quick else OUTPUT)
    wanted = cells(given.task or tuple(JOBS), given.only or (), given.model or ())
    if given.quick:
        wanted = list(QUICK)
    if given.render:
        wanted = []
    table = Table(output)
    run(wanted, setting, table, output, refresh=given.refresh, jobs=given.jobs)


if __name__ == "__main__":
    main()
