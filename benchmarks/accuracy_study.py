"""Accuracy of a study's models on the test span, beside persistence and a plain AR(10).

    python -m benchmarks.accuracy_study                          # all three configurations
    python -m benchmarks.accuracy_study --config configs/lte.yaml --output lte.json

Every model is chosen on validation and judged on every window of the test span (stride 1).
Scaled figures divide by the range of the series before the test span, as the LTE literature does.
AR(10) is ordinary least squares on ten lags per series, fitted on all rows before the test span
and iterated; persistence repeats the last value.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from flts_ray.config import load_config
from flts_ray.evaluate.backtest import Origins, backtest
from flts_ray.evaluate.finalists import Judged, best_on_validation, common_origins, judge_one
from flts_ray.jobs.session import ray_cluster
from flts_ray.narrate import ConsoleNarrator
from flts_ray.pipeline import refitted, run_prepare
from flts_ray.prepare.arrays import SeriesArrays, actuals_at
from flts_ray.services import Narrator
from flts_ray.tune.outcome import study_id
from flts_ray.tune.study import run_study

AR_LAGS = 10
SHOWN = ((False, 0.8), (False, 0.95), (True, 0.8), (True, 0.95))
"""Bands: kept up to date or as they were fitted, and what they promise."""
CONFIGS = ("configs/demo.yaml", "configs/lte.yaml", "configs/etth1.yaml")
FROM_A_FILE = (
    "root=.flts/demo", "data.snapshot=null", "data.path=.flts/demo/input/elecdemand.csv",
)  # fmt: skip
"""The demo without its stream: the same rows, from the file that it sends."""


def persistence(data: SeriesArrays, origins: Origins, horizon: int) -> np.ndarray:
    """The last value before each origin, float64 [n, H]."""
    last = data.y[data.offsets[origins.series] + origins.positions - 1]
    return np.repeat(last[:, None], horizon, axis=1)


def ar10(data: SeriesArrays, origins: Origins, horizon: int) -> np.ndarray:
    """Iterated least-squares AR(10) of each series, float64 [n, H]."""
    found = np.empty((len(origins), horizon))
    for series in np.unique(origins.series):
        y = data.y[data.rows(int(series))]
        history = y[: int(data.valid_end[series])]
        lags = np.lib.stride_tricks.sliding_window_view(history, AR_LAGS + 1)
        lags = lags[np.isfinite(lags).all(axis=1)]
        design = np.column_stack([lags[:, :-1], np.ones(len(lags))])
        weights = np.linalg.lstsq(design, lags[:, -1], rcond=None)[0]
        mine = origins.series == series
        at = origins.positions[mine][:, None] + np.arange(-AR_LAGS, 0)
        window = y[at]
        for step in range(horizon):
            ahead = window @ weights[:-1] + weights[-1]
            found[mine, step] = ahead
            window = np.column_stack([window[:, 1:], ahead])
    return found


def figures(
    data: SeriesArrays, origins: Origins, mean: np.ndarray, median: np.ndarray
) -> list[dict[str, Any]]:
    """Scaled RMSE and MAE of each series at the first and the last step."""
    horizon = mean.shape[1]
    actual = actuals_at(data, origins.series, origins.positions, horizon)
    rows = []
    for series in np.unique(origins.series):
        mine = origins.series == series
        known = data.y[data.rows(int(series))][: int(data.valid_end[series])]
        span = float(np.nanmax(known) - np.nanmin(known))
        error, missed = (mean[mine] - actual[mine]) / span, (median[mine] - actual[mine]) / span
        for step in sorted({1, horizon}):
            rows.append(
                {
                    "series": data.ids[int(series)],
                    "step": step,
                    "rmse": float(np.sqrt(np.nanmean(error[:, step - 1] ** 2))),
                    "mae": float(np.nanmean(np.abs(missed[:, step - 1]))),
                    "windows": int(mine.sum()),
                }
            )
    return rows


def run(path: str, overrides: Sequence[str], narrator: Narrator) -> dict[str, Any]:
    """Tune (or reuse the finished study), judge on every window, add the references."""
    config = load_config(path, overrides)
    prepared = run_prepare(config, narrator)
    data = prepared.arrays()
    folder = Path(config.root) / "benchmark" / study_id(config, prepared.hash)
    with narrator.study() as show:
        study = run_study(config, data, folder, resume=True, on_progress=show)
    finalists = refitted(config, prepared, data, folder, study, narrator)
    judge = config.judge.model_copy(update={"stride": 1, "max_origins": 10**6})
    origins = common_origins(data, finalists, judge)
    judged = [judge_one(one, data, origins, judge, config.tune.seed) for one in finalists]
    horizon = config.task.horizon
    references = {
        "persistence": persistence(data, origins, horizon),
        f"AR({AR_LAGS})": ar10(data, origins, horizon),
    }
    return {
        "config": path,
        "units": config.data.units,
        "windows": len(origins),
        "seconds": study.seconds,
        "cpu_seconds": {o.trial_id: round(o.cpu_seconds, 1) for o in study.outcomes},
        "candidate": best_on_validation(finalists).name,
        "models": [_entry(one, data, origins) for one in judged]
        + [
            {"model": name, "figures": figures(data, origins, values, values)}
            for name, values in references.items()
        ],
    }


def _entry(one: Judged, data: SeriesArrays, origins: Origins) -> dict[str, Any]:
    result = backtest(one.finalist.fitted, data, origins)
    return {
        "model": one.finalist.name,
        "valid_score": one.finalist.valid_score,
        "overall": one.board.overall,
        "bands": one.board.bands.to_pylist(),
        "figures": figures(data, origins, result.mean, result.median),
    }


def show(console: Console, report: dict[str, Any]) -> None:
    """Two tables: overall in the input's units, and scaled figures per series and step."""
    units = f", {report['units']}" if report["units"] else ""
    table = Table(title=f"{report['config']}: {report['windows']:,} test windows{units}")
    heads = ["model", "validation", "scaled pinball", "RMSE", "MAE", "MASE"]
    heads += [f"in {nominal:.0%}{' kept' if kept else ''}" for kept, nominal in SHOWN]
    for head in heads:
        table.add_column(head, justify="left" if head == "model" else "right")
    for entry in report["models"]:
        if "overall" not in entry:
            continue
        o = entry["overall"]
        numbers = [entry["valid_score"], o["scaled_pinball"], o["rmse"], o["mae"], o["mase"]]
        held = {(row["kept"], row["nominal"]): row["share"] for row in entry["bands"]}
        shares = [held.get(which, math.nan) for which in SHOWN]
        chosen = "bold green" if entry["model"] == report["candidate"] else None
        cells = [f"{n:.4g}" for n in numbers] + [f"{100 * s:.1f}" for s in shares]
        table.add_row(entry["model"], *cells, style=chosen)
    console.print(table)
    scaled = Table(title="scaled by the range before the test span: RMSE / MAE")
    names = [entry["model"] for entry in report["models"]]
    for head in ("series", "step", *names):
        scaled.add_column(head, justify="left" if head == "series" else "right")
    for rows in zip(*(entry["figures"] for entry in report["models"]), strict=True):
        cells = [f"{row['rmse']:.4f} / {row['mae']:.4f}" for row in rows]
        scaled.add_row(rows[0]["series"], str(rows[0]["step"]), *cells)
    console.print(scaled)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", action="append", help="YAML file; repeatable")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--output", type=Path, help="write all numbers as JSON")
    given = parser.parse_args()
    console = Console()
    reports = []
    for path in given.config or CONFIGS:
        overrides = [*(FROM_A_FILE if path == CONFIGS[0] else ()), *given.overrides]
        config = load_config(path, overrides)
        with ray_cluster(config), ConsoleNarrator(Console(stderr=True)) as narrator:
            reports.append(run(path, overrides, narrator))
        show(console, reports[-1])
    if given.output:
        given.output.write_text(json.dumps(reports, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
