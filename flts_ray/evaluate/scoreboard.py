"""The numbers of one candidate: overall, per step ahead and per series, in the input's units.

Averaging rule: every number is an average over observed target values, so a series counts as
much as it was observed; MASE, scaled pinball and the composite average errors that were scaled
value by value with the seasonal-naive error of their series; WAPE is a ratio of two sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from flts_ray.errors import DataError
from flts_ray.evaluate import metrics
from flts_ray.evaluate.backtest import Backtest
from flts_ray.evaluate.calibration import (
    calibration_error,
    coverage_table,
    level_coverage,
    pit_table,
)
from flts_ray.evaluate.coverage import bands_table
from flts_ray.prepare.arrays import SeriesStats


@dataclass(frozen=True)
class Scoreboard:
    """What one candidate scored.

    overall: rmse, mae, wape, mase, pinball, scaled_pinball, composite, coverage_80,
    coverage_95, width_80, calibration_error, and the counts windows, series, values. per_step:
    the measures by `step` (1 is the first step ahead). per_series: the measures by `unique_id`.
    pit, coverage, bands: of `pit_table`, `coverage_table` and `bands_table`.
    """

    model: str
    kind: str
    overall: dict[str, float]
    per_step: pa.Table
    per_series: pa.Table
    pit: pa.Table
    coverage: pa.Table
    bands: pa.Table = field(default_factory=lambda: pa.table({}))

    def to_json(self) -> dict[str, Any]:
        """Plain values; undefined numbers are null."""
        return {
            "model": self.model,
            "kind": self.kind,
            "overall": {name: _plain(value) for name, value in self.overall.items()},
            "per_step": _columns(self.per_step),
            "per_series": _columns(self.per_series),
            "pit": _columns(self.pit),
            "coverage": _columns(self.coverage),
            "bands": _columns(self.bands),
        }


def measures(
    bt: Backtest, scale: np.ndarray, average: metrics.Average, covered: np.ndarray
) -> dict[str, np.ndarray]:
    """Every measure of a backtest, by group. scale: float64 [n], one a window; covered: [groups,
    Q], its `level_coverage`.

    Raises DataError if the backtest lacks a level that bounds the 80 % or 95 % band.
    """
    actual, median = bt.actual, bt.median
    band_80, band_95 = (
        (bt.quantile(0.1), bt.quantile(0.9)),
        (bt.quantile(0.025), bt.quantile(0.975)),
    )
    pinball = metrics.over_levels(actual, bt.quantiles, bt.levels)
    return {
        "rmse": metrics.rmse(actual, bt.mean, average),
        "mae": metrics.mae(actual, median, average),
        "wape": metrics.wape(actual, median, average),
        "mase": metrics.mase(actual, median, scale, average),
        "pinball": average(pinball),
        "scaled_pinball": average(pinball / scale[:, None]),
        "composite": metrics.composite(actual, bt.mean, median, scale, average),
        "coverage_80": metrics.coverage(actual, *band_80, average),
        "coverage_95": metrics.coverage(actual, *band_95, average),
        "width_80": metrics.band_width(actual, *band_80, average),
        "calibration_error": calibration_error(covered, bt.levels),
    }


def score_board(
    name: str,
    kind: str,
    bt: Backtest,
    stats: SeriesStats,
    kept: Backtest | None = None,
    step_us: int | None = None,
) -> Scoreboard:
    """Judge a backtest. stats: the statistics of the set the origins point into.

    kept: the same origins with bands that were kept up to date; step_us: one step of the horizon,
    without which nobody knows how sure a coverage is and `bands` stays empty. Raises DataError for
    an empty backtest or one without the band levels.
    """
    if not len(bt):
        raise DataError(f"model {name}: no windows to judge; enlarge the test span")
    series, group = np.unique(bt.origins.series, return_inverse=True)
    average = metrics.together(
        metrics.overall, metrics.by_step, metrics.by_series(group, len(series))
    )
    covered = level_coverage(bt.actual, bt.quantiles, bt.levels, average)
    found = measures(bt, stats.scale[bt.origins.series], average, covered)
    steps = bt.actual.shape[1]
    observed = np.sum(~np.isnan(bt.actual), axis=1)
    return Scoreboard(
        model=name,
        kind=kind,
        overall={
            **{key: float(values[0]) for key, values in found.items()},
            "windows": float(len(bt)),
            "series": float(len(series)),
            "values": float(observed.sum()),
        },
        per_step=_table(
            {"step": np.arange(1, steps + 1)},
            {key: values[1 : 1 + steps] for key, values in found.items()},
        ),
        per_series=_table(
            {
                "unique_id": [stats.ids[i] for i in series],
                "windows": np.bincount(group),
                "values": np.bincount(group, observed).astype(np.int64),
            },
            {key: values[1 + steps :] for key, values in found.items()},
        ),
        pit=pit_table(bt.levels, covered[0]),
        coverage=coverage_table(bt.levels, covered[: 1 + steps]),
        bands=pa.table({}) if step_us is None else bands_table(bt, kept, step_us),
    )


def comparison_table(boards: Sequence[Scoreboard], score: str = "scaled_pinball") -> pa.Table:
    """One row a candidate: model, kind, the overall numbers; best `score` first, undefined last.

    Raises DataError for an unknown score.
    """
    names = list(boards[0].overall) if boards else []
    if boards and score not in names:
        raise DataError(
            f"judge.score: {score!r} is no measure; known: {', '.join(names)}", field="judge.score"
        )
    ranked = sorted(boards, key=lambda board: _rank(board, score))
    columns = {name: pa.array([b.overall[name] for b in ranked], pa.float64()) for name in names}
    return pa.table(
        {
            "model": pa.array([b.model for b in ranked], pa.string()),
            "kind": pa.array([b.kind for b in ranked], pa.string()),
            **columns,
        }
    )


def _rank(board: Scoreboard, score: str) -> tuple[bool, float, str]:
    value = board.overall[score]
    return (True, 0.0, board.model) if math.isnan(value) else (False, value, board.model)


def _table(keys: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> pa.Table:
    return pa.table({name: pa.array(column) for name, column in {**keys, **values}.items()})


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _columns(table: pa.Table) -> dict[str, list[Any]]:
    return {name: [_plain(value) for value in column] for name, column in table.to_pydict().items()}
