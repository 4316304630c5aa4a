"""A network for every series: one batched job beside a loop of single models.

    python -m benchmarks.train_networks                      # 1,000 series, then 10 to 10,000
    python -m benchmarks.train_networks --series 200 --grow 10 100 --output networks.json
    python -m benchmarks.train_networks --device cuda        # and one network for all, beside it

Both ways fit the same networks (`group: per_series` against one fit of the same sizes on one series
at a time) to the same hourly series with a daily season. The loop runs on one thread, as a loop
does, the batched job on one and on `--threads`. The loop fits a sample of the series, half of it
before and half after the batched job, and counts for all of them. Memory is the peak of a process
of its own for each number of series, less that of the same process before the fit (Linux).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.hourly import SEASON, hourly_set
from flts_ray.models.base import Compute, Task, fit_fully, forecaster
from flts_ray.prepare.arrays import SeriesArrays

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


def measure(kind: str, n_series: int) -> dict[str, Any]:
    """CPU seconds, memory and size of the weights of one batched fit, in this process."""
    torch.set_num_threads(1)
    fit_fully(kind, panel(2), TASK, {"group": "per_series", "epochs": 1})
    data = panel(n_series)
    before = _peak_mib()
    found = fit_all(kind, data, Compute(), "per_series")
    memory = {"peak_mib": _peak_mib() - before}
    return {"model": kind, "series": n_series, **found, **memory}


def growth(kind: str, counts: list[int]) -> Iterator[dict[str, Any]]:
    """`measure` in a fresh process for each number of series."""
    context = multiprocessing.get_context("spawn")
    for count in counts:
        with context.Pool(1) as pool:
            yield pool.apply(measure, (kind, count))


def show_comparison(found: dict[str, Any]) -> None:
    print(f"{found['model']}, {found['series']:,} series of {LENGTH} steps, {found['device']}")
    for way, rate in found.items():
        if not isinstance(rate, dict):
            continue
        print(
            f"  {way:24} {rate['series_per_cpu_s']:8.1f} series per CPU second "
            f"{rate['series_per_s']:8.1f} per second   validation loss {rate['valid_loss']:.4f}"
        )
        if "times_faster" in rate:
            cpu, wall = rate["times_faster_cpu"], rate["times_faster"]
            print(f"  {'':24} {cpu:.1f} times faster in CPU, {wall:.1f} in time")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("gru", "lstm"), default="gru")
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=20, help="series that the loop fits")
    parser.add_argument("--grow", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--threads", type=int, default=2, help="of the batched job")
    parser.add_argument("--device", default="cpu", help="where networks train: cpu, cuda or auto")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    comparison = compare(given.model, given.series, given.sample, given.threads, given.device)
    show_comparison(comparison)
    rows = []
    for row in growth(given.model, given.grow):
        rows.append(row)
        print(
            f"  {row['series']:6,} series {row['series_per_cpu_s']:8.1f} per CPU second "
            f"{row['peak_mib']:8.0f} MiB   validation loss {row['valid_loss']:.4f}",
            flush=True,
        )
    if given.output:
        given.output.write_text(json.dumps({"comparison": comparison, "growth": rows}, indent=1))


if __name__ == "__main__":
    main()
