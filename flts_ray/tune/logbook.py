"""Forwards a study to a tracking server, beside the study and never in its way.

Design choices: a thread of its own, because a slow server must not keep workers waiting; what is
queued are outcomes, each of which holds all epochs so far, so logging is catching up with an
outcome and a trial that was never logged (a dead driver, a server that was away) is caught up
with as a whole; the first error is reported at once, then nothing more is sent, and `close`
returns it, so that trials go on and nobody believes that they were logged.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import structlog

from flts_ray.tune.outcome import TrialOutcome, trial_folder, write_json

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class StudyLog(Protocol):
    """Where trials are logged, such as MLflow runs under a parent run."""

    def start_trial(self, parent: str, name: str, kind: str, params: Mapping[str, Any]) -> str:
        """Open a run and return its id."""
        ...

    def log_epoch(self, run_id: str, epoch: int, metrics: Mapping[str, float]) -> None: ...

    def end_trial(
        self, run_id: str, status: RunStatus, metrics: Mapping[str, float], error: str | None
    ) -> None: ...

    def log_folder(self, run_id: str, folder: Path, artifact_path: str) -> None: ...


class Logbook:
    """Queues what happens and sends it from one thread. Use from one thread, then `close`."""

    def __init__(self, log: StudyLog, parent: str, study: Path) -> None:
        self._log, self._parent, self._study = log, parent, study
        self._runs: dict[str, str] = {}
        self._epochs: dict[str, int] = {}
        self._error: Exception | None = None
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="study-log", daemon=True)
        self._thread.start()

    def reached(self, outcome: TrialOutcome) -> None:
        """A trial has started or finished an epoch."""
        self._queue.put(lambda: self._catch_up(outcome))

    def over(self, outcome: TrialOutcome) -> None:
        """A trial is over and committed to disk."""
        self._queue.put(lambda: self._conclude(outcome))

    def cut(self, outcome: TrialOutcome, reason: str) -> None:
        """A trial was cut off and will start again: its run ends, the next one is new."""
        self._queue.put(lambda: self._abandon(outcome, reason))

    def close(self) -> Exception | None:
        """Wait until everything is sent. Returns the error after which nothing was sent."""
        self._queue.put(None)
        self._thread.join()
        return self._error

    def _send(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._error is not None:
                continue
            try:
                job()
            except Exception as error:  # noqa: BLE001 - any client error; `close` returns it
                self._error = error
                structlog.get_logger().error("study_log_failed", error=str(error))

    def _catch_up(self, outcome: TrialOutcome) -> None:
        name = outcome.trial_id
        if name not in self._runs:
            self._runs[name] = self._log.start_trial(
                self._parent, name, outcome.kind, outcome.params
            )
        known = self._epochs.get(name, 0)
        for epoch, metrics in enumerate(outcome.history[known:], start=known + 1):
            self._log.log_epoch(self._runs[name], epoch, metrics)
        self._epochs[name] = max(known, len(outcome.history))

    def _conclude(self, outcome: TrialOutcome) -> None:
        self._catch_up(outcome)
        run_id = self._runs[outcome.trial_id]
        if outcome.artifact is not None:
            self._log.log_folder(run_id, outcome.artifact, "model")
        status: RunStatus = "FAILED" if outcome.status == "failed" else "FINISHED"
        self._log.end_trial(run_id, status, summary(outcome), outcome.error)
        write_json(trial_folder(self._study, outcome.trial_id) / "run.json", {"run_id": run_id})

    def _abandon(self, outcome: TrialOutcome, reason: str) -> None:
        self._catch_up(outcome)
        run_id = self._runs[outcome.trial_id]
        self._log.end_trial(run_id, "KILLED", summary(outcome), reason)
        del self._runs[outcome.trial_id], self._epochs[outcome.trial_id]


def summary(outcome: TrialOutcome) -> dict[str, float]:
    """What a trial cost and reached, as metrics of its run; a trial stopped early says so."""
    best = {} if outcome.valid_score is None else {"best_valid_score": outcome.valid_score}
    return best | {
        "stopped_early": float(outcome.status == "stopped"),
        "seconds": outcome.seconds,
        "cpu_seconds": outcome.cpu_seconds,
        "max_rss_mib": outcome.max_rss_mib,
    }
