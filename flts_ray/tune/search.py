"""The Ray Tune shell: turns what is left of a plan into one Tune search.

Design choices: Tune's events go to the recorder and nothing is read back from Tune; its own
experiment state, loggers and terminal output are off; only as many trials are queued as can run
at once, so that they start in plan order and no idle worker is started ahead; the search runs
under its own Ctrl-C handler, because Tune's does not tell its caller that it was interrupted.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.stopper import Stopper

from flts_ray.config import TuneConfig
from flts_ray.tune.held import Held
from flts_ray.tune.outcome import TrialOutcome, trial_folder
from flts_ray.tune.recorder import Recorder
from flts_ray.tune.space import TrialPlan
from flts_ray.tune.spread import RaySpread
from flts_ray.tune.trial import TrialSetting
from flts_ray.tune.worker import TrialWorker

MAX_EPOCHS = 100_000
"""Epoch of the last rung of successive halving; no trial gets that far."""
DIED = (
    "the worker process died twice (killed from outside, or out of memory); choose smaller "
    "settings or more memory a trial"
)


class TuneEvents(tune.Callback):
    """Passes Tune's events on to the recorder."""

    def __init__(self, recorder: Recorder, study: Path) -> None:
        self._recorder, self._study = recorder, study

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for Tuner.restore, which the record on disk replaces.
        return {}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._recorder.started(_id(trial))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        folder = trial_folder(self._study, _id(trial))
        self._recorder.reached(TrialOutcome.from_json(result["outcome"], folder))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._recorder.stopped(_id(trial))

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._recorder.restarts(_id(trial), "the worker process died; the trial starts again")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._recorder.died(_id(trial), DIED)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._recorder.tick()


class StudyStopper(Stopper):
    """Ends the search on Ctrl-C at once, and when time is up as soon as `required` are over."""

    def __init__(
        self, recorder: Recorder, required: Collection[str], interrupt: threading.Event
    ) -> None:
        self._recorder, self._required, self._interrupt = recorder, required, interrupt

    def __getstate__(self) -> dict[str, Any]:
        # Tune stores its stopper with the experiment state, which nothing reads.
        return {}

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._interrupt.is_set():
            return True
        return self._recorder.time_is_up and self._recorder.decided(self._required)


def run_search(
    settings: TuneConfig,
    setting: TrialSetting,
    held: Held,
    plans: Sequence[TrialPlan],
    required: Collection[str],
    recorder: Recorder,
) -> bool:
    """Run `plans` until they are over, time is up or Ctrl-C. Returns True after Ctrl-C.

    `required`: trials that are run to their end even when time is up. Needs Ray.
    """
    scratch = setting.study / "tune"
    shutil.rmtree(scratch, ignore_errors=True)
    spread = RaySpread(held.reference)
    with interrupt_flag() as interrupt, quiet_tune(concurrency(settings)):
        stopper = StudyStopper(recorder, required, interrupt)
        events = TuneEvents(recorder, setting.study)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(TrialWorker, spread=spread, setting=setting),
                {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial},
            ),
            param_space={"plan": tune.grid_search([_plain(plan) for plan in plans])},
            tune_config=tune.TuneConfig(
                scheduler=halving(settings),
                reuse_actors=True,
                trial_name_creator=_id,
                trial_dirname_creator=_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(setting.study),
                stop=stopper,
                callbacks=[events],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    return interrupt.is_set()


def halving(settings: TuneConfig) -> ASHAScheduler:
    """Asynchronous successive halving over `epoch`, which only iterative trials report."""
    return ASHAScheduler(
        time_attr="epoch",
        metric="valid_score",
        mode="min",
        max_t=MAX_EPOCHS,
        grace_period=settings.asha_grace_epochs,
        reduction_factor=settings.asha_reduction,
        stop_last_trials=False,
    )


def concurrency(settings: TuneConfig) -> int:
    """How many trials the cluster can run at once now, at least one."""
    total = ray.cluster_resources()
    slots = [total.get("CPU", 0.0) / settings.cpus_per_trial]
    if settings.gpus_per_trial:
        slots.append(total.get("GPU", 0.0) / settings.gpus_per_trial)
    return max(1, int(min(slots)))


@contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one raises KeyboardInterrupt as usual.

    Outside the main thread, where signals do not arrive, the event is never set.
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.getsignal(signal.SIGINT)

    def first(number: int, frame: FrameType | None) -> None:
        flag.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, first)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def quiet_tune(queued: int) -> Iterator[None]:
    """Tune's switches, which exist only as environment variables; restored afterwards."""
    switches = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_GLOBAL_CHECKPOINT_S": "86400",
        "TUNE_MAX_PENDING_TRIALS_PG": str(queued),
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }
    before = {name: os.environ.get(name) for name in switches}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(switches)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _plain(plan: TrialPlan) -> dict[str, Any]:
    return {**asdict(plan), "params": dict(plan.params)}


def _id(trial: Trial) -> str:
    return str(trial.config["plan"]["trial_id"])
