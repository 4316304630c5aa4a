"""neuralforecast: one network for all series of a task, stopped early on validation.

The fit sees nothing of the test span; `cross_validation(use_fitted=True)` then forecasts every
window of it with the network as it is. Validation is one length for all series there, so it is the
shortest of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast, models  # type: ignore[import-not-found]
from neuralforecast.losses.pytorch import MQLoss  # type: ignore[import-not-found]

from benchmarks.peers.meter import Meter
from benchmarks.peers.protocol import LEVELS, TaskData
from benchmarks.peers.training import TRAINER, BestWithinBudget, Scaled, best_variant, quiet

MONITOR = "ptl/val_loss"


def forecast(
    task: TaskData, model: str, settings: dict[str, Any], windows: np.ndarray, meter: Meter
) -> tuple[np.ndarray, np.ndarray]:
    """Median (in place of the mean) [m, H] and quantiles [m, H, Q] of these windows."""
    quiet()

    def fit(seen: TaskData, numbers: Scaled, chosen: dict[str, Any], stop: BestWithinBudget) -> Any:
        return _fitted(seen, numbers, model, chosen, stop)

    runs, task, numbers = best_variant(task, settings, meter, MONITOR, fit)
    quantiles = np.empty((len(windows), task.horizon, len(LEVELS)), np.float32)
    for series in range(task.n_series):
        mine = task.series[windows] == series
        with meter.part("predict"):
            found = _test_span(runs, task, numbers, series)
        at = task.positions[windows][mine] - int(task.valid_end[series])
        quantiles[mine] = found[at] * numbers.std[series] + numbers.mean[series]
    return quantiles[..., LEVELS.index(0.5)], quantiles


def _fitted(
    task: TaskData, numbers: Scaled, model: str, settings: dict[str, Any], stop: BestWithinBudget
) -> Any:
    network = getattr(models, model)(
        h=task.horizon,
        loss=MQLoss(quantiles=list(LEVELS)),
        early_stop_patience_steps=settings["patience"],
        hist_exog_list=_names("past", task.past) or None,
        futr_exog_list=_names("known", task.known) or None,
        callbacks=[stop],
        **{name: value for name, value in settings.items() if name != "patience"},
        **TRAINER,
    )
    runs = NeuralForecast([network], freq=1)
    known = [_frame(task, numbers, i, int(task.valid_end[i])) for i in range(task.n_series)]
    valid = int((task.valid_end - task.train_end).min())
    runs.fit(pd.concat(known, ignore_index=True), val_size=valid)
    return runs


def _names(prefix: str, columns: np.ndarray) -> list[str]:
    return [f"{prefix}{number}" for number in range(columns.shape[1])]


def _frame(task: TaskData, numbers: Scaled, series: int, end: int) -> pd.DataFrame:
    """One series up to `end` in the library's long layout."""
    rows = task.rows(series)
    columns = {
        name: values[rows][:end, number]
        for prefix, values in (("past", numbers.past), ("known", numbers.known))
        for number, name in enumerate(_names(prefix, values))
    }
    ids = np.full(end, str(task.ids[series]))
    return pd.DataFrame(
        {"unique_id": ids, "ds": np.arange(end), "y": numbers.y[rows][:end]} | columns
    )


def _test_span(runs: Any, task: TaskData, numbers: Scaled, series: int) -> np.ndarray:
    """Scaled quantiles of every window of the test span of a series, [windows, H, Q]."""
    length = int(np.diff(task.offsets)[series])
    test = length - int(task.valid_end[series])
    table = runs.cross_validation(
        _frame(task, numbers, series, length),
        n_windows=None,
        test_size=test,
        step_size=1,
        refit=False,
        use_fitted=True,
    )
    names = [c for c in table.columns if c not in ("unique_id", "ds", "cutoff", "y")]
    values = table[names].to_numpy(np.float32)
    # Quantiles of independent heads may cross.
    return np.sort(values.reshape(-1, task.horizon, len(LEVELS)), axis=-1)
