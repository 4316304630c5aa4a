"""One trial: fit step by step, score on the validation span, keep the best epoch, commit.

Design choices: no Ray here, so a trial runs and is tested in any process; whatever a model raises
becomes a failed outcome with its text, so that a bad setting costs neither the study nor the
worker, which goes on with the next trial; the model of the best epoch lies in a folder of its own
and the one before is removed only in the next step, because the driver may stop a trial between
two steps and must find the model that belongs to the score it last saw.
"""

from __future__ import annotations

import resource
import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import getpid
from pathlib import Path

import numpy as np

from flts_ray.config import Score
from flts_ray.errors import FltsError
from flts_ray.evaluate.backtest import Origins, backtest, choose_origins
from flts_ray.evaluate.metrics import WINDOWS_AT_ONCE, WindowLosses
from flts_ray.models import artifact
from flts_ray.models.base import Compute, Fitted, Forecaster, Progress, Task, forecaster
from flts_ray.models.calibrate import chunks
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.tune.outcome import TrialOutcome, better, trial_folder, write_outcome
from flts_ray.tune.space import TrialPlan

MAX_ORIGINS = 200
"""Validation origins of one series where no stride is configured."""
MAX_WINDOWS = 2**18
"""Validation origins of all series together where no stride is configured; more of them would
hardly move a score."""


@dataclass(frozen=True)
class TrialSetting:
    """What all trials of a study share. `study` is a folder that every worker can write.

    `lookback` is the history that every validation origin has, so that models which need less
    are scored on the same windows. `stride` in steps between validation origins; None: as wide
    as `MAX_ORIGINS` demands.
    """

    study: Path
    task: Task
    compute: Compute
    score: Score
    lookback: int
    stride: int | None = None


class TrialRun:
    """Runs one plan; every `step` is one epoch. The first one removes files of an earlier try.

    Making a run touches no file: a worker may be made for a trial that another one took over.
    """

    def __init__(self, plan: TrialPlan, data: SeriesArrays, setting: TrialSetting) -> None:
        self.outcome = TrialOutcome.of_plan(plan)
        self._data = data
        self._setting = setting
        self._folder = trial_folder(setting.study, plan.trial_id)
        self._steps: Iterator[Progress] | None = None
        self._scored: tuple[Fitted, float] | None = None
        self._began = time.monotonic()
        self._cpu_before = cpu_seconds()

    def step(self) -> TrialOutcome:
        """One epoch further. The status stays `pending` until the trial is over.

        An outcome that is over has been committed to disk. Never raises for what a model does.
        """
        try:
            outcome = self._advance()
        except Exception as error:  # noqa: BLE001 - models may raise anything; it is recorded
            shutil.rmtree(self._folder, ignore_errors=True)
            outcome = replace(self.outcome, status="failed", error=describe(error), artifact=None)
        self.outcome = replace(
            outcome,
            seconds=time.monotonic() - self._began,
            cpu_seconds=cpu_seconds() - self._cpu_before,
            max_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            pid=getpid(),
        )
        if self.outcome.status != "pending":
            write_outcome(self._setting.study, self.outcome)
        return self.outcome

    def _advance(self) -> TrialOutcome:
        model = forecaster(self.outcome.kind)
        if self._steps is None:
            self._steps = self._begin(model)
        else:
            self._remove_surpassed()
        progress = next(self._steps, None)
        if progress is None:
            return self._ended()
        outcome = self._scored_outcome(progress)
        return outcome if model.iterative else replace(outcome, status="finished")

    def _begin(self, model: Forecaster) -> Iterator[Progress]:
        shutil.rmtree(self._folder, ignore_errors=True)
        setting = self._setting
        return iter(model.fit(self._data, setting.task, self.outcome.params, setting.compute))

    def _ended(self) -> TrialOutcome:
        if self.outcome.artifact is None:
            raise FltsError(f"{self.outcome.kind}: the fit ended without a fitted model")
        return replace(self.outcome, status="finished")

    def _scored_outcome(self, progress: Progress) -> TrialOutcome:
        before, score = self.outcome, self._score(progress.fitted)
        reached = replace(
            before,
            epochs=before.epochs + 1,
            valid_score=score,
            history=(*before.history, {**progress.metrics, "valid_score": score}),
        )
        if not better(reached, before):
            return replace(reached, valid_score=before.valid_score)
        folder = self._folder / f"model-{reached.epochs:04d}"
        artifact.save(progress.fitted, folder)
        return replace(reached, artifact=folder)

    def _score(self, fitted: Fitted) -> float:
        # A fit that has not improved hands out the model it had: nothing to score again.
        if self._scored is None or self._scored[0] is not fitted:
            self._scored = (fitted, validation_score(fitted, self._data, self._setting))
        return self._scored[1]

    def _remove_surpassed(self) -> None:
        for folder in self._folder.glob("model-*"):
            if folder != self.outcome.artifact:
                shutil.rmtree(folder, ignore_errors=True)


def validation_score(fitted: Fitted, data: SeriesArrays, setting: TrialSetting) -> float:
    """Mean score over rolling origins of the validation span; lower is better.

    Raises DataError if the span holds no window, or where forecasts or score are not finite.
    """
    origins = scoring_origins(data, setting, max(setting.lookback, fitted.spec.lookback))
    # Forecasts of all origins of a large set would not fit into memory, and only their losses
    # are asked for.
    parts = [
        WindowLosses.of(backtest(fitted, data, origins.part(rows)), data.stats.scale, setting.score)
        for rows in chunks(len(origins), WINDOWS_AT_ONCE)
    ]
    return float(np.mean(WindowLosses.joined(parts).scores()))


def scoring_origins(data: SeriesArrays, setting: TrialSetting, lookback: int) -> Origins:
    """Validation origins with so much history: at the configured stride, else not more than
    `MAX_ORIGINS` of a series and `MAX_WINDOWS` of all. Raises DataError if no window fits."""
    horizon = setting.task.horizon
    if setting.stride is not None:
        return choose_origins(data, "validation", lookback, horizon, setting.stride)
    every = choose_origins(data, "validation", lookback, horizon, 1, MAX_ORIGINS)
    return every.thinned(MAX_WINDOWS)


def cpu_seconds() -> float:
    """User and system time of this process and its ended children (some models fork one)."""
    usages = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def describe(error: Exception) -> str:
    """The message of a user's error; type, message and place of any other."""
    if isinstance(error, FltsError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
