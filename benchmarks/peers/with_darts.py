"""darts: one BlockRNNModel for all series of a task, stopped early on validation.

`historical_forecasts(retrain=False)` forecasts every window of the test span with the network as
it is. The model takes no covariates of the future, so those known in advance are given as past.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from darts import TimeSeries  # type: ignore[import-not-found]
from darts.models import BlockRNNModel  # type: ignore[import-not-found]
from darts.utils.likelihood_models.torch import (  # type: ignore[import-not-found]
    QuantileRegression,
)
from pytorch_lightning.callbacks import EarlyStopping  # type: ignore[import-not-found]

from benchmarks.peers.meter import Meter
from benchmarks.peers.protocol import LEVELS, TaskData
from benchmarks.peers.training import TRAINER, BestWithinBudget, Scaled, best_variant, quiet

MONITOR = "val_loss"


def forecast(
    task: TaskData, model: str, settings: dict[str, Any], windows: np.ndarray, meter: Meter
) -> tuple[np.ndarray, np.ndarray]:
    """Median (in place of the mean) [m, H] and quantiles [m, H, Q] of these windows."""
    quiet()
    lookback = int(settings["input_chunk_length"])
    network, task, numbers = best_variant(task, settings, meter, MONITOR, _fitted)
    quantiles = np.empty((len(windows), task.horizon, len(LEVELS)), np.float32)
    for series in range(task.n_series):
        start = int(task.valid_end[series])
        length = int(np.diff(task.offsets)[series])
        mine = task.series[windows] == series
        with meter.part("predict"):
            found = network.historical_forecasts(
                _part(numbers.y[:, None], task, series, start - lookback, length),
                past_covariates=_covariates(task, numbers, series, start - lookback, length),
                start=start,
                start_format="value",
                forecast_horizon=task.horizon,
                stride=1,
                retrain=False,
                last_points_only=False,
                predict_likelihood_parameters=True,
            )
            values = np.stack([one.values(copy=False) for one in found])
        first = int(found[0].start_time())
        at = task.positions[windows][mine] - first
        quantiles[mine] = np.sort(values[at], axis=-1) * numbers.std[series] + numbers.mean[series]
    return quantiles[..., LEVELS.index(0.5)], quantiles


def _fitted(
    task: TaskData, numbers: Scaled, settings: dict[str, Any], stop: BestWithinBudget
) -> Any:
    lookback = int(settings["input_chunk_length"])
    patience = EarlyStopping(MONITOR, patience=settings["patience"])
    network = BlockRNNModel(
        input_chunk_length=lookback,
        output_chunk_length=task.horizon,
        model=settings["cell"],
        hidden_dim=settings["hidden_dim"],
        n_rnn_layers=settings["n_rnn_layers"],
        batch_size=settings["batch_size"],
        n_epochs=settings["n_epochs"],
        use_reversible_instance_norm=settings["use_reversible_instance_norm"],
        optimizer_kwargs={"lr": settings["lr"]},
        likelihood=QuantileRegression(list(LEVELS)),
        random_state=1,
        pl_trainer_kwargs={**TRAINER, "callbacks": [stop, patience]},
    )
    spans = [(0, int(task.train_end[i])) for i in range(task.n_series)]
    later = [
        (int(task.train_end[i]) - lookback, int(task.valid_end[i])) for i in range(task.n_series)
    ]
    y = numbers.y[:, None]
    numbered = list(range(task.n_series))
    network.fit(
        [_part(y, task, i, *spans[i]) for i in numbered],
        past_covariates=_all([_covariates(task, numbers, i, *spans[i]) for i in numbered]),
        val_series=[_part(y, task, i, *later[i]) for i in numbered],
        val_past_covariates=_all([_covariates(task, numbers, i, *later[i]) for i in numbered]),
        verbose=False,
    )
    return network


def _covariates(task: TaskData, numbers: Scaled, series: int, first: int, end: int) -> Any:
    columns = np.concatenate([numbers.past, numbers.known], axis=1)
    return _part(columns, task, series, first, end) if columns.shape[1] else None


def _all(found: list[Any]) -> list[Any] | None:
    return None if found[0] is None else found


def _part(values: np.ndarray, task: TaskData, series: int, first: int, end: int) -> Any:
    """Steps `first` to `end` of a series, stamped with their positions."""
    import pandas as pd

    return TimeSeries.from_times_and_values(
        pd.RangeIndex(first, end), values[task.rows(series)][first:end].astype(np.float32)
    )
