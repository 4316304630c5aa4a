"""A network for every series: one batched job beside a loop of single models.

    python -m benchmarks.train_networks                      # 1,000 series, then 1 to 10,000
    python -m benchmarks.train_networks --series 200 --grow 10 100 --output networks.json
    python -m benchmarks.train_networks --device cuda        # and one network for all, beside it

Both ways fit the same networks (`group: per_series` against one fit of the same sizes on one series
at a time) to the same hourly series with a daily season, with the same settings, epochs and early
stopping. The loop runs on one thread, as a loop does, the batched job on one and on `--threads`.
The loop fits a sample of the series, half of it before and half after the batched job, and counts
for all of them. Growth is measured on `--threads` in a process of its own for each number of
series; memory is the peak of that process (Linux), and how much of it the fit added. Figures are
written as they come: a run that was cut short goes on where it stopped, one with other settings
begins anew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.hourly import SEASON, hourly_set
from flts_ray.models.base import Compute, Task, fit_fully, forecaster
from flts_ray.prepare.arrays import SeriesArrays

OUTPUT = Path(__file__).parent / "results" / "train_networks.json"
LENGTH = 600
TASK = Task(horizon=24, levels=(0.025, 0.1, 0.5, 0.9, 0.975))


def panel(n_series: int, seed: int = 0) -> SeriesArrays:
    """Series of their own level and daily shape, with noise; 60/20/20 % split."""
    rng = np.random.default_rng(seed)
    steps = np.arange(LENGTH)
    level = rng.lognormal(2.0, 1.0, (n_series, 1))
    shape = rng.standard_normal((n_series, SEASON))
    y = level * (5.0 + shape[:, steps % SEASON] + 0.3 * rng.standard_normal((n_series, LENGTH)))
    return hourly_set(y)


def fit_all(kind: str, data: SeriesArrays, compute: Compute, group: str) -> dict[str, float]:
    """Series a second of CPU and of time in one fit, and its last validation loss."""
    cpu, wall = time.process_time(), time.perf_counter()
    *_, last = forecaster(kind).fit(data, TASK, {"group": group}, compute)
    return _rates(data.n_series, cpu, wall, last.metrics["valid_loss"])


def fit_one_by_one(
    kind: str, data: SeriesArrays, rows: Sequence[int], compute: Compute
) -> dict[str, float]:
    """The same of fits of one series each, with their mean validation loss."""
    batched = forecaster(kind).fit(data.take([0]), TASK, {"group": "per_series"}, compute)
    same = {**next(iter(batched)).fitted.spec.params, "group": "global"}
    losses = []
    cpu, wall = time.process_time(), time.perf_counter()
    for row in rows:
        steps = list(forecaster(kind).fit(data.take([row]), TASK, same, compute))
        losses.append(min(step.metrics["valid_loss"] for step in steps))
    return _rates(len(rows), cpu, wall, float(np.mean(losses)))


def _rates(series: int, cpu: float, wall: float, loss: float) -> dict[str, float]:
    """cpu, wall: clocks at the start."""
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "series_per_cpu_s": series / spent[0],
        "series_per_s": series / spent[1],
        "valid_loss": loss,
    }


def compare(kind: str, n_series: int, sample: int, threads: int, device: str) -> dict[str, Any]:
    """Series a second both ways, on one thread and on several."""
    data, one = panel(n_series), Compute(1, device)
    fit_fully(kind, data.take([0]), TASK, {"group": "per_series", "epochs": 1}, one)  # warm up
    rows = np.linspace(0, n_series - 1, sample).astype(int).tolist()
    before = fit_one_by_one(kind, data, rows[::2], one)
    batched = {
        f"batched on {count}": fit_all(kind, data, Compute(count, device), "per_series")
        for count in sorted({1, threads})
    }
    after = fit_one_by_one(kind, data, rows[1::2], one)
    loop = {name: (before[name] + after[name]) / 2 for name in before}
    found: dict[str, Any] = {"model": kind, "series": n_series, "device": device, "loop": loop}
    for name, rates in batched.items():
        times = {
            "times_faster_cpu": rates["series_per_cpu_s"] / loop["series_per_cpu_s"],
            "times_faster": rates["series_per_s"] / loop["series_per_s"],
        }
        found[name] = rates | times
    if device != "cpu":
        for place in ("cpu", device):
            found[f"one network on {place}"] = fit_all(kind, data, Compute(1, place), "global")
    return found


def _peak_mib() -> float:
    """Most memory this process ever had, from Linux; `getrusage` would count its parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(kind: str, n_series: int, threads: int) -> dict[str, Any]:
    """Speed and memory of one batched fit, in this process."""
    torch.set_num_threads(1)
    fit_fully(kind, panel(2), TASK, {"group": "per_series", "epochs": 1})
    data = panel(n_series)
    before = _peak_mib()
    found = fit_all(kind, data, Compute(threads), "per_series")
    peak = _peak_mib()
    memory = {"peak_mib": peak, "fit_mib": peak - before}
    return {"model": kind, "series": n_series, "threads": threads, **found, **memory}


def in_own_process(kind: str, n_series: int, threads: int) -> dict[str, Any]:
    """`measure` in a process that has done nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (kind, n_series, threads))


def show_comparison(found: dict[str, Any]) -> None:
    print(f"\n{found['model']}, {found['series']:,} series of {LENGTH} steps, {found['device']}\n")
    print("| way | series per CPU second | series per second | validation loss | times faster |")
    print("|---|---|---|---|---|")
    for way, rate in found.items():
        if not isinstance(rate, dict):
            continue
        faster = "1"
        if "times_faster" in rate:
            faster = f"{rate['times_faster']:.1f} ({rate['times_faster_cpu']:.1f} in CPU)"
        print(
            f"| {way} | {rate['series_per_cpu_s']:.2f} | {rate['series_per_s']:.2f} "
            f"| {rate['valid_loss']:.4f} | {faster} |"
        )


def show_growth(rows: Sequence[dict[str, Any]]) -> None:
    print("\n| series | seconds | CPU seconds | series per second | peak MiB | of the fit |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        count = row["series"]
        print(
            f"| {count:,} | {count / row['series_per_s']:.1f} "
            f"| {count / row['series_per_cpu_s']:.1f} | {row['series_per_s']:.1f} "
            f"| {row['peak_mib']:.0f} | {row['fit_mib']:.0f} |"
        )


def _read(output: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Figures that an earlier run with this setting has left, or none."""
    left = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    done = left.get("done", True) or left.get("setting") != setting
    return {"setting": setting, "growth": []} if done else left


def _write(output: Path, found: dict[str, Any]) -> None:
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("gru", "lstm"), default="gru")
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=40, help="series that the loop fits")
    parser.add_argument("--grow", type=int, nargs="*", default=[1, 10, 100, 1000, 10_000])
    parser.add_argument("--threads", type=int, default=2, help="of the batched job")
    parser.add_argument("--device", default="cpu", help="where networks train: cpu, cuda or auto")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="figures as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    setting = {name: value for name, value in vars(given).items() if name != "output"}
    found = _read(given.output, setting)
    if "comparison" not in found:
        found["comparison"] = compare(
            given.model, given.series, given.sample, given.threads, given.device
        )
        _write(given.output, found | {"done": False})
    show_comparison(found["comparison"])
    for count in given.grow[len(found["growth"]) :]:
        found["growth"].append(in_own_process(given.model, count, given.threads))
        _write(given.output, found | {"done": False})
    show_growth(found["growth"])
    _write(given.output, found | {"done": True})


if __name__ == "__main__":
    main()
