"""Tells other programs how a study goes: its own start and end, and those of each trial.

Design choices: what happens is read off the views that are shown anyway, so that a study knows
nothing of events; how a trial ended is what is on disk; what ended between two views, or was cut,
is told when the study is over. Ends of trials from an earlier session are not told again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from flts_ray.config import Config
from flts_ray.events import Events
from flts_ray.tune.outcome import TrialOutcome, read_outcome
from flts_ray.tune.progress import StudyView

Status = Literal["RUNNING", "SUCCESS", "FAILED"]


class TrialEvents:
    """Publishes `model-training`. `parent`: MLflow's run of the study in `folder`."""

    def __init__(self, events: Events, config: Config, parent: str, folder: Path) -> None:
        self._events, self._parent, self._folder = events, parent, folder
        self._about = {
            "config_hash": config.digest(),
            "experiment": config.mlflow.experiment or config.name,
            "study_run": parent,
        }
        self._running: dict[str, TrialOutcome] = {}

    def study(self, status: Status, error: str | None = None) -> None:
        """Tell of the study as a whole."""
        self._tell(None, None, self._parent, status, error)

    def __call__(self, view: StudyView) -> None:
        """Tell what changed since the last view."""
        now = {outcome.trial_id: outcome for outcome in view.running}
        for trial_id in now.keys() - self._running.keys():
            one = now[trial_id]
            self._tell(one.kind, trial_id, one.run_id, "RUNNING", None)
        gone = self._running.keys() - now.keys()
        self._running = now | {trial_id: self._running[trial_id] for trial_id in gone}
        # The run id comes a moment after the end; without it the trial is told later.
        self.ended(one for one in self._on_disk(gone) if one.run_id is not None)

    def settle(self) -> None:
        """Tell what has ended of all that was told to run."""
        self.ended(self._on_disk(list(self._running)))

    def ended(self, outcomes: Iterable[TrialOutcome]) -> None:
        """Tell how trials ended that were told to run; others, and what will go on, are left."""
        for one in outcomes:
            if one.status != "pending" and self._running.pop(one.trial_id, None) is not None:
                status: Status = "FAILED" if one.status == "failed" else "SUCCESS"
                self._tell(one.kind, one.trial_id, one.run_id, status, one.error)

    def _on_disk(self, trial_ids: Iterable[str]) -> list[TrialOutcome]:
        found = (read_outcome(self._folder, trial_id) for trial_id in trial_ids)
        return [outcome for outcome in found if outcome is not None]

    def _tell(
        self,
        kind: str | None,
        trial: str | None,
        run_id: str | None,
        status: Status,
        error: str | None,
    ) -> None:
        about = {"model_type": kind, "trial": trial, "run_id": run_id, "status": status}
        self._events.publish("model-training", {**self._about, **about, "error": error})


@contextmanager
def study_events(
    events: Events, config: Config, parent: str, folder: Path
) -> Iterator[TrialEvents]:
    """RUNNING at the start of the block, SUCCESS at its end, FAILED if it ends in any other way."""
    told = TrialEvents(events, config, parent, folder)
    told.study("RUNNING")
    try:
        yield told
    except BaseException as error:
        told.settle()
        told.study("FAILED", str(error) or type(error).__name__)
        raise
    told.study("SUCCESS")
