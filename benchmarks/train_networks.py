"""A network for every series: one batched job beside a loop of single models.

    python -m benchmarks.train_networks                      # 1,000 series, then 10 to 10,000
    python -m benchmarks.train_networks --series 200 --grow 10 100 --output networks.json

Both ways fit the same networks (`group: per_series` against one fit of the same sizes on one series
at a time) to the same hourly series with a daily season, on one thread in one process. The loop
fits a sample of the series and counts for all of them. Memory is the peak of a process of its own
for each number of series, less that of the same process before the fit (Linux).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flts_ray.models.base import Compute, Task, fit_fully, forecaster
from flts_ray.panel import Contract
from flts_ray.prepare.arrays import SeriesArrays, SeriesStats

LENGTH, SEASON = 600, 24
TASK = Task(horizon=24, levels=(0.025, 0.1, 0.5, 0.9, 0.975))


def panel(n_series: int, seed: int = 0) -> SeriesArrays:
    """Series of their own level and daily shape, with noise; 60/20/20 % split."""
    rng = np.random.default_rng(seed)
    steps = np.arange(LENGTH)
    level = rng.lognormal(2.0, 1.0, (n_series, 1))
    shape = rng.standard_normal((n_series, SEASON))
    y = level * (5.0 + shape[:, steps % SEASON] + 0.3 * rng.standard_normal((n_series, LENGTH)))
    train_end, valid_end = LENGTH * 6 // 10, LENGTH * 8 // 10
    known = y[:, :train_end]
    stats = SeriesStats(
        ids=tuple(f"s{i}" for i in range(n_series)),
        mean=known.mean(axis=1),
        std=known.std(axis=1),
        scale=np.abs(known[:, SEASON:] - known[:, :-SEASON]).mean(axis=1),
        clip_lo=np.full(n_series, -np.inf),
        clip_hi=np.full(n_series, np.inf),
    )
    return SeriesArrays(
        contract=Contract(freq="1h", season=SEASON),
        stats=stats,
        offsets=np.arange(n_series + 1) * LENGTH,
        start_us=np.zeros(n_series, dtype=np.int64),
        train_end=np.full(n_series, train_end),
        valid_end=np.full(n_series, valid_end),
        y=y.ravel(),
        observed=np.ones(y.size, dtype=bool),
        future=np.zeros((y.size, 0), dtype=np.float32),
        past=np.zeros((y.size, 0), dtype=np.float32),
        static=np.zeros((n_series, 0), dtype=np.float32),
    )


def fit_all(kind: str, data: SeriesArrays) -> tuple[float, float, dict[str, float]]:
    """CPU and wall seconds of one batched fit, and its last metrics."""
    cpu, wall = time.process_time(), time.perf_counter()
    *_, last = forecaster(kind).fit(data, TASK, {"group": "per_series"}, Compute())
    return time.process_time() - cpu, time.perf_counter() - wall, last.metrics


def fit_one_by_one(kind: str, data: SeriesArrays, sample: int) -> tuple[float, float, float]:
    """CPU and wall seconds and mean validation loss of `sample` fits of one series each."""
    batched = forecaster(kind).fit(data.take([0]), TASK, {"group": "per_series"}, Compute())
    same = {**next(iter(batched)).fitted.spec.params, "group": "global"}
    losses = []
    cpu, wall = time.process_time(), time.perf_counter()
    for row in np.linspace(0, data.n_series - 1, sample).astype(int):
        steps = list(forecaster(kind).fit(data.take([row]), TASK, same, Compute()))
        losses.append(min(step.metrics["valid_loss"] for step in steps))
    return time.process_time() - cpu, time.perf_counter() - wall, float(np.mean(losses))


def compare(kind: str, n_series: int, sample: int) -> dict[str, Any]:
    """Series a second of CPU both ways."""
    data = panel(n_series)
    fit_fully(kind, data.take([0]), TASK, {"group": "per_series", "epochs": 1})  # warm up
    single_cpu, single_wall, single_loss = fit_one_by_one(kind, data, sample)
    cpu, wall, metrics = fit_all(kind, data)
    return {
        "model": kind,
        "series": n_series,
        "loop": {"series_per_cpu_s": sample / single_cpu, "series_per_s": sample / single_wall},
        "batched": {"series_per_cpu_s": n_series / cpu, "series_per_s": n_series / wall},
        "times_faster_cpu": n_series / cpu * single_cpu / sample,
        "times_faster_wall": n_series / wall * single_wall / sample,
        "valid_loss": {"loop": single_loss, "batched": metrics["valid_loss"]},
    }


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
    cpu, wall, metrics = fit_all(kind, data)
    return {
        "model": kind,
        "series": n_series,
        "cpu_s": cpu,
        "wall_s": wall,
        "series_per_cpu_s": n_series / cpu,
        "peak_mib": _peak_mib() - before,
        "valid_loss": metrics["valid_loss"],
    }


def growth(kind: str, counts: list[int]) -> Iterator[dict[str, Any]]:
    """`measure` in a fresh process for each number of series."""
    context = multiprocessing.get_context("spawn")
    for count in counts:
        with context.Pool(1) as pool:
            yield pool.apply(measure, (kind, count))


def show_comparison(found: dict[str, Any]) -> None:
    print(f"{found['model']}, {found['series']:,} series of {LENGTH} steps, one thread")
    for way in ("loop", "batched"):
        rate, loss = found[way], found["valid_loss"][way]
        print(
            f"  {way:8} {rate['series_per_cpu_s']:8.1f} series per CPU second "
            f"{rate['series_per_s']:8.1f} per second   validation loss {loss:.4f}"
        )
    cpu, wall = found["times_faster_cpu"], found["times_faster_wall"]
    print(f"  {cpu:.1f} times faster in CPU, {wall:.1f} in time")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("gru", "lstm"), default="gru")
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=20, help="series that the loop fits")
    parser.add_argument("--grow", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    comparison = compare(given.model, given.series, given.sample)
    show_comparison(comparison)
    rows = []
    for row in growth(given.model, given.grow):
        rows.append(row)
        print(
            f"  {row['series']:6,} series {row['cpu_s']:8.1f} CPU s {row['series_per_cpu_s']:8.1f} "
            f"series per CPU s {row['peak_mib']:8.0f} MiB",
            flush=True,
        )
    if given.output:
        given.output.write_text(json.dumps({"comparison": comparison, "growth": rows}, indent=1))


if __name__ == "__main__":
    main()
