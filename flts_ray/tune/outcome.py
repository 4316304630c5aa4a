"""What came out of a trial and of a study, and how it lasts on disk.

Design choices: a trial owns one folder, `<study>/artifacts/<trial id>/`, with the artifact of its
best epoch and `result.json`; that file is written last and in one rename, so a folder with it is
a trial that will never run again, whatever died in between. `run.json` beside it says under which
run id the trial was logged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import flts_ray
from flts_ray.atomic_files import appearing
from flts_ray.config import Config
from flts_ray.errors import ArtifactError, Unavailable
from flts_ray.tune.space import TrialPlan

Status = Literal["finished", "stopped", "failed", "pending"]


@dataclass(frozen=True)
class TrialOutcome:
    """One trial as far as it came.

    status: `finished` by itself, `stopped` early by the scheduler or the budget (its best epoch
    counts), `failed` with `error`, `pending` if it never ran to any of these.
    valid_score: best mean score of the validation windows, lower is better.
    seconds: wall clock; cpu_seconds: of the worker and its children; max_rss_mib: largest
    resident memory of the worker process so far, which may have run other trials before.
    history: metrics of each epoch. artifact: folder of the best epoch's model.
    """

    trial_id: str
    kind: str
    params: Mapping[str, Any]
    status: Status = "pending"
    error: str | None = None
    valid_score: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    max_rss_mib: float = 0.0
    pid: int | None = None
    history: tuple[Mapping[str, float], ...] = ()
    artifact: Path | None = None
    run_id: str | None = None

    @classmethod
    def of_plan(cls, plan: TrialPlan) -> TrialOutcome:
        return cls(plan.trial_id, plan.kind, plan.params)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; the artifact by its name within the trial's folder."""
        raw = {**self.__dict__, "params": dict(self.params), "history": list(self.history)}
        raw["artifact"] = self.artifact.name if self.artifact else None
        del raw["run_id"]
        return raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], folder: Path) -> TrialOutcome:
        """The inverse of `to_json` for a trial in `folder`."""
        artifact = folder / raw["artifact"] if raw["artifact"] else None
        return cls(**{**raw, "history": tuple(raw["history"]), "artifact": artifact})


@dataclass(frozen=True)
class StudyResult:
    """Every planned trial, in plan order."""

    study_id: str
    outcomes: tuple[TrialOutcome, ...]
    seconds: float = 0.0
    """Wall-clock seconds of the study, over all its sessions."""

    def best_per_kind(self) -> dict[str, TrialOutcome]:
        """The usable trial (finished or stopped, with an artifact) of each kind that scored best.

        Equal scores keep the earlier trial. A kind without a usable trial is left out.
        """
        return best_per_kind(self.outcomes)

    @property
    def workers(self) -> int:
        """How many worker processes ran the trials."""
        return len({outcome.pid for outcome in self.outcomes if outcome.pid is not None})


def best_per_kind(outcomes: Iterable[TrialOutcome]) -> dict[str, TrialOutcome]:
    best: dict[str, TrialOutcome] = {}
    for outcome in outcomes:
        if usable(outcome) and better(outcome, best.get(outcome.kind)):
            best[outcome.kind] = outcome
    return best


def usable(outcome: TrialOutcome) -> bool:
    return outcome.status in ("finished", "stopped") and outcome.artifact is not None


def better(outcome: TrialOutcome, other: TrialOutcome | None) -> bool:
    """True if `outcome` has a score, and a lower one than `other`."""
    if outcome.valid_score is None:
        return False
    return other is None or other.valid_score is None or outcome.valid_score < other.valid_score


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C during a study; `result` holds what was reached. Resume the study to go on."""

    def __init__(self, result: StudyResult) -> None:
        self.result = result
        super().__init__(f"study {result.study_id} was interrupted; resume it to go on")


class StudyLogFailed(Unavailable):
    """The tracking server failed during a study; `result` is complete and on disk.

    Resuming the study logs what is missing and runs nothing again.
    """

    def __init__(self, message: str, result: StudyResult) -> None:
        self.result = result
        super().__init__(message)


def study_id(config: Config, prepared: str) -> str:
    """Name of the study of this configuration on this prepared set (its hash).

    Only what changes a trial or its score counts: a larger budget or other resources continue
    the same study, another version of this program does not.
    """
    free = {"budget_s", "cpus_per_trial", "gpus_per_trial", "device"}
    tune = config.tune.model_dump(mode="json", exclude=free)
    models = config.canonical("task", "models")
    parts = [flts_ray.__version__, prepared, models, tune, config.judge.score]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def trial_folder(study: Path, trial_id: str) -> Path:
    return study / "artifacts" / trial_id


def write_json(path: Path, raw: Any) -> None:
    """Write as a whole, so that no reader ever sees half a file."""
    with appearing(path) as stream:
        stream.write(json.dumps(raw, sort_keys=True).encode())


def write_outcome(study: Path, outcome: TrialOutcome) -> None:
    """Commit a trial that is over. Call after its artifact is in place."""
    write_json(trial_folder(study, outcome.trial_id) / "result.json", outcome.to_json())


def read_outcome(study: Path, trial_id: str) -> TrialOutcome | None:
    """The committed outcome of a trial, None if it is not over. Raises ArtifactError."""
    folder = trial_folder(study, trial_id)
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        outcome = TrialOutcome.from_json(json.loads(path.read_text(encoding="utf-8")), folder)
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: is no trial result ({error}); delete {folder} to run the trial again"
        ) from None
    return replace(outcome, run_id=read_run_id(study, trial_id))


def read_outcomes(study: Path, plans: Iterable[TrialPlan]) -> dict[str, TrialOutcome]:
    """Committed outcomes of the planned trials, by trial id."""
    found = ((plan.trial_id, read_outcome(study, plan.trial_id)) for plan in plans)
    return {trial_id: outcome for trial_id, outcome in found if outcome is not None}


def read_run_id(study: Path, trial_id: str) -> str | None:
    path = trial_folder(study, trial_id) / "run.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["run_id"]) if path.exists() else None


def in_plan_order(
    plans: Sequence[TrialPlan], outcomes: Mapping[str, TrialOutcome]
) -> tuple[TrialOutcome, ...]:
    """One outcome a plan; a plan without one is pending."""
    return tuple(outcomes.get(plan.trial_id, TrialOutcome.of_plan(plan)) for plan in plans)
