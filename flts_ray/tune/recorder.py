"""The driver's view of a running study: what each trial has reached, and when time is up.

Design choices: no Ray here; the Tune callback only translates. The record on disk is the truth:
a worker commits a trial that ended by itself, the recorder commits one that was stopped or whose
worker died, and a trial that is on disk is never overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flts_ray.tune.logbook import Logbook
from flts_ray.tune.outcome import (
    TrialOutcome,
    best_per_kind,
    in_plan_order,
    read_outcome,
    write_json,
    write_outcome,
)
from flts_ray.tune.progress import StudyView
from flts_ray.tune.space import TrialPlan

TICK_S = 0.5
"""Least seconds between two views that show nothing but passing time."""


class Recorder:
    """Collects outcomes; `clock` gives seconds, `spent_s` is what earlier sessions used."""

    def __init__(
        self,
        study: Path,
        plans: Sequence[TrialPlan],
        over: Mapping[str, TrialOutcome],
        budget_s: float,
        spent_s: float,
        clock: Callable[[], float],
        on_progress: Callable[[StudyView], None] | None = None,
        logbook: Logbook | None = None,
    ) -> None:
        self._study, self._plans = study, plans
        self._over = dict(over)
        self._running: dict[str, TrialOutcome] = {}
        self._budget_s, self._clock = budget_s, clock
        self._began = clock() - spent_s
        self._on_progress, self._logbook = on_progress, logbook
        self._shown = float("-inf")
        for outcome in over.values():
            if logbook is not None and outcome.run_id is None:
                logbook.over(outcome)

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._began

    @property
    def time_is_up(self) -> bool:
        return self.elapsed_s >= self._budget_s

    def decided(self, trial_ids: Collection[str]) -> bool:
        """True if all these trials are over."""
        return all(trial_id in self._over for trial_id in trial_ids)

    def started(self, trial_id: str) -> None:
        plan = next(plan for plan in self._plans if plan.trial_id == trial_id)
        self._reach(TrialOutcome.of_plan(plan))

    def reached(self, outcome: TrialOutcome) -> None:
        """A worker reported; a trial that it has committed is over."""
        if outcome.status == "pending":
            self._reach(outcome)
        else:
            self._end(outcome)

    def stopped(self, trial_id: str) -> None:
        """The scheduler or the budget ended a trial; its best epoch counts if it had one."""
        outcome = self._running.get(trial_id)
        if outcome is None:
            return
        committed = read_outcome(self._study, trial_id)
        if committed is None and outcome.artifact is not None:
            committed = replace(outcome, status="stopped")
            write_outcome(self._study, committed)
        if committed is not None:
            self._end(committed)

    def died(self, trial_id: str, error: str) -> None:
        """The worker process was lost and the trial will not be tried again."""
        outcome = self._running.get(trial_id)
        if outcome is None:
            self.started(trial_id)
            outcome = self._running[trial_id]
        committed = read_outcome(self._study, trial_id)
        if committed is None:
            committed = replace(outcome, status="failed", error=error, artifact=None)
            write_outcome(self._study, committed)
        self._end(committed)

    def restarts(self, trial_id: str, reason: str) -> None:
        """The worker process was lost and the trial starts again."""
        outcome = self._running.pop(trial_id, None)
        if outcome is not None and self._logbook is not None:
            self._logbook.cut(outcome, reason)

    def stop_running(self) -> None:
        """Time is up: what still runs counts as far as it came."""
        for trial_id in list(self._running):
            self.stopped(trial_id)

    def cut_running(self, reason: str) -> None:
        """The study is interrupted: what still runs will start again when it is resumed."""
        for trial_id in list(self._running):
            self.restarts(trial_id, reason)

    def note_time(self) -> None:
        """Keep the seconds used so far, for a later session of the study."""
        write_json(self._study / "spent.json", {"seconds": self.elapsed_s})

    def tick(self) -> None:
        if self._clock() - self._shown >= TICK_S:
            self._show()

    def outcomes(self) -> tuple[TrialOutcome, ...]:
        return in_plan_order(self._plans, self._over)

    def view(self) -> StudyView:
        count = [outcome.status for outcome in self._over.values()].count
        best = best_per_kind(self._over.values())
        return StudyView(
            total=len(self._plans),
            finished=count("finished"),
            stopped=count("stopped"),
            failed=count("failed"),
            running=tuple(self._running.values()),
            elapsed_s=self.elapsed_s,
            budget_s=self._budget_s,
            best={kind: o.valid_score for kind, o in best.items() if o.valid_score is not None},
        )

    def _reach(self, outcome: TrialOutcome) -> None:
        self._running[outcome.trial_id] = outcome
        if self._logbook is not None:
            self._logbook.reached(outcome)
        self._show()

    def _end(self, outcome: TrialOutcome) -> None:
        self._running.pop(outcome.trial_id, None)
        self._over[outcome.trial_id] = outcome
        self.note_time()
        if self._logbook is not None:
            self._logbook.over(outcome)
        self._show()

    def _show(self) -> None:
        self._shown = self._clock()
        if self._on_progress is not None:
            self._on_progress(self.view())
