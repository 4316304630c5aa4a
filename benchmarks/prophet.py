"""Prophet for many series: one command beside a loop over `prophet` itself.

    python -m benchmarks.prophet                              # 1,000 hourly series of 1,000 points
    python -m benchmarks.prophet --series 100 --sample 4 --output prophet.json

Four parts. `ours`: all series fitted, corrected and calibrated (which fits them again without parts
of their history), refitted on the first 80 % and evaluated on the last 20 % in rolling windows of
24 steps, over Ray; and, in one process, one fit and one curve of each, which is what the loop does.
`loop`: plain `prophet`, `fit` and `predict` of the first 24 test steps, of a sample of the series
one after the other, once with its defaults and once with `uncertainty_samples=0`; both kinds of
forecast are judged on those steps. `calls`: one more forecast of 24 steps from a fitted model,
`Prophet.predict` without uncertainty samples beside the same curve from `evaluate` and beside
`FittedProphet.forecast` (which adds the correction and five quantiles), for one series and for all
in one call. `tasks`: the reference solver, Stan, on some of the series, one after the other and in
Ray tasks. All on one thread a process. CPU time (Stan's processes included) is told beside the
clock, because other programs disturb it less; ours is that of the same work in one process.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.hourly import SEASON, hourly_set
from flts_ray.evaluate.backtest import backtest, choose_origins
from flts_ray.local.ray_environment import set_for_ray
from flts_ray.models.base import Compute, Fitted, Task, fit_fully
from flts_ray.models.prophet import ProphetPerSeries
from flts_ray.models.prophet_curve import evaluate
from flts_ray.models.prophet_fit import fit_all, seasonalities_for, stack
from flts_ray.models.prophet_fitted import FittedProphet
from flts_ray.models.prophet_regressors import Regressors
from flts_ray.models.spread import Spread, in_turn
from flts_ray.prepare.arrays import SeriesArrays, windows_at

LENGTH, HORIZON = 1000, 24
START_US = 1_700_000_000_000_000
TASK = Task(HORIZON, (0.025, 0.1, 0.5, 0.9, 0.975))
COVERED = (1, 3)
"""Positions of the levels of the 80 % interval."""


def panel(n_series: int, seed: int = 0) -> SeriesArrays:
    """Bent trends, daily and weekly shapes, a slow random level and noise; 60/20/20 % split."""
    rng = np.random.default_rng(seed)
    at = np.arange(LENGTH)
    level = rng.lognormal(2.0, 1.0, (n_series, 1))
    bend = rng.uniform(0.2, 0.8, (n_series, 1)) * LENGTH
    trend = rng.normal(0, 1, (n_series, 1)) * at + rng.normal(0, 1, (n_series, 1)) * (
        np.maximum(at - bend, 0)
    )
    daily = rng.standard_normal((n_series, SEASON))[:, at % SEASON]
    weekly = rng.normal(0, 0.5, (n_series, 7))[:, at // SEASON % 7]
    walk = np.cumsum(0.05 * rng.standard_normal((n_series, LENGTH)), axis=1)
    noise = 0.3 * rng.standard_normal((n_series, LENGTH))
    y = level * (10.0 + trend / LENGTH + daily + weekly + walk + noise)
    return hourly_set(y, START_US)


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, and what moves it: number done, of how many."""
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn()) as progress:
        task = progress.add_task(title, total=total)

        def told(done: int, of: int) -> None:
            progress.update(task, completed=done, total=of)

        yield told


def cpu_seconds() -> float:
    """User and system time of this process and of those it has started and seen end."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def alone(data: SeriesArrays) -> float:
    """CPU seconds of the same fit, refit and evaluation in this process."""
    began = cpu_seconds()
    fitted = fit_fully("prophet", data, TASK)
    fitted = ProphetPerSeries().refit(fitted, data, Compute())
    backtest(fitted, data, choose_origins(data, "test", fitted.spec.lookback, HORIZON))
    return cpu_seconds() - began


def one_fit(data: SeriesArrays) -> float:
    """CPU seconds of what the loop does: one fit and one curve of 24 steps for every series."""
    began = cpu_seconds()
    cycles = seasonalities_for(data.contract, int(data.train_end.max()))
    params, none = ProphetPerSeries.defaults, Regressors()
    curves = stack(fit_all(data, data.valid_end, cycles, none, params, Compute())[0])
    every = np.arange(data.n_series)
    steps = data.valid_end[:, None] + np.arange(HORIZON)
    no_regressors = np.zeros((data.n_series, HORIZON, 0))
    evaluate(curves, every, START_US + steps * 3_600_000_000, no_regressors, cycles, False)
    return cpu_seconds() - began


def ours(data: SeriesArrays) -> tuple[FittedProphet, dict[str, Any]]:
    """The model after `fit` and `refit` (which learns from validation too), and its figures."""
    from flts_ray.tune.spread import RaySpread

    began, model = time.perf_counter(), ProphetPerSeries()
    with bar("fit", data.n_series) as told:
        first = fit_fully("prophet", data, TASK, {}, Compute(spread=RaySpread(on_done=told)))
    with bar("fit up to the test span", data.n_series) as told:
        fitted = model.refit(first, data, Compute(spread=RaySpread(on_done=told)))
    fit_s = time.perf_counter() - began
    origins = choose_origins(data, "test", fitted.spec.lookback, HORIZON)
    with bar("evaluate", len(origins)) as told:
        found = backtest(fitted, data, origins)
        told(len(origins), len(origins))
    low, high = (found.quantiles[..., level] for level in COVERED)
    scale = data.stats.scale[origins.series, None]
    whole_s = time.perf_counter() - began
    return fitted, {
        "series": data.n_series,
        "fit_and_refit_s": fit_s,
        "evaluate_s": whole_s - fit_s,
        "windows": len(origins),
        "ms_per_series": 1e3 * whole_s / data.n_series,
        "cpu_ms_per_series": 1e3 * alone(data) / data.n_series,
        "one_fit_cpu_ms_per_series": 1e3 * one_fit(data) / data.n_series,
        "mase": float((np.abs(found.actual - found.mean) / scale).mean()),
        "coverage_80": float(((found.actual >= low) & (found.actual <= high)).mean()),
    }


def sampled(data: SeriesArrays, sample: int) -> np.ndarray:
    return np.linspace(0, data.n_series - 1, sample).round().astype(np.int64)


def prophet_of(data: SeriesArrays, row: int, **settings: Any) -> tuple[Any, Any]:
    """Plain Prophet, fitted on all before the test span, and the frame of the next 24 steps."""
    from pandas import DataFrame, to_datetime
    from prophet import Prophet

    end = int(data.valid_end[row])
    stamps = to_datetime(START_US + np.arange(end + HORIZON) * 3_600_000_000, unit="us")
    known = DataFrame({"ds": stamps[:end], "y": data.y[data.rows(row)][:end]})
    return Prophet(**settings).fit(known), DataFrame({"ds": stamps[end:]})


def loop(data: SeriesArrays, rows: np.ndarray, **settings: Any) -> dict[str, float]:
    """Seconds of a series and scaled error of plain Prophet's next 24 steps."""
    spent, errors, cpu = [], [], cpu_seconds()
    with bar("plain prophet in a loop", len(rows)) as told:
        for done, row in enumerate(rows, start=1):
            began = time.perf_counter()
            model, ahead = prophet_of(data, int(row), **settings)
            yhat = model.predict(ahead)["yhat"].to_numpy()
            spent.append(time.perf_counter() - began)
            end = int(data.valid_end[row])
            actual = data.y[data.rows(row)][end : end + HORIZON]
            errors.append(np.abs(actual - yhat).mean() / data.stats.scale[row])
            told(done, len(rows))
    return {
        "ms_per_series": 1e3 * statistics.mean(spent),
        "cpu_ms_per_series": 1e3 * (cpu_seconds() - cpu) / len(rows),
        "mase": float(np.mean(errors)),
    }


def first_windows(fitted: Fitted, data: SeriesArrays, rows: np.ndarray) -> Any:
    return windows_at(data, rows, data.valid_end[rows], fitted.spec.lookback, HORIZON)


def error_of(fitted: Fitted, data: SeriesArrays, rows: np.ndarray) -> float:
    """Scaled error of our model on the 24 steps that the loop forecasts."""
    mean = fitted.forecast(first_windows(fitted, data, rows)).mean
    at = (data.offsets[rows] + data.valid_end[rows])[:, None] + np.arange(HORIZON)
    return float((np.abs(data.y[at] - mean) / data.stats.scale[rows, None]).mean())


def median_ms(call: Callable[[], Any], times: int) -> float:
    call()
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return 1e3 * statistics.median(spent)


def calls(fitted: FittedProphet, data: SeriesArrays) -> dict[str, Any]:
    """Milliseconds of a series in one call, and how many times faster ours are."""
    model, ahead = prophet_of(data, 0, uncertainty_samples=0)
    one = first_windows(fitted, data, np.zeros(1, np.int64))
    every = first_windows(fitted, data, np.arange(data.n_series))
    theirs = median_ms(lambda: model.predict(ahead), 20)
    wall = ahead["ds"].to_numpy().astype("datetime64[us]").astype(np.int64)[None]
    asked = (fitted.curves, np.zeros(1, np.int64), wall, np.zeros((1, HORIZON, 0)))
    ours_ms = {
        "curve": median_ms(lambda: evaluate(*asked, fitted.seasonalities, False), 200),
        "forecast": median_ms(lambda: fitted.forecast(one), 200),
        "forecast_of_all": median_ms(lambda: fitted.forecast(every), 20) / data.n_series,
    }
    times = {name: theirs / one_ms for name, one_ms in ours_ms.items()}
    return {"prophet_ms": theirs, "ours_ms": ours_ms, "times_faster": times}


def tasks(data: SeriesArrays, count: int) -> dict[str, float]:
    """Seconds that Stan takes for some series, in this process and in Ray tasks."""
    from flts_ray.tune.spread import RaySpread

    few = data.take(np.arange(count))
    cycles = seasonalities_for(few.contract, int(few.train_end.max()))
    params = {**ProphetPerSeries.defaults, "solver": "stan"}
    seconds = {}
    with bar("stan in tasks", count) as told:
        ways: dict[str, Spread] = {
            "one_process_s": in_turn,
            "tasks_s": RaySpread(on_done=told, alone_s=0.0, help_pays_s=0.0),
        }
        for name, spread in ways.items():
            began = time.perf_counter()
            fit_all(few, few.train_end, cycles, Regressors(), params, Compute(spread=spread))
            seconds[name] = time.perf_counter() - began
    return {"series": count, **seconds}


def measure(n_series: int, sample: int, stan: int) -> dict[str, Any]:
    """All four parts. Starts a Ray of its own."""
    import ray

    data = panel(n_series)
    rows = sampled(data, sample)
    fit_fully("prophet", data.take([0]), TASK)  # imports and first calls are nobody's time
    prophet_of(data, 0)
    began = time.perf_counter()
    set_for_ray(starts_cluster=True)
    ray.init(address="local", include_dashboard=False, logging_level="error", log_to_driver=False)
    ray_s = time.perf_counter() - began
    try:
        fitted, figures = ours(data)
        plain, bare = loop(data, rows), loop(data, rows, uncertainty_samples=0)
        result: dict[str, Any] = {
            "cpus": os.cpu_count(),
            "ray_start_s": ray_s,
            "ours": {**figures, "mase_first_24": error_of(fitted, data, rows)},
            "loop": {"sample": sample, "defaults": plain, "no_uncertainty": bare},
            "calls": calls(fitted, data),
        }
        if stan:
            result["tasks"] = tasks(data, min(stan, n_series))
    finally:
        ray.shutdown()
    result["times_faster"] = {
        name: {
            "clock": one["ms_per_series"] / figures["ms_per_series"],
            "cpu": one["cpu_ms_per_series"] / figures["cpu_ms_per_series"],
            "cpu_of_one_fit": one["cpu_ms_per_series"] / figures["one_fit_cpu_ms_per_series"],
        }
        for name, one in result["loop"].items()
        if name != "sample"
    }
    return result


def show(found: dict[str, Any]) -> None:
    mine, plain, call = found["ours"], found["loop"], found["calls"]
    series, spent = mine["series"], mine["fit_and_refit_s"] + mine["evaluate_s"]
    print(f"\n{series:,} series of {LENGTH} points: {spent:.1f} s for all of this")
    print("                               ms a series    CPU ms a series")
    both = mine["ms_per_series"], mine["cpu_ms_per_series"]
    print(f"  ours, all of it         {both[0]:18.2f} {both[1]:18.2f}")
    print(f"  ours, one fit and curve {'':18} {mine['one_fit_cpu_ms_per_series']:18.2f}")
    for name, title in (("defaults", "prophet"), ("no_uncertainty", "prophet, no uncertainty")):
        one, times = plain[name], found["times_faster"][name]
        print(
            f"  {title:23} {one['ms_per_series']:18.2f} {one['cpu_ms_per_series']:18.2f}"
            f"   {one['ms_per_series'] * series / 6e4:.1f} min for all"
        )
        print(
            f"    {times['clock']:.0f} times as long as all of ours, {times['cpu']:.0f} times the "
            f"CPU; {times['cpu_of_one_fit']:.0f} times the CPU of one fit and curve"
        )
    first = plain["no_uncertainty"]["mase"]
    print(f"  scaled error of the next 24 steps: {mine['mase_first_24']:.3f}, prophet {first:.3f}")
    print(
        f"  rolling windows: scaled error {mine['mase']:.3f}, {mine['coverage_80']:.1%} within "
        "the 80 % interval"
    )
    print(f"  one more forecast: prophet {call['prophet_ms']:.1f} ms")
    for name, title in (
        ("curve", "the same curve"),
        ("forecast", "corrected, with quantiles"),
        ("forecast_of_all", "a series, all in one call"),
    ):
        spent, times = call["ours_ms"][name], call["times_faster"][name]
        print(f"    ours, {title:26} {spent:.4f} ms, {times:.0f} times faster")
    if "tasks" in found:
        stan = found["tasks"]
        print(
            f"  solver stan, {stan['series']} series: {stan['one_process_s']:.1f} s one after the "
            f"other, {stan['tasks_s']:.1f} s in tasks"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--sample", type=int, default=20, help="series that the loop fits")
    parser.add_argument("--stan", type=int, default=60, help="series for the part tasks; 0: none")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    given = parser.parse_args()
    for noisy in ("cmdstanpy", "prophet"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    found = measure(given.series, given.sample, given.stan)
    show(found)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
