"""What the networks of both libraries share: scaled series, and when training ends."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback  # type: ignore[import-not-found]

from benchmarks.peers.meter import Meter, cpu_seconds
from benchmarks.peers.protocol import TaskData

TRAINER: dict[str, Any] = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False, "enable_checkpointing": False,
}  # fmt: skip


class BestWithinBudget(Callback):  # type: ignore[misc]
    """Ends training when the fit has used its CPU seconds; leaves the best weights of validation.

    Neither library goes back to its best weights by itself in memory; with them an early stop
    costs no accuracy.
    """

    def __init__(self, monitor: str, meter: Meter, budget_s: float) -> None:
        self._monitor, self._meter = monitor, meter
        self._end = cpu_seconds() + budget_s
        self._best: tuple[float, int, dict[str, torch.Tensor]] | None = None
        self._steps = 0

    @property
    def loss(self) -> float:
        """The best of validation; infinite if there was none."""
        return math.inf if self._best is None else self._best[0]

    def __deepcopy__(self, _: dict[int, Any]) -> BestWithinBudget:
        # neuralforecast copies its models, and what it trains must report to the same meter.
        return self

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self._steps = int(trainer.global_step)
        if cpu_seconds() > self._end:
            self._meter.cut_off = True
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if trainer.sanity_checking or self._monitor not in trainer.callback_metrics:
            return
        loss = float(trainer.callback_metrics[self._monitor])
        if self._best is None or loss < self._best[0]:
            weights = {name: value.clone() for name, value in module.state_dict().items()}
            self._best = loss, int(trainer.global_step), weights

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        said = f"{self._steps} steps"
        if self._best is not None:
            loss, step, weights = self._best
            module.load_state_dict(weights)
            said += f", best on validation after {step} ({loss:.4g})"
        self._meter.notes.append(said)


Fit = Callable[[TaskData, "Scaled", dict[str, Any], BestWithinBudget], Any]


def best_variant(
    task: TaskData, settings: dict[str, Any], meter: Meter, monitor: str, fit: Fit
) -> tuple[Any, TaskData, Scaled]:
    """Fit every variant of the settings with its share of the budget; what validation prefers.

    Returns the network, and the task and its numbers as that variant saw them.
    """
    variants = settings["variants"]
    found: list[tuple[float, int, Any]] = []
    for number, variant in enumerate(variants):
        seen = task if variant["covariates"] else bare(task)
        numbers = scaled(seen)
        chosen = {**settings, **variant}
        del chosen["variants"], chosen["covariates"]
        stop = BestWithinBudget(monitor, meter, meter.budget_s / len(variants))
        with meter.part("fit"):
            network = fit(seen, numbers, chosen, stop)
        found.append((stop.loss, number, (network, seen, numbers)))
    _, number, best = min(found, key=lambda one: one[:2])
    if len(variants) > 1:
        told = "with" if variants[number]["covariates"] else "without"
        meter.notes.append(f"validation chose the one {told} covariates")
    meter.notes.append("the median stands for the mean")
    network, seen, numbers = best
    return network, seen, numbers


def bare(task: TaskData) -> TaskData:
    """The task without covariates."""
    return replace(task, known=task.known[:, :0], past=task.past[:, :0])


@dataclass(frozen=True)
class Scaled:
    """Series and covariates over the mean and deviation of their training spans.

    y: float32 [rows]; known, past: float32 [rows, F] and [rows, P]; mean, std: float64 [S].
    """

    y: np.ndarray
    known: np.ndarray
    past: np.ndarray
    mean: np.ndarray
    std: np.ndarray


def scaled(task: TaskData) -> Scaled:
    """Scale every series by itself and every covariate over all series."""
    mean, std = np.array([task.spread(i) for i in range(task.n_series)]).T
    std = np.where(std > 0, std, 1.0)
    lengths = np.diff(task.offsets)
    y = (task.y - np.repeat(mean, lengths)) / np.repeat(std, lengths)
    position = np.arange(len(task.y)) - np.repeat(task.offsets[:-1], lengths)
    training = position < np.repeat(task.train_end, lengths)
    known, past = (_columns(columns, training) for columns in (task.known, task.past))
    return Scaled(y.astype(np.float32), known, past, mean, std)


def _columns(values: np.ndarray, training: np.ndarray) -> np.ndarray:
    if values.shape[1] == 0:
        return values
    filled = np.nan_to_num(values)
    mean, std = filled[training].mean(axis=0), filled[training].std(axis=0)
    return np.asarray((filled - mean) / np.where(std > 0, std, 1.0), np.float32)


def quiet() -> None:
    """One thread, the same weights every time, no chatter."""
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "darts"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
