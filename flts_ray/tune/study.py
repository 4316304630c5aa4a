"""Runs a study: one Ray Tune search over a fixed list of trials of all model kinds.

Design choices: trials are planned before the start (`space`), so a study is the same whoever runs
it and resuming is handing Tune what is not on disk yet; Tune's own experiment state is therefore
neither needed nor kept. The budget counts wall-clock seconds over all sessions of a study, but
ends it only once the baselines are over, because every decision compares with them. Successive
halving (ASHA, Li et al. 2020, arXiv 1810.05934) compares all iterative kinds on the validation
score. A lost worker process costs its trial one more try; a model's error is its outcome.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flts_ray.config import Config
from flts_ray.errors import Unavailable
from flts_ray.models.base import Compute, Task
from flts_ray.prepare.arrays import SeriesArrays
from flts_ray.tune.held import Held
from flts_ray.tune.logbook import Logbook, StudyLog
from flts_ray.tune.outcome import (
    StudyInterrupted,
    StudyLogFailed,
    StudyResult,
    read_outcome,
    read_outcomes,
)
from flts_ray.tune.progress import StudyView
from flts_ray.tune.recorder import Recorder
from flts_ray.tune.space import BASELINES, TrialPlan, sample_trials
from flts_ray.tune.trial import TrialSetting


def run_study(
    config: Config,
    data: SeriesArrays,
    folder: Path,
    log: StudyLog | None = None,
    parent_run: str = "",
    resume: bool = False,
    on_progress: Callable[[StudyView], None] | None = None,
    held: Held | None = None,
) -> StudyResult:
    """Run the trials of `config.models` on `data` and return every outcome.

    folder: the study's own folder, named by `study_id`; on a cluster a path that all nodes
    share. Artifacts are left below `folder/artifacts/<trial id>/`. resume: keep trials that
    are over; otherwise start from nothing. log: told of every start, epoch and end, under
    `parent_run`. held: `data` in the object store, if others use it there too. Needs an
    initialised Ray if there is anything to run.

    Raises Unavailable without Ray, StudyInterrupted on Ctrl-C and StudyLogFailed if logging
    failed; the last two hold the result, and resuming goes on from there.
    """
    folder = folder.resolve()
    plans = sample_trials(config.models, config.tune.seed)
    if not resume:
        clear_study(folder)
    logbook = Logbook(log, parent_run, folder) if log is not None else None
    recorder = Recorder(
        folder,
        plans,
        read_outcomes(folder, plans),
        config.tune.budget_s,
        spent_seconds(folder),
        time.monotonic,
        on_progress,
        logbook,
    )
    interrupted, log_error = False, None
    try:
        interrupted = _run_rest(config, data, held or Held(data), folder, plans, recorder)
    finally:
        log_error = logbook.close() if logbook is not None else None
    # Read again: run ids are known only once the logbook has sent everything.
    outcomes = tuple(read_outcome(folder, o.trial_id) or o for o in recorder.outcomes())
    result = StudyResult(folder.name, outcomes, spent_seconds(folder))
    if interrupted:
        raise StudyInterrupted(result)
    if log_error is not None:
        raise StudyLogFailed(
            f"logging of study {folder.name} failed: {log_error}; its trials are kept: bring "
            "the tracking server back and resume the study",
            result,
        ) from log_error
    return result


def clear_study(folder: Path) -> None:
    """Forget every trial of a study and the time it took."""
    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    (folder / "spent.json").unlink(missing_ok=True)


def _run_rest(
    config: Config,
    data: SeriesArrays,
    held: Held,
    folder: Path,
    plans: Sequence[TrialPlan],
    recorder: Recorder,
) -> bool:
    """Run what is not over yet. Returns True if Ctrl-C ended it."""
    first = {plan.kind: plan.trial_id for plan in reversed(plans)}
    required = [first[k] for k in {*BASELINES, config.gate.baseline} if k in first]
    left = [plan for plan in plans if not recorder.decided([plan.trial_id])]
    if not left or (recorder.time_is_up and recorder.decided(required)):
        return False
    # Tune takes seconds to import; a study that is over needs none of it.
    import ray

    from flts_ray.tune.search import run_search

    if not ray.is_initialized():
        raise Unavailable("a study needs Ray: call ray.init() or join a cluster first")
    setting = trial_setting(config, data, folder)
    interrupted = run_search(config.tune, setting, held, left, required, recorder)
    if interrupted:
        recorder.cut_running("interrupted; the trial starts again when the study is resumed")
    else:
        recorder.stop_running()
    recorder.note_time()
    return interrupted


def trial_setting(config: Config, data: SeriesArrays, folder: Path) -> TrialSetting:
    """What all trials share. Every validation origin has two seasons of history, or as much as
    the shortest training span allows."""
    return TrialSetting(
        study=folder,
        task=Task(config.task.horizon, config.task.quantiles),
        compute=Compute(
            threads=max(1, int(config.tune.cpus_per_trial)),
            device=config.tune.where,
            seed=config.tune.seed,
        ),
        score=config.judge.score,
        lookback=min(2 * data.contract.season, int(data.train_end.min(initial=0))),
        stride=config.tune.validation_stride,
    )


def spent_seconds(folder: Path) -> float:
    """Wall-clock seconds that the sessions of a study have used so far."""
    path = folder / "spent.json"
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.exists() else 0.0
