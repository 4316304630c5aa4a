"""A study as MLflow runs: one parent, one child a trial.

Design choices: nothing but run ids crosses the border, so trials may be logged from any process;
a run's status is written last, so that a finished run is complete; the revision recorded is that
of this package's own source, and "unknown" where it is not under version control.
"""

from __future__ import annotations

import io
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import csv

import flts_ray
from flts_ray.errors import DataError
from flts_ray.tracking import AlreadyThere, Missing, TrackingClient

CONFIG_HASH, PREPARED_HASH = "flts.config_hash", "flts.prepared_hash"
KIND, ERROR, STUDY = "flts.kind", "flts.error", "flts.study"
PARENT = "mlflow.parentRunId"
PARAMS_A_REQUEST = 100
"""The most parameters MLflow takes at once."""
Status = Literal["FINISHED", "FAILED", "KILLED"]


class StudyRuns:
    """The runs of one experiment. Every method raises Unavailable when MLflow is away."""

    def __init__(self, client: TrackingClient, experiment_id: str, name: str) -> None:
        self._client = client
        self.experiment_id = experiment_id
        self.name = name

    @classmethod
    def connect(cls, uri: str, experiment: str, name: str) -> StudyRuns:
        """Open or create the experiment; `name` is what the study's run is called."""
        client = TrackingClient(uri)
        return cls(client, _experiment(client, experiment), name)

    def start_study(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """Start the parent run and return its id.

        Callers put CONFIG_HASH and PREPARED_HASH into `tags`; version and revision are added.
        """
        known = {STUDY: self.name, "flts.version": flts_ray.__version__, **revision()}
        return self._start(self.name, {**known, **tags}, params)

    def resume_study(self, run_id: str) -> str:
        """Continue a parent run; trials that a dead driver left running become KILLED.

        Raises DataError if the run does not exist or is not in this experiment.
        """
        try:
            run = self._client.get_run(run_id)
        except Missing:
            raise DataError(
                f"run {run_id} is not in MLflow at {self._client.uri}; start a new study"
            ) from None
        if run.info.experiment_id != self.experiment_id:
            raise DataError(f"run {run_id} belongs to another experiment; start a new study")
        for child in self.trials(run_id):
            if child.info.status == "RUNNING":
                self._client.set_terminated(child.info.run_id, "KILLED")
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def start_trial(self, parent: str, name: str, kind: str, params: Mapping[str, Any]) -> str:
        """Start a child run and return its id."""
        return self._start(name, {PARENT: parent, KIND: kind, STUDY: self.name}, params)

    def log_epoch(self, run_id: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of one epoch (counted from 0 or 1, as the caller does)."""
        self._client.log_batch(run_id, metrics=_metrics(metrics, epoch))

    def end_trial(
        self, run_id: str, status: Status, metrics: Mapping[str, float], error: str | None = None
    ) -> None:
        """Log final metrics and why it failed, then close the run."""
        if metrics:
            self._client.log_batch(run_id, metrics=_metrics(metrics, 0))
        if error is not None:
            self._client.set_tag(run_id, ERROR, error)
        self._client.set_terminated(run_id, status)

    def log_folder(self, run_id: str, folder: Path, artifact_path: str) -> None:
        """Upload every file of `folder` to `artifact_path` of the run."""
        self._client.log_artifacts(run_id, str(folder), artifact_path)

    def log_table(self, run_id: str, table: pa.Table, name: str) -> None:
        """Log a table of plain columns as `<name>.csv`, which MLflow shows as a table."""
        buffer = io.BytesIO()
        csv.write_csv(table, buffer)
        self._client.log_text(run_id, buffer.getvalue().decode(), f"{name}.csv")

    def log_json(self, run_id: str, value: Any, name: str) -> None:
        """Log any JSON value as `<name>.json`."""
        self._client.log_text(run_id, json.dumps(value, indent=2), f"{name}.json")

    def end_study(self, run_id: str, status: Status) -> None:
        """Close the parent run."""
        self._client.set_terminated(run_id, status)

    def trials(self, parent: str) -> list[Any]:
        """The child runs as MLflow's `Run`, oldest first."""
        found, token = [], None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.`{PARENT}` = '{parent}'",
                order_by=["attributes.start_time ASC"],
                max_results=500,
                page_token=token,
            )
            found.extend(page)
            token = page.token
            if not token:
                return found

    def _start(self, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> str:
        run = self._client.create_run(self.experiment_id, tags=dict(tags), run_name=name)
        run_id: str = run.info.run_id
        from mlflow.entities import Param

        wanted = [Param(key, _text(value)) for key, value in params.items()]
        for start in range(0, len(wanted), PARAMS_A_REQUEST):
            self._client.log_batch(run_id, params=wanted[start : start + PARAMS_A_REQUEST])
        return run_id


def revision(source: Path = Path(__file__)) -> dict[str, str]:
    """Tags with the git revision of a source file, and whether its repository has changes.

    "unknown" where git is missing or does not track the file.
    """
    source = source.resolve()
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return {"flts.git_revision": "unknown", "flts.git_dirty": "unknown"}
    changes = _git(source.parent, "status", "--porcelain", "--untracked-files=no")
    return {
        "flts.git_revision": _git(source.parent, "rev-parse", "HEAD") or "unknown",
        "flts.git_dirty": "unknown" if changes is None else str(bool(changes)).lower(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _experiment(client: TrackingClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except AlreadyThere:
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _metrics(metrics: Mapping[str, float], step: int) -> list[Any]:
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    return [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
